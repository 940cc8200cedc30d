"""How much a key repeats other kept keys (R-KV, arXiv 2505.24133)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from budgetctl.kernels.kv_state import SlotState

#: Rows of the similarity matrix that are held at a time.
BLOCK = 256


def redundancy(state: SlotState, similar: float, width: int | None = None) -> torch.Tensor:
    """Softmax over the keys of a head of their mean cosine to all kept keys.

    Of the keys that a key resembles by more than ``similar`` the latest is not held against that one, so that of several
    like each other the latest stays (the released code spares exactly one; so do we).

    Args:
        state: read only.
        similar: cosine above which two keys count as alike.
        width: look at the first w = ``width`` columns of each head; None for all.

    Returns:
        [B, H, w] of the dtype of ``state.importance``, 0 in empty slots. Memory grows with w x 256, time with w².
    """
    positions = state.head_positions(width)
    empty = positions < 0
    keys = F.normalize(state.heads(state.keys, width).to(state.importance.dtype), dim=3)
    keys = keys.masked_fill(empty[..., None], 0.0)
    total = torch.zeros_like(positions, dtype=keys.dtype)
    for start in range(0, keys.shape[2], BLOCK):
        cosine = keys[:, :, start : start + BLOCK] @ keys.mT
        cosine.diagonal(start, 2, 3).zero_()
        alike = positions[:, :, None].where(cosine > similar, -1)
        latest = alike.argmax(3, keepdim=True)
        spared = cosine.gather(3, latest).masked_fill(alike.gather(3, latest) >= 0, 0.0)
        total += cosine.scatter_(3, latest, spared).sum(2)
    count = (~empty).sum(2, keepdim=True).clamp(min=1)
    return (total / count).masked_fill(empty, -torch.inf).softmax(2).nan_to_num(nan=0.0)
