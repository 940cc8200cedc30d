"""Other capacities for slots that are in use: one copy, at the rare moments when slots change hands between rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from budgetctl.kernels.kv_reference import order, standing
from budgetctl.kernels.kv_state import Protection, SlotState


def resized(
    state: SlotState, capacities: Sequence[int], scores: torch.Tensor, protection: Protection
) -> SlotState:
    """A new state with ``capacities`` slots of its heads, and what fits of the old one's tokens.

    Args:
        state: read only; its queue is not taken over, so that victims have to be named anew.
        capacities: H numbers of slots.
        scores: [B, H, C] of the policy; where slots are missing the lowest unprotected go.
        protection: of positions.

    Returns:
        State of the same rows and heads.
    """
    batch = len(state.cursor)
    fresh = SlotState.allocate(
        batch,
        capacities,
        state.keys.shape[2],
        state.values.shape[2],
        interval=state.queue.shape[2],
        value_norms=state.value_norms is not None,
        evicted=state.evicted is not None,
        dtype=state.keys.dtype,
        device=state.keys.device,
    )
    ranked, age = standing(state, scores, protection)
    going = order(ranked, age)
    inside = (
        torch.ones_like(ranked, dtype=torch.bool) if state.uniform else (~state.outside).expand_as(ranked)
    )
    ranks = torch.empty_like(going).scatter_(
        2, going, torch.arange(state.widest, device=going.device).expand_as(going)
    )
    # Columns that a head does not have are ranked last; what is before them and stays comes just before.
    ranks = ranks + (state.widest - state.sizes)[:, None]
    keep = inside & (ranks >= (state.widest - fresh.sizes)[:, None]) & (state.head_positions() >= 0)
    width = min(fresh.widest, state.widest)
    source = (~keep).to(torch.int8).argsort(dim=2, stable=True)[:, :, :width]
    kept = torch.arange(width, device=source.device) < keep.sum(2, keepdim=True)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        by_head = state.heads(tensor)
        index = source if by_head.dim() == 3 else source[..., None].expand(-1, -1, -1, by_head.shape[3])
        return by_head.gather(2, index)

    fresh.put_heads(fresh.positions, moved(state.positions).masked_fill(~kept, -1))
    for old, new in (
        (state.keys, fresh.keys),
        (state.values, fresh.values),
        (state.importance, fresh.importance),
        (state.value_norms, fresh.value_norms),
    ):
        if old is not None and new is not None:
            fresh.put_heads(new, moved(old))
    for name in ("lengths", "prompts", "answers", "evicted"):
        old, new = getattr(state, name), getattr(fresh, name)
        if new is not None:
            new.copy_(old)
    return fresh
