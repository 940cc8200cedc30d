"""Room for the answer: freed in one go where the thought ends, and guarded while the answer is written."""

from __future__ import annotations

import torch

from budgetctl.errors import CacheError
from budgetctl.kernels.kv_reference import order, standing
from budgetctl.kernels.kv_state import Protection, SlotState


def make_room(
    state: SlotState, rows: torch.Tensor, reserve: int, scores: torch.Tensor, protection: Protection
) -> None:
    """Empty slots of ``rows`` until ``reserve`` are empty in every head, or nothing is left to give up.

    Args:
        state: its ``positions`` change.
        rows: [B, H] bool.
        reserve: slots.
        scores: [B, H, C] of the policy; the lowest go.
        protection: of positions.
    """
    ranked, age = standing(state, scores, protection)
    first = order(ranked, age)[:, :, : min(reserve, state.widest)]
    going = torch.zeros_like(ranked, dtype=torch.bool).scatter_(2, first, True)
    going &= rows[:, :, None] & (ranked < torch.inf)
    state.put_heads(state.positions, state.head_positions().masked_fill(going, -1))


def check_room(
    state: SlotState, protection: Protection, *, written: int, count: int, heads: int | None = None
) -> None:
    """Raise when a row has fewer than ``count`` slots left to write to. Looks at the tensors only when that can be.

    Args:
        state: read only.
        protection: of positions.
        written: tokens since the first row began its answer.
        count: slots that are needed next.
        heads: heads of a row, where the state has the heads of several rows in one.

    Raises:
        CacheError: naming the row.
    """
    smallest = min(state.capacities)
    prompt = max(protection.sinks, int(protection.prompt_share * smallest))
    if prompt + protection.recent + written + count <= smallest:
        return
    ranked, _ = standing(state, None, protection)
    free = (ranked < torch.inf).sum(2).view(-1, heads or ranked.shape[1]).amin(1)
    if bool((free < count).any()):
        raise CacheError(
            f"the answer of row {int(free.argmin())} has filled the cache: expected room in {smallest} slots for the protected "
            f"prompt, the {protection.recent} latest tokens and the whole answer; give a larger capacity or a shorter answer"
        )


def bound_answer(state: SlotState, protection: Protection, *, count: int) -> None:
    """Let go of the protection of an answer's first tokens, as far as it is longer than the slots that it can have.

    Args:
        state: its ``answers`` move on, on the device alone.
        protection: of positions.
        count: tokens that come before the next look.
    """
    prompt = state.prompts.where(state.prompts <= state.sizes * protection.prompt_share, 0)
    room = (state.sizes - prompt.clamp(min=protection.sinks) - count).clamp(min=protection.recent)
    state.answers.copy_(torch.maximum(state.answers, (state.lengths - room).int()))
