"""The decode step of a layer under a KV budget: Triton on CUDA, plain PyTorch elsewhere.

Same signature and meaning as :mod:`budgetctl.kernels.kv_reference`, which is also taken on CUDA for what the kernel does
not do (float64, a query of another dtype, no Triton). One launch a layer and token, no synchronisation of device and
host, no shape that depends on data: with working memory of its own (:class:`KVScratch`) a step can stand in a CUDA graph.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import get_args

import torch

from budgetctl.errors import KernelError
from budgetctl.kernels import kv_reference
from budgetctl.kernels.gamma_guidance import has_triton
from budgetctl.kernels.kv_scratch import KVScratch, logits_stride, splits
from budgetctl.kernels.kv_state import Group, Rule, SlotState

__all__ = ["KVScratch", "decode_step", "launch_options", "splits"]

#: Rows of a tile of queries: what a matrix product takes at least, and the most that are held at a time.
LEAST_ROWS, MOST_ROWS = 16, 64
#: Largest key or value.
MOST_SIZE = 256
#: Logits of the importance pass that a program holds at a time.
IMPORTANCE_TILE = 4096
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    scratch: KVScratch | None = None,
    launches: int = 1,
) -> torch.Tensor:
    """Attention of one new token a row over the slots, which it enters first. Changes ``state`` in place.

    :func:`budgetctl.kernels.kv_reference.decode_step` tells what is computed. The kernel differs where a caller breaks
    the rules: a queue that is spent (``cursor`` at its end) has its last slot overwritten again.

    Args:
        query: [B, G H, D] floating point; query heads g + G h share key-value head h.
        key: [B, H, D] of the dtype of ``state.keys``.
        value: [B, H, E] likewise.
        state: written.
        scale: factor of the logits.
        rule: ``max``, ``sum`` or ``none``.
        decay: in [0, 1].
        group: ``max`` or ``mean``.
        real: [B] or [B, H] bool, false where the row's (or the head's) token is padding; None for all true.
        width: no head has a token beyond its first ``width`` columns, this step's included; None for all.
        scratch: working memory of the kernel; None allocates it, at the price of one more launch.
        launches: 1, or 2 to combine the splits in a launch of its own, as a check and for comparison.

    Returns:
        [B, G H, E] of the dtype of ``query``. A row without any token has no meaning, but is finite.

    Raises:
        KernelError: for shapes, dtypes or devices that do not go together, or scratch that is too small.
    """
    _check(query, key, value, state, rule, group, real, launches)
    if query.is_cuda and _has_kernel(query, state):
        return _launch(
            query, key, value, state, scale, rule, decay, group, real, width, scratch, fused=launches == 1
        )
    return kv_reference.decode_step(
        query,
        key,
        value,
        state,
        scale=scale,
        rule=rule,
        decay=decay,
        group=group,
        real=real,
        width=width,
    )


def launch_options(
    state: SlotState, groups: int, *, rule: Rule, group: Group, upcast: bool = False
) -> dict[str, int | bool]:
    """The kernel's compile-time constants, without its splits; ``num_warps`` and ``num_stages`` are among them."""
    sizes = state.keys.shape[2], state.values.shape[2], state.queue.shape[2]
    return dict(_options(*sizes, len(state.capacities), state.keys.dtype, groups, rule, group, upcast))


@lru_cache
def _options(
    size: int,
    value_size: int,
    queue: int,
    heads: int,
    dtype: torch.dtype,
    groups: int,
    rule: Rule,
    group: Group,
    upcast: bool,
) -> dict[str, int | bool]:
    widest = max(_power_of_two(size), _power_of_two(value_size), LEAST_ROWS)
    narrow = dtype != torch.float32
    # Tiles of keys and values of two to three blocks stay in shared memory while the next are on their way.
    block = max(8192 // widest, 16) if narrow else max(4096 // widest, 16)
    rows = _power_of_two(groups)
    return {
        "HEADS": heads,
        "GROUPS": groups,
        "D": size,
        "E": value_size,
        "QUEUE": queue,
        "RULE": _rules()[rule],
        "MEAN": group == "mean",
        "UPCAST": upcast,
        "BLOCK_G": max(rows, LEAST_ROWS),
        "BLOCK_D": max(_power_of_two(size), 16),
        "BLOCK_E": max(_power_of_two(value_size), 16),
        "BLOCK_N": min(block, 128),
        "ROWS": rows,
        "BLOCK_I": max(min(IMPORTANCE_TILE // rows, 1024), 128),
        "num_warps": 8 if widest > 128 else 4,
        "num_stages": 3 if narrow else 2,
    }


def _launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: SlotState,
    scale: float,
    rule: Rule,
    decay: float,
    group: Group,
    real: torch.Tensor | None,
    width: int | None,
    scratch: KVScratch | None,
    *,
    parts: int | None = None,
    fused: bool = True,
) -> torch.Tensor:
    """The same by the Triton kernel, on any device that it runs on."""
    from budgetctl.kernels.kv_combine_triton import kv_combine_kernel
    from budgetctl.kernels.kv_decode_triton import kv_decode_kernel

    batch, heads, groups = len(query), len(state.capacities), query.shape[1] // key.shape[1]
    if scratch is None:
        scratch = KVScratch.allocate([state], groups, parts)
    elif not scratch.fits(state, groups, parts):
        raise KernelError(
            f"scratch of {scratch.bytes} bytes is too small for {batch} rows of {heads} heads with {state.widest} slots and "
            f"{groups} queries each, or on another device: expected KVScratch.allocate([state], {groups})"
        )
    if parts is None:
        parts = splits(batch, heads, state.widest)
    query, key, value = (t if t.stride(2) == 1 else t.contiguous() for t in (query, key, value))
    out = torch.empty(batch, groups * heads, state.values.shape[2], dtype=query.dtype, device=query.device)
    constants = launch_options(state, groups, rule=rule, group=group, upcast=not query.is_cuda)
    width = state.widest if width is None else min(max(width, 1), state.widest)
    stride = logits_stride(state)
    by_head, real_stride = False, 0
    if real is not None:
        by_head = real.dim() == 2 and real.shape[1] > 1
        real = real.contiguous() if by_head else real
        real_stride = real.stride(0)
    slots = state.keys.shape[1]
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        kv_decode_kernel[(batch * heads, parts)](
            query,
            key,
            value,
            real,
            out,
            state.keys,
            state.values,
            state.positions,
            state.importance,
            state.value_norms,
            state.evicted,
            state.queue,
            state.cursor,
            state.lengths,
            state.first,
            state.sizes,
            scratch.partials,
            scratch.extremes,
            scratch.logits,
            scratch.counters,
            *query.stride()[:2],
            *key.stride()[:2],
            *value.stride()[:2],
            real_stride,
            slots,
            stride,
            width,
            scale,
            decay,
            REAL_BY_HEAD=by_head,
            SPLITS=parts,
            FUSED=fused,
            **constants,
        )
        if not fused:
            shared = ("HEADS", "GROUPS", "E", "QUEUE", "RULE", "MEAN", "BLOCK_E", "ROWS", "BLOCK_I")
            kv_combine_kernel[(batch * heads,)](
                real,
                out,
                state.importance,
                state.queue,
                state.cursor,
                state.lengths,
                state.first,
                state.sizes,
                scratch.partials,
                scratch.extremes,
                scratch.logits,
                real_stride,
                slots,
                stride,
                width,
                decay,
                REAL_BY_HEAD=by_head,
                SPLITS=parts,
                **{name: constants[name] for name in shared},
                num_warps=4,
            )
    return out


def _has_kernel(query: torch.Tensor, state: SlotState) -> bool:
    """Whether the kernel computes this step; otherwise the reference does, on any device."""
    groups = query.shape[1] // len(state.capacities)
    return (
        has_triton()
        and query.dtype == state.keys.dtype
        and query.dtype in DTYPES
        and groups <= MOST_ROWS
        and max(state.keys.shape[2], state.values.shape[2]) <= MOST_SIZE
        and state.contiguous
    )


def _rules() -> dict[Rule, int]:
    from budgetctl.kernels.kv_combine_triton import RULES

    return RULES


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: SlotState,
    rule: Rule,
    group: Group,
    real: torch.Tensor | None,
    launches: int,
) -> None:
    kv_reference.check_step(query, key, value, state)
    device = state.keys.device
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != state.keys.dtype or tensor.device != device:
            raise KernelError(
                f"{name} is {tensor.dtype} on {tensor.device}: expected {state.keys.dtype} on {device}, as the slots are"
            )
    if query.device != device or not query.is_floating_point():
        raise KernelError(
            f"query is {query.dtype} on {query.device}: expected floating point on {device}, as the slots are"
        )
    shapes = [(len(query),), (len(query), 1), tuple(state.cursor.shape)]
    if real is not None and (
        tuple(real.shape) not in shapes or real.dtype != torch.bool or real.device != device
    ):
        raise KernelError(
            f"real is {real.dtype} of shape {tuple(real.shape)} on {real.device}: expected bool of {list(shapes[0])}, one a "
            f"row, or {list(shapes[2])}, one a head, on {device}"
        )
    if rule not in get_args(Rule) or group not in get_args(Group):
        raise KernelError(
            f"rule={rule!r}, group={group!r}: expected one of {', '.join(get_args(Rule))}, and of {', '.join(get_args(Group))}"
        )
    if launches not in (1, 2):
        raise KernelError(f"launches={launches}: expected 1, or 2 for a second one that combines the splits")
