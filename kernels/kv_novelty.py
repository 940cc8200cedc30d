"""Keys unlike the others of their head, for all layers at once: Triton on CUDA, plain PyTorch elsewhere.

:func:`difference` and :func:`diverse` are the reference, of one layer. :func:`novelty` is what policies ask: three
launches for all layers on CUDA (two without importance), which read each key twice in the dtype that it is kept in, where
the reference makes float32 copies; no synchronisation, and no shape that depends on data.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch.nn import functional as F

from budgetctl.errors import KernelError
from budgetctl.kernels.gamma_guidance import has_triton
from budgetctl.kernels.kv_reference import mean_of_tokens
from budgetctl.kernels.kv_state import SlotState
from budgetctl.kernels.kv_victims import VictimTable, check_states

__all__ = ["difference", "diverse", "launch_options", "novelty", "parts_of"]

#: Norm of a key or a mean of keys below which it has no direction.
SHORTEST = 1e-12
#: Share of the mean norm of a head's values below which a value counts as no smaller.
SMALLEST = 1e-3
#: Share of novelty's weight in heads that park all of their attention.
FLOOR = 1 / 40
#: Programs that keep a large GPU busy with reads alone: eight on each multiprocessor of an H100 or H200.
ENOUGH_PROGRAMS = 1056
#: Fewest slots that are worth a program of their own, and slots that it holds at a time.
LEAST_SLOTS, BLOCK = 128, 1024
#: Bytes whose multiples keys begin at.
ALIGNMENT = 16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    _check_norms([state])
    assert state.value_norms is not None
    found = state.heads(state.importance, width), state.heads(state.value_norms, width)
    tiny = torch.finfo(found[0].dtype).tiny
    attention, norm = (part / mean_of_tokens(state, part, width).clamp(min=tiny) for part in found)
    novel = difference(state, width) * norm
    novel = novel / mean_of_tokens(state, novel, width).clamp(min=tiny)
    parked = mean_of_tokens(state, attention / norm.clamp(min=SMALLEST), width).clamp(min=1.0)
    kept = (state.sizes / state.lengths.clamp(min=1)).clamp(max=1.0).to(norm.dtype)[:, :, None]
    return attention + weight * kept * (parked**-20 + FLOOR) * novel


def novelty(
    states: Sequence[SlotState],
    weight: float | None = None,
    width: int | None = None,
    table: VictimTable | None = None,
) -> Sequence[torch.Tensor] | torch.Tensor:
    """:func:`diverse` of this weight, or the :func:`difference` alone for None, of every state.

    Args:
        states: one a layer, of the same B and H on one device; capacities may differ.
        weight: of novelty beside attention, at least 0.
        width: look at the first ``width`` columns of each head only; None for all.
        table: of these states; None makes it, at the price of a copy to the device that the host waits for.

    Returns:
        Of each state [B, H, w], w as of ``width``; anything in empty slots. On CUDA, where all states are as wide, one
        tensor [layers, B, H, w] float32. The kernel adds up in another order than PyTorch.

    Raises:
        KernelError: for states that do not go together, or without norms of values where there is a weight.
    """
    check_states(states)
    if weight is not None:
        _check_norms(states)
    if states[0].keys.is_cuda and _has_kernel(states):
        return _launch(states, weight, width, table)
    if weight is None:
        return [difference(state, width) for state in states]
    return [diverse(state, weight, width) for state in states]


def parts_of(pairs: int, slots: int) -> int:
    """Programs that share the ``slots`` of each of ``pairs`` heads of all layers and rows: a power of two."""
    most = max(min(-(-ENOUGH_PROGRAMS // pairs), slots // LEAST_SLOTS), 1)
    return 1 << most.bit_length() - 1


def launch_options(size: int) -> dict[str, int]:
    """Compile-time constants of the kernels for keys of D = ``size``; ``num_warps`` is among them."""
    across = max(1 << (size - 1).bit_length(), 16)
    return {"D": size, "BLOCK_D": across, "BLOCK_N": max(8192 // across, 16), "num_warps": 4}


def _launch(
    states: Sequence[SlotState],
    weight: float | None,
    width: int | None,
    table: VictimTable | None,
    *,
    parts: int | None = None,
) -> Sequence[torch.Tensor] | torch.Tensor:
    """The same by the Triton kernels, on any device that they run on."""
    from budgetctl.kernels.kv_novelty_triton import (
        kv_apart_kernel,
        kv_directions_kernel,
        kv_diverse_kernel,
    )

    if table is None:
        table = VictimTable.of(states)
    (batch, heads, _), size = states[0].queue.shape, states[0].keys.shape[2]
    widths = [state.widest if width is None else min(width, state.widest) for state in states]
    widest, device = max(widths), table.entries.device
    pairs = batch * heads
    parts = parts_of(len(states) * pairs, widest) if parts is None else parts
    options = launch_options(size)
    sums = torch.empty(len(states), pairs, parts, size, device=device)
    found = torch.empty(len(states), batch, heads, widest, device=device)
    shared = {"HEADS": heads, "SPLITS": parts, **options}
    grid, anchor = (len(states) * pairs, parts), states[0].keys
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kv_directions_kernel[grid](table.entries, anchor, sums, pairs, widest, **shared)
        kv_apart_kernel[grid](
            table.entries, anchor, sums, found, pairs, widest, NORMS=weight is not None, **shared
        )
        if weight is not None:
            kv_diverse_kernel[(len(states) * pairs,)](
                table.entries, found, pairs, widest, float(weight), HEADS=heads, BLOCK=BLOCK, num_warps=4
            )
    if min(widths) == widest:
        return found
    return [found[layer, :, :, :columns] for layer, columns in enumerate(widths)]


def _has_kernel(states: Sequence[SlotState]) -> bool:
    return (
        has_triton()
        and states[0].keys.dtype in DTYPES
        and all(state.keys.dtype == states[0].keys.dtype for state in states)
        and all(state.keys.shape[2] == states[0].keys.shape[2] for state in states)
        and all(state.keys.data_ptr() % ALIGNMENT == 0 for state in states)
        and all(state.contiguous for state in states)
    )


def _check_norms(states: Sequence[SlotState]) -> None:
    if any(state.value_norms is None for state in states):
        raise KernelError(
            "novelty of a state without norms of values: expected SlotState.allocate(value_norms=True)"
        )
