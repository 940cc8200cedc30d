"""One decode step of a layer under a KV budget in plain PyTorch: the CPU's path and the measure of a kernel.

A step is two functions. :func:`decode_step` runs once a layer and token: it writes the new key and value into the slot
that the queue names, attends over all slots, and takes the importance of each key from the same attention weights.
:func:`pick_victims` runs every W tokens and fills the queue with the slots to be overwritten next: empty ones first,
then those of the lowest score that are not protected. Both run on rows and heads at once; each (row, head) depends on
its own state alone. A kernel replaces either function under its signature; ``kv_state`` describes the tensors.

In float64 throughout when keys and queries are.
"""

from __future__ import annotations

import torch

from budgetctl.errors import KernelError
from budgetctl.kernels.host_reads import may_look
from budgetctl.kernels.kv_state import Group, Protection, Rule, SlotState


def decode_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: SlotState,
    *,
    scale: float,
    rule: Rule = "max",
    decay: float = 1.0,
    group: Group = "max",
    real: torch.Tensor | None = None,
    width: int | None = None,
) -> torch.Tensor:
    """Attention of one new token a row over the slots, which it enters first. Changes ``state`` in place.

    With a the softmax over all tokens in slots (the new one too) and m_j the largest (or mean) a_gj over the query
    heads g that share the key, the importance of slot j becomes ``max(decay I_j, m_j)`` by rule ``max``,
    ``decay I_j + m_j`` by ``sum``; the new token's is m_j. ``max`` without decay is the worst case over time of
    DefensiveKV (arXiv 2510.13334), ``sum`` without decay is H2O (arXiv 2306.14048), decay 0 is TOVA.

    Args:
        query: [B, G H, D] floating point; query heads g + G h share key-value head h.
        key: [B, H, D] of the dtype of ``state.keys``.
        value: [B, H, E] likewise.
        state: written: one slot a head in ``keys``, ``values``, ``positions``, ``importance``, ``value_norms``; all of
            ``importance``; ``evicted``, where there is one, grows by the importance of the token that was in the slot;
            ``cursor`` and ``lengths`` advance. Empty slots and the rest of the queue are left alone.
        scale: factor of the logits.
        rule: ``none`` leaves importance alone.
        decay: in [0, 1].
        group: ``max`` or ``mean``.
        real: [B] or [B, H] bool, false where the row's (or the head's) token is padding: it takes its slot and leaves it
            empty. None for all true.
        width: no head has a token beyond its first ``width`` columns, this step's included; saves work while slots are
            still empty. None for all.

    Returns:
        [B, G H, E] of the dtype of ``query``. A row without any token has no meaning, but is finite.

    Raises:
        KernelError: for shapes that do not go together.
    """
    check_step(query, key, value, state)
    slot = state.queue.gather(2, state.cursor[:, :, None].long()).squeeze(2).long()
    if state.evicted is not None:
        held = state.positions.gather(1, slot) >= 0
        state.evicted.add_(state.importance.gather(1, slot).where(held, 0.0))
    if real is not None and real.dim() == 1:
        real = real[:, None]
    write(state, slot, key, value, state.lengths if real is None else state.lengths.where(real, -1))
    state.lengths.add_(1 if real is None else real)
    state.cursor.add_(1)

    work = torch.promote_types(query.dtype, torch.float32)
    grouped = query.unflatten(1, (len(state.capacities), -1)).to(work) * scale
    logits = grouped @ state.heads(state.keys, width).to(work).mT
    empty = state.head_positions(width) < 0
    weights = logits.masked_fill_(empty[:, :, None], torch.finfo(work).min).softmax(-1)
    output = weights @ state.heads(state.values, width).to(work)
    if rule != "none":
        importance = state.heads(state.importance, width)
        follow(importance, weights.amax(2) if group == "max" else weights.mean(2), rule, decay)
        if not state.uniform:
            state.put_heads(state.importance, importance)
    return output.flatten(1, 2).to(query.dtype)


def write(
    state: SlotState, slot: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
) -> None:
    """Put tokens into slots, their importance at 0.

    Args:
        state: changed in place.
        slot: [B, n] int64, distinct within a row.
        key: [B, n, D].
        value: [B, n, E].
        positions: [B, n] int32, -1 to leave the slot empty.
    """
    state.keys.scatter_(1, slot[:, :, None].expand_as(key), key)
    state.values.scatter_(1, slot[:, :, None].expand_as(value), value)
    state.positions.scatter_(1, slot, positions)
    state.importance.scatter_(1, slot, 0.0)
    if state.value_norms is not None:
        state.value_norms.scatter_(1, slot, value_norm(value, state.value_norms.dtype))


def value_norm(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """L1 norm of values [..., E], as CriticalKV takes it (arXiv 2502.03805, there after the output projection)."""
    return value.to(dtype).abs().sum(-1)


def follow(importance: torch.Tensor, mass: torch.Tensor, rule: Rule, decay: float) -> None:
    """One step of the importance's recursion, in place; see :func:`decode_step`."""
    mass = mass.to(importance.dtype)
    if decay != 1.0:
        importance.mul_(decay)
    if rule == "max":
        torch.maximum(importance, mass, out=importance)
    else:
        importance.add_(mass)


def protected(
    state: SlotState, protection: Protection, width: int | None = None, sizes: torch.Tensor | None = None
) -> torch.Tensor:
    """[B, H, w] bool: sinks, a prompt that is short enough, the latest tokens and the answer. Empty slots: either.

    ``sizes`` [H] are the capacities that a prompt is compared with, those of ``state`` unless given.
    """
    prompt = state.prompts
    longest = (state.sizes if sizes is None else sizes) * protection.prompt_share
    prompt = prompt.where(prompt <= longest, 0).clamp(min=protection.sinks)
    late = torch.minimum(state.lengths - protection.recent, state.answers)
    positions = state.head_positions(width)
    return (positions < prompt[:, :, None]) | (positions >= late[:, :, None])


def standing(
    state: SlotState,
    scores: torch.Tensor | None,
    protection: Protection,
    width: int | None = None,
    sizes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(ranked, age)`` [B, H, w]: the lowest ``ranked`` goes first, of equal ones the lowest ``age``, which is unique.

    Empty slots are -inf, protected ones and columns that a head does not have +inf.
    """
    positions = state.head_positions(width)
    ranked = state.heads(state.importance, width) if scores is None else scores
    # Infinities become the numbers next to them.
    ranked = ranked.nan_to_num(nan=torch.finfo(ranked.dtype).max)
    ranked = ranked.masked_fill(protected(state, protection, width, sizes), torch.inf)
    if state.full and state.uniform:
        return ranked, positions
    ranked = ranked.masked_fill(positions < 0, -torch.inf)
    columns = torch.arange(positions.shape[2], device=positions.device, dtype=torch.int32)
    age = torch.where(positions < 0, columns, positions)
    if not state.uniform:
        outside = state.outside[:, : positions.shape[2]]
        ranked = ranked.masked_fill(outside, torch.inf)
        age = torch.where(outside, torch.iinfo(torch.int32).max - columns, age)
    return ranked, age


def order(ranked: torch.Tensor, age: torch.Tensor) -> torch.Tensor:
    """[B, H, w] int64 columns by :func:`standing`, the first to go first."""
    by_age = age.argsort(2)
    return by_age.gather(2, ranked.gather(2, by_age).argsort(dim=2, stable=True))


def first_to_go(ranked: torch.Tensor, age: torch.Tensor, count: int) -> torch.Tensor:
    """[B, H, count] int64, the first columns of :func:`order`, without sorting them all.

    Where the host may look, age is asked for only among equals. Elsewhere: a float32 has the bits of an integer that is in
    the same order, but for the sign; with the age below them one number stands for both.
    """
    if count < ranked.shape[2] and may_look(ranked.device):
        lowest, columns = ranked.topk(count + 1, 2, largest=False)
        if bool((lowest[:, :, 1:] > lowest[:, :, :-1]).all()):
            return columns[:, :, :count]
    if ranked.dtype != torch.float32 or count > ranked.shape[2] // 8:
        return order(ranked, age)[:, :, :count]
    bits = (ranked + 0.0).view(torch.int32)  # no negative zero
    bits = bits ^ ((bits >> 31) & torch.iinfo(torch.int32).max)
    return ((bits.long() << 32) | age).topk(count, 2, largest=False).indices


def pick_victims(
    state: SlotState,
    scores: torch.Tensor | None,
    protection: Protection,
    *,
    count: int,
    width: int | None = None,
) -> torch.Tensor:
    """The ``count`` slots of each head that the next tokens take.

    Empty slots first, in their order; then the lowest scores, the oldest of equal ones first. Protected slots only
    after all others, where ``count`` leaves no choice; the caller sees to it that there is one.

    Args:
        state: read only.
        scores: [B, H, w] floating point, NaN counts as the highest; None for ``state.importance``.
        protection: of positions.
        count: W, at most the smallest capacity and ``width``.
        width: look at the first w = ``width`` columns of each head only; None for all.

    Returns:
        [B, H, W] int32 slots of the row, for ``state.queue``; set ``state.cursor`` to 0 with it.
    """
    ranked, age = standing(state, scores, protection, width)
    if count == 1:
        lowest = ranked == ranked.amin(2, keepdim=True)
        chosen = age.masked_fill(~lowest, torch.iinfo(torch.int32).max).argmin(2, keepdim=True)
    else:
        chosen = first_to_go(ranked, age, count)
    return state.slots(chosen).int()


def guarded(state: SlotState, width: int | None, prior: float) -> torch.Tensor:
    """Importance [B, H, w], at least ``prior`` times its mean over the head, times the value's norm over its mean.

    Means are over the tokens in slots; anything in empty slots. DefensiveKV (arXiv 2510.13334) with a prior of 1.

    Raises:
        KernelError: for a state without norms of values.
    """
    if state.value_norms is None:
        raise KernelError(
            "the state keeps no norms of values, which a prior needs: expected SlotState.allocate(value_norms=True)"
        )
    worst, norms = state.heads(state.importance, width), state.heads(state.value_norms, width)
    usual = mean_of_tokens(state, norms, width).clamp(min=torch.finfo(norms.dtype).tiny)
    return torch.maximum(worst, prior * mean_of_tokens(state, worst, width)) * norms / usual


def mean_of_tokens(state: SlotState, by_head: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """[B, H, 1] mean of a number of each slot [B, H, w] over the slots of a head that hold a token; 0 where none does."""
    if state.full and state.uniform:
        return by_head.mean(2, keepdim=True)
    empty = state.head_positions(width) < 0
    count = (~empty).sum(2, keepdim=True).clamp(min=1)
    return by_head.masked_fill(empty, 0.0).sum(2, keepdim=True) / count


def check_step(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, state: SlotState) -> None:
    """Raise :class:`KernelError` for shapes of :func:`decode_step` that do not go together."""
    heads = len(state.capacities)
    batch, _, size = state.keys.shape
    if key.shape != (batch, heads, size) or value.shape != (batch, heads, state.values.shape[2]):
        raise KernelError(
            f"key and value have shapes {tuple(key.shape)} and {tuple(value.shape)}: expected "
            f"{(batch, heads, size)} and {(batch, heads, state.values.shape[2])}, one token a row"
        )
    if query.dim() != 3 or query.shape[0] != batch or query.shape[1] % heads or query.shape[2] != size:
        raise KernelError(
            f"query has shape {tuple(query.shape)}: expected [{batch}, a multiple of {heads}, {size}]"
        )
