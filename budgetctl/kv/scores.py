"""What policies score the keys of a head by, beside their importance: the values, the neighbours, and each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from budgetctl.errors import KernelError
from budgetctl.kernels.kv_reference import guarded, mean_of_tokens
from budgetctl.kernels.kv_state import SlotState

__all__ = ["difference", "diverse", "guarded", "pooled", "redundancy"]

#: Rows of the similarity matrix that are held at a time.
BLOCK = 256
#: Norm of a key or a mean of keys below which it has no direction.
SHORTEST = 1e-12
#: Share of the mean norm of a head's values below which a value counts as no smaller.
SMALLEST = 1e-3
#: Share of novelty's weight in heads that park all of their attention.
FLOOR = 1 / 40


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


def difference(state: SlotState, width: int | None = None) -> torch.Tensor:
    """How little a key points where the head's keys point (KeyDiff, arXiv 2504.15364): 1 - cosine to their mean direction.

    Args:
        state: read only.
        width: look at the first ``width`` columns of each head only.

    Returns:
        [B, H, w] of the dtype of ``state.importance``, from 0 to 2; anything in empty slots.
    """
    keys = state.heads(state.keys, width).to(state.importance.dtype)
    # Two products with the keys as they are, and none of their directions, which would be a copy of them.
    shorter = torch.linalg.vector_norm(keys, dim=3).clamp(min=SHORTEST).reciprocal()
    held = shorter
    if not (state.full and state.uniform):
        held = shorter.masked_fill(state.head_positions(width) < 0, 0.0)
    mean = F.normalize(held[:, :, None] @ keys, dim=3)
    return 1 - (mean @ keys.mT)[:, :, 0] * shorter


def diverse(state: SlotState, weight: float, width: int | None = None) -> torch.Tensor:
    """Attention and novelty, i / mean(i) + ``weight`` r (p^-20 + 1/40) u / mean(u), means over the head's keys.

    i is the importance, v the norm of the value, u the :func:`difference` of the key times v, r the share of the tokens
    seen that the head has slots for. p = mean(i / v) mean(v) / mean(i), at least 1, tells how far the head parks its
    attention on small values: 1 where it looks at values of average size, 1.4 where a sink of a fifth of that takes a
    tenth of it. Such a head need look at other keys only when it has a use for them, so that its attention tells which
    to keep; a head without a sink spreads attention also over what it has no use for. The norm in u (as in CriticalKV,
    arXiv 2502.03805) leaves out sinks, which are novel keys of small values.

    Args:
        state: read only.
        weight: of novelty, at least 0.
        width: look at the first ``width`` columns of each head only.

    Returns:
        [B, H, w] of the dtype of ``state.importance``; anything in empty slots.

    Raises:
        KernelError: for a state without norms of values.
    """
    if state.value_norms is None:
        raise KernelError(
            "novelty of a state without norms of values: expected SlotState.allocate(value_norms=True)"
        )
    found = state.heads(state.importance, width), state.heads(state.value_norms, width)
    tiny = torch.finfo(found[0].dtype).tiny
    attention, norm = (part / mean_of_tokens(state, part, width).clamp(min=tiny) for part in found)
    novelty = difference(state, width) * norm
    novelty = novelty / mean_of_tokens(state, novelty, width).clamp(min=tiny)
    parked = mean_of_tokens(state, attention / norm.clamp(min=SMALLEST), width).clamp(min=1.0)
    kept = (state.sizes / state.lengths.clamp(min=1)).clamp(max=1.0).to(norm.dtype)[:, :, None]
    return attention + weight * kept * (parked**-20 + FLOOR) * novelty
