"""A block of several tokens (a prompt, a piece of one, a new turn, a draft) enters the slots of a layer.

The block has attended already. Its last queries tell how important each key is, the old ones and the block's own; where
there are more tokens than slots, the policy's lowest go. What is held for the while is the slots and one block, so a
prompt of any length that comes in blocks needs capacity + block tokens of memory (block prefill, EpiCache, arXiv
2509.17396, there with a question of its own after each block).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from budgetctl.kernels.kv_reference import order, standing, value_norm
from budgetctl.kernels.kv_state import Protection, SlotState
from budgetctl.kv.policies import Policy


def attend_with_slots(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    state: SlotState,
    *,
    scale: float,
    width: int,
) -> torch.Tensor:
    """Attention of a block over the slots and itself, by SDPA.

    Args:
        module: of the model.
        query: [B, G H, q, D].
        key: [B, H, q, D].
        value: [B, H, q, E].
        mask: [B, 1 or H, q, q] bool, which token of the block sees which; None for causal without padding.
        state: without the block; read only.
        scale: factor of the logits.
        width: columns that may hold tokens.

    Returns:
        [B, q, G H, E].
    """
    block, groups = query.shape[2], query.shape[1] // key.shape[1]
    if mask is None:
        mask = torch.ones(block, block, dtype=torch.bool, device=key.device).tril()[None, None]
    held = (state.head_positions(width) >= 0)[:, :, None].expand(-1, -1, block, -1)
    seen = torch.cat([held, mask.expand(len(key), key.shape[1], -1, -1)], 3).repeat_interleave(groups, 1)
    keys = torch.cat([state.heads(state.keys, width), key], 2)
    values = torch.cat([state.heads(state.values, width), value], 2)
    output: torch.Tensor = sdpa_attention_forward(module, query, keys, values, seen, scaling=scale)[0]
    return output


def enter(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    real: torch.Tensor,
    state: SlotState,
    policy: Policy,
    protection: Protection,
    *,
    scale: float,
    width: int,
) -> None:
    """Put the block's real tokens into slots, and out those that have to go. Changes ``state`` in place.

    Args:
        query: [B, G H, q, D], of the block's tokens.
        key: [B, H, q, D].
        value: [B, H, q, E].
        real: [B, H, q] bool, false for padding, which is never kept.
        state: its queue is spent afterwards.
        policy: for importance, and for the choice.
        protection: of positions.
        scale: factor of the logits.
        width: columns that may hold tokens before the block.
    """
    block = key.shape[2]
    count = real.cumsum(2, dtype=torch.int32)
    joined = _join(key, value, state, torch.where(real, state.lengths[:, :, None] + count - 1, -1), width)
    state.lengths.add_(count[:, :, -1])
    if policy.rule != "none":
        _observe(query, real, joined, policy, count[:, :, -1], scale)
    keep = joined.positions.unflatten(1, (len(state.capacities), -1)) >= 0
    if width + block > min(state.capacities):
        ranked, age = standing(joined, policy.scores(joined), protection, sizes=state.sizes)
        going = order(ranked, age)
        ranks = torch.arange(going.shape[2], device=going.device).expand_as(going)
        # The rank of each column; the last C_h of a head stay.
        ranks = torch.empty_like(going).scatter_(2, going, ranks)
        keep &= ranks >= going.shape[2] - state.sizes[:, None]
    _settle(key, value, joined, keep, state, width)
    state.cursor.fill_(state.queue.shape[2])


def _join(
    key: torch.Tensor, value: torch.Tensor, state: SlotState, positions: torch.Tensor, width: int
) -> SlotState:
    """Slots and block as one state whose heads have ``width`` + q slots each."""
    heads, block = key.shape[1:3]
    total = width + block

    def flat(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.cat([old, new], 2).flatten(1, 2)

    kind = state.importance.dtype
    fresh = key.new_zeros(key.shape[:3], dtype=kind)
    norms = state.value_norms
    return replace(
        state,
        keys=flat(state.heads(state.keys, width), key),
        values=state.values[:, :0],
        positions=flat(state.head_positions(width), positions),
        importance=flat(state.heads(state.importance, width), fresh),
        value_norms=None if norms is None else flat(state.heads(norms, width), value_norm(value, kind)),
        # The latest tokens are counted from the end of the block, and what has been read so far is the prompt.
        lengths=torch.maximum(state.lengths, positions.amax(2) + 1),
        offsets=tuple(total * h for h in range(heads + 1)),
    )


def _observe(
    query: torch.Tensor,
    real: torch.Tensor,
    joined: SlotState,
    policy: Policy,
    count: torch.Tensor,
    scale: float,
) -> None:
    """Importance by the block's last queries, as if they had come one by one."""
    block = query.shape[2]
    last = min(block, policy.window or policy.observe)
    work = torch.promote_types(query.dtype, torch.float32)
    keys = joined.heads(joined.keys).to(work)
    grouped = query[:, :, -last:].unflatten(1, (keys.shape[1], -1)).to(work) * scale
    logits = grouped @ keys.mT[:, :, None]
    columns = torch.arange(joined.widest, device=keys.device) - (joined.widest - block)
    ahead = columns > torch.arange(block - last, block, device=keys.device)[:, None]
    hidden = (joined.head_positions() < 0)[:, :, None, None] | ahead
    weights = logits.masked_fill_(hidden, torch.finfo(work).min).softmax(-1)
    mass = weights.amax(2) if policy.group == "max" else weights.mean(2)
    mass = mass.masked_fill(~real[:, :, -last:, None], 0.0).to(joined.importance.dtype)
    after = torch.arange(last - 1, -1, -1, device=keys.device, dtype=mass.dtype)
    mass = mass * (policy.fading**after)[:, None]
    importance = joined.heads(joined.importance)
    if policy.window is not None:
        importance.zero_()
    else:
        importance.mul_((policy.fading ** count.to(mass.dtype))[:, :, None])
    if policy.rule == "max":
        torch.maximum(importance, mass.amax(2), out=importance)
    else:
        importance.add_(mass.sum(2))


def _settle(
    key: torch.Tensor,
    value: torch.Tensor,
    joined: SlotState,
    keep: torch.Tensor,
    state: SlotState,
    width: int,
) -> None:
    """Empty the slots whose tokens go, and write the block's kept tokens into the first empty slots."""
    importance = joined.heads(joined.importance)
    held = state.head_positions(width).masked_fill(~keep[:, :, :width], -1)
    state.put_heads(state.positions, held)
    state.put_heads(state.importance, importance[:, :, :width])
    kept = keep[:, :, width:]
    reach = min(state.widest, width + kept.shape[2])
    most = min(kept.shape[2], reach)
    taken = state.head_positions(reach) >= 0
    if not state.uniform:
        taken = taken | state.outside[:, :reach]
    source = (~kept).to(torch.int8).argsort(dim=2, stable=True)[:, :, :most]
    target = state.slots(taken.to(torch.int8).argsort(dim=2, stable=True)[:, :, :most])
    active = torch.arange(most, device=key.device) < kept.sum(2, keepdim=True)
    row, head, at = active.nonzero(as_tuple=True)
    source, target = source[row, head, at], target[row, head, at]
    state.keys[row, target] = key[row, head, source]
    state.values[row, target] = value[row, head, source]
    state.positions[row, target] = joined.head_positions()[row, head, width + source]
    state.importance[row, target] = importance[row, head, width + source]
    if state.value_norms is not None:
        assert joined.value_norms is not None
        state.value_norms[row, target] = joined.heads(joined.value_norms)[row, head, width + source]
