"""Decode steps of a layer that has room for them, on the CPU: keys and values are stored, the rest is made up for later.

While the tokens of all rows stand in the first columns of their heads, in order, and the next ones go to the columns that
follow, attention over the slots is attention over a view of them, which SDPA computes as it does for a full cache. What a
step does beside (positions, importance, norms, the queue) is read by nobody until slots run short. So the queries of such
steps are kept, and what is behind is computed for several of them at once, when there are :data:`MOST_BEHIND` of them or
the state is looked at. The result is that of :func:`budgetctl.kernels.kv_reference.decode_step` but for rounding.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from budgetctl.kernels.kv_reference import value_norm
from budgetctl.kernels.kv_state import SlotState
from budgetctl.kv.policies import Policy

#: Steps whose queries are kept.
MOST_BEHIND = 16
#: Logits that are held at a time when they are made up for.
MOST_LOGITS = 1 << 23


def step(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: SlotState,
    *,
    column: int,
    scale: float,
) -> torch.Tensor:
    """Store one token a row in its column, and attend over all columns up to it.

    Args:
        module: of the model.
        query: [B, G H, 1, D].
        key: [B, H, 1, D].
        value: [B, H, 1, E].
        state: of heads that are alike; ``keys`` and ``values`` are written.
        column: of the token, after all others.
        scale: factor of the logits.

    Returns:
        [B, 1, G H, E].
    """
    keys, values = state.heads(state.keys, column + 1), state.heads(state.values, column + 1)
    keys[:, :, column:] = key
    values[:, :, column:] = value
    output: torch.Tensor = sdpa_attention_forward(module, query, keys, values, None, scaling=scale)[0]
    return output


def catch_up(
    state: SlotState, queries: list[torch.Tensor], policy: Policy, *, end: int, ahead: int, scale: float
) -> None:
    """What the latest steps have left out, done for all of them. Changes all of ``state`` but keys and values.

    Args:
        state: as these steps left it.
        queries: of the steps, each [B, G H, 1, D].
        policy: without a window of queries.
        end: columns in use.
        ahead: tokens for which the queue is to name the columns that follow.
        scale: factor of the logits.
    """
    with writing(state):
        _catch_up(state, queries, policy, end, ahead, scale)


def writing(state: SlotState) -> AbstractContextManager[object]:
    """The mode in which the state's tensors can be written to: those made in inference mode only in inference mode, and who
    looks at the state may not be in it."""
    return torch.inference_mode() if state.keys.is_inference() else torch.no_grad()


def _catch_up(
    state: SlotState, queries: list[torch.Tensor], policy: Policy, end: int, ahead: int, scale: float
) -> None:
    count, heads, interval = len(queries), len(state.capacities), state.queue.shape[2]
    start = end - count
    columns = torch.arange(start, end + ahead, dtype=torch.int32)
    state.heads(state.positions)[:, :, start:end] = columns[:count]
    state.lengths.add_(count)
    importance = state.heads(state.importance, end)
    importance[:, :, start:] = 0.0
    if state.value_norms is not None:
        new = state.heads(state.values, end)[:, :, start:]
        state.heads(state.value_norms, end)[:, :, start:] = value_norm(new, state.value_norms.dtype)
    state.queue[:, :, interval - ahead :] = columns[count:] + state.first[:, None]
    state.cursor.fill_(interval - ahead)
    if policy.rule == "none":
        return
    most = max(1, MOST_LOGITS // (state.keys.shape[0] * queries[0].shape[1] * end))
    for first in range(0, count, most):
        part = torch.cat(queries[first : first + most], 2).unflatten(1, (heads, -1))
        _follow(state, importance[:, :, : start + first + part.shape[3]], part, policy, scale)


def _follow(
    state: SlotState, importance: torch.Tensor, queries: torch.Tensor, policy: Policy, scale: float
) -> None:
    """The recursion of importance [B, H, w] over n queries [B, H, G, n, D], the last of which belongs to the last column."""
    width, count = importance.shape[2], queries.shape[3]
    work = torch.promote_types(queries.dtype, torch.float32)
    keys = state.heads(state.keys, width).to(work)
    logits = (queries.to(work) * scale).flatten(2, 3) @ keys.mT
    logits = logits.unflatten(2, (-1, count))
    later = torch.ones(count, count, dtype=torch.bool).triu(1)
    logits[..., width - count :].masked_fill_(later, torch.finfo(work).min)
    weights = logits.softmax(-1)
    mass = (weights.amax(2) if policy.group == "max" else weights.mean(2)).to(importance.dtype)
    fading = policy.fading
    if fading != 1.0:
        mass *= (fading ** torch.arange(count - 1, -1, -1, dtype=mass.dtype))[:, None]
        importance.mul_(fading**count)
    if policy.rule == "max":
        torch.maximum(importance, mass.amax(2), out=importance)
    else:
        importance.add_(mass.sum(2))
