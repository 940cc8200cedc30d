"""Novelty of the keys of every head of every layer, and the score that the default policy makes of it.

The mean direction of a head's keys needs all of them before any can be compared with it. So there are two passes over the
keys, a launch each: :func:`kv_directions_kernel` sums the directions of one split of a head, :func:`kv_apart_kernel` adds
up the sums of all splits, in their order, and compares. Grid (layers B H, splits) for both; addresses come from the
:class:`~budgetctl.kernels.kv_victims.VictimTable`. :func:`kv_diverse_kernel`, grid (layers B H,), reads numbers a slot
only. No program reads what another of its launch writes.
"""

# Triton reads the annotations of a kernel; only its compile-time constants have one.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl

from budgetctl.kernels.kv_novelty import FLOOR, SHORTEST, SMALLEST
from budgetctl.kernels.kv_victims import COLUMNS

_IMPORTANCE, _NORMS, _POSITIONS, _LENGTHS, _FIRST, _SIZES, _SLOTS, _KEYS = (
    tl.constexpr(COLUMNS.index(name))
    for name in (
        "importance",
        "value_norms",
        "positions",
        "lengths",
        "first",
        "sizes",
        "slots",
        "keys",
    )
)
_WIDTH = tl.constexpr(len(COLUMNS))
_SHORTEST, _SMALLEST, _FLOOR = tl.constexpr(SHORTEST), tl.constexpr(SMALLEST), tl.constexpr(FLOOR)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _head(table, pairs, width, HEADS: tl.constexpr):
    """``(entry, base, count, size)`` of the program's head: its layer's line, first slot, columns in use, capacity."""
    program = tl.program_id(0)
    entry = table + (program // pairs) * _WIDTH
    pair = program % pairs
    head = pair % HEADS
    size = tl.load(tl.load(entry + _SIZES).to(tl.pointer_type(tl.int64)) + head).to(tl.int32)
    start = tl.load(tl.load(entry + _FIRST).to(tl.pointer_type(tl.int64)) + head)
    base = (pair // HEADS).to(tl.int64) * tl.load(entry + _SLOTS) + start
    return entry, base, tl.minimum(size, width), size


@triton.jit
def _keys_of(entry, table, anchor):
    """The layer's keys, as a place beside ``anchor``, the first layer's: of an address that is read from memory the compiler
    does not know that it is a multiple of 16 bytes, and loads each number by itself."""
    apart = tl.load(entry + _KEYS) - tl.load(table + _KEYS)
    return anchor + (apart // 16) * (16 // (anchor.dtype.element_ty.primitive_bitwidth // 8))


@triton.jit
def _split(count, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """``(low, high)`` columns of the program's split."""
    each = tl.cdiv(tl.cdiv(count, BLOCK_N), SPLITS) * BLOCK_N
    low = tl.program_id(1) * each
    return low, tl.minimum(low + each, count)


@triton.jit
def _directions(keys, base, c, count, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Keys of columns ``c`` [N, BLOCK_D] float32, and one over their norms [N]."""
    d = tl.arange(0, BLOCK_D)
    at = keys + (base + c)[:, None] * D + d[None, :]
    key = tl.load(at, mask=(c < count)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
    return key, 1.0 / tl.maximum(tl.sqrt_rn(tl.sum(key * key, axis=1)), _SHORTEST)


@triton.jit(do_not_specialize=["pairs", "width"])
def kv_directions_kernel(
    table,
    anchor,
    sums,
    pairs,
    width,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``table`` [layers, len(COLUMNS)] int64, ``anchor`` the first layer's keys; writes ``sums`` [layers, pairs, SPLITS, D] float32; ``pairs`` is B H."""
    entry, base, count, _ = _head(table, pairs, width, HEADS)
    keys = _keys_of(entry, table, anchor)
    positions = tl.load(entry + _POSITIONS).to(tl.pointer_type(tl.int32))
    low, high = _split(count, SPLITS, BLOCK_N)
    n, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for block in range(low, high, BLOCK_N):
        c = block + n
        key, shorter = _directions(keys, base, c, high, D, BLOCK_D)
        held = tl.load(positions + base + c, mask=c < high, other=-1) >= 0
        total += tl.sum(key * tl.where(held, shorter, 0.0)[:, None], axis=0)
    at = (tl.program_id(0) * SPLITS + tl.program_id(1)).to(tl.int64) * D
    tl.store(sums + at + d, total, mask=d < D)


@triton.jit(do_not_specialize=["pairs", "width"])
def kv_apart_kernel(
    table,
    anchor,
    sums,
    found,
    pairs,
    width,
    NORMS: tl.constexpr,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Writes ``found`` [layers, pairs, width] float32: 1 - cosine to the mean direction, times the value's norm if ``NORMS``."""
    entry, base, count, _ = _head(table, pairs, width, HEADS)
    keys = _keys_of(entry, table, anchor)
    norms = tl.load(entry + _NORMS).to(tl.pointer_type(tl.float32))
    low, high = _split(count, SPLITS, BLOCK_N)
    n, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    program = tl.program_id(0).to(tl.int64)
    mean = tl.zeros((BLOCK_D,), tl.float32)
    for i in range(SPLITS):
        mean += tl.load(sums + (program * SPLITS + i) * D + d, mask=d < D, other=0.0)
    mean = mean / tl.maximum(tl.sqrt_rn(tl.sum(mean * mean, axis=0)), _SHORTEST)
    for block in range(low, high, BLOCK_N):
        c = block + n
        key, shorter = _directions(keys, base, c, high, D, BLOCK_D)
        apart = 1.0 - tl.sum(key * mean[None, :], axis=1) * shorter
        if NORMS:
            apart *= tl.load(norms + base + c, mask=c < high, other=0.0)
        tl.store(found + program * width + c, apart, mask=c < high)


@triton.jit
def _or_one(mean):
    """A mean to divide by: 1 where there is nothing, or next to nothing, to divide."""
    return tl.where(mean > _TINY, mean, 1.0)


@triton.jit(do_not_specialize=["pairs", "width"])
def kv_diverse_kernel(table, found, pairs, width, weight, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Puts the score in the place of the novelty in ``found``; see :func:`budgetctl.kernels.kv_novelty.diverse`."""
    entry, base, count, size = _head(table, pairs, width, HEADS)
    importance = tl.load(entry + _IMPORTANCE).to(tl.pointer_type(tl.float32)) + base
    norms = tl.load(entry + _NORMS).to(tl.pointer_type(tl.float32)) + base
    positions = tl.load(entry + _POSITIONS).to(tl.pointer_type(tl.int32)) + base
    lengths = tl.load(entry + _LENGTHS).to(tl.pointer_type(tl.int32))
    found += tl.program_id(0).to(tl.int64) * width
    n = tl.arange(0, BLOCK)
    mass, norm, apart = (
        tl.zeros((BLOCK,), tl.float32),
        tl.zeros((BLOCK,), tl.float32),
        tl.zeros((BLOCK,), tl.float32),
    )
    tokens = tl.zeros((BLOCK,), tl.int32)
    for block in range(0, count, BLOCK):
        c = block + n
        held = tl.load(positions + c, mask=c < count, other=-1) >= 0
        mass += tl.load(importance + c, mask=held, other=0.0)
        norm += tl.load(norms + c, mask=held, other=0.0)
        apart += tl.load(found + c, mask=held, other=0.0)
        tokens += held.to(tl.int32)
    number = tl.maximum(tl.sum(tokens, axis=0), 1).to(tl.float32)
    usual_mass = _or_one(tl.sum(mass, axis=0) / number)
    usual_norm = _or_one(tl.sum(norm, axis=0) / number)
    usual_apart = _or_one(tl.sum(apart, axis=0) / number)
    on_small = tl.zeros((BLOCK,), tl.float32)
    for block in range(0, count, BLOCK):
        c = block + n
        held = tl.load(positions + c, mask=c < count, other=-1) >= 0
        i = tl.load(importance + c, mask=held, other=0.0) / usual_mass
        on_small += i / tl.maximum(tl.load(norms + c, mask=held, other=1.0) / usual_norm, _SMALLEST)
    parked = tl.maximum(tl.sum(on_small, axis=0) / number, 1.0)
    fourth = parked * parked * parked * parked
    eighth = fourth * fourth
    length = tl.maximum(tl.load(lengths + tl.program_id(0) % pairs), 1).to(tl.float32)
    kept = tl.minimum(size.to(tl.float32) / length, 1.0)
    factor = tl.cast(weight, tl.float32) * kept * (1.0 / eighth / eighth / fourth + _FLOOR) / usual_apart
    for block in range(0, count, BLOCK):
        c = block + n
        i, u = (
            tl.load(importance + c, mask=c < count, other=0.0),
            tl.load(found + c, mask=c < count, other=0.0),
        )
        tl.store(found + c, i / usual_mass + factor * u, mask=c < count)
