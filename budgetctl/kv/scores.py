"""What policies score the keys of a head by, beside their importance: the values, the neighbours, and each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from budgetctl.kernels.kv_novelty import difference, diverse
from budgetctl.kernels.kv_reference import guarded
from budgetctl.kernels.kv_state import SlotState

__all__ = ["difference", "diverse", "guarded", "pooled", "redundancy"]

#: Rows of the similarity matrix that are held at a time.
BLOCK = 256


def pooled(state: SlotState, width: int | None, size: int, pool: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Importance [B, H, w], pooled over ``size`` (odd) tokens that follow each other among those in slots."""
    found = state.heads(state.importance, width)
    positions = state.head_positions(width)
    # Empty slots come first, and count for nothing.
    by_position = positions.argsort(2)
    ordered = found.masked_fill(positions < 0, 0.0).gather(2, by_position)
    smooth: torch.Tensor = pool(ordered, size, stride=1, padding=size // 2)
    return torch.empty_like(smooth).scatter_(2, by_position, smooth)


def redundancy(state: SlotState, similar: float, width: int | None = None) -> torch.Tensor:
    """How much a key repeats other kept keys (R-KV, arXiv 2505.24133): softmax over the head of their mean cosine.

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
