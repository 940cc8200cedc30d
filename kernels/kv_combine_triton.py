"""What is left of a decode step when all splits of a head have been published: output and importance.

:func:`finish` is inlined by the decode kernel, whose last program of a head runs it, and is a launch of its own as
:func:`kv_combine_kernel`; see :mod:`budgetctl.kernels.kv_decode_triton`.
"""

# Triton reads the annotations of a kernel; only its compile-time constants have one.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from budgetctl.kernels.kv_state import Rule

#: Rules of importance as the kernel knows them.
RULES: dict[Rule, int] = {"none": 0, "max": 1, "sum": 2}
NONE, _MAX = tl.constexpr(RULES["none"]), tl.constexpr(RULES["max"])
# Logit of an empty slot, and the largest logit before any: an empty slot weighs exp2(EMPTY - START) = 0 even where
# there is nothing else, and no difference of the two is NaN.
EMPTY, START = tl.constexpr(-1e30), tl.constexpr(-5e29)
# A sum of weights is at least 1 where there is any token. (Triton takes what float32 has no normal number for as float64.)
TINY = tl.constexpr(1e-30)


@triton.jit
def reach(first, sizes, queue, cursor, pair, head, width, QUEUE: tl.constexpr):
    """``(start, count, slots, column, taken)``: the head's first slot, columns in use, slots, the new token's column,
    and entries of the queue that were taken before."""
    start = tl.load(first + head).to(tl.int32)
    slots = tl.load(sizes + head).to(tl.int32)
    taken = tl.load(cursor + pair)
    # A queue that is spent gives its last slot again rather than what lies behind it.
    slot = tl.load(queue + pair.to(tl.int64) * QUEUE + tl.minimum(taken, QUEUE - 1))
    return start, tl.minimum(slots, width), slots, slot - start, taken


@triton.jit
def finish(
    out,
    importance,
    partials,
    extremes,
    logits,
    cursor,
    lengths,
    pair,
    base,
    count,
    column,
    taken,
    length,
    real,
    logits_stride,
    decay,
    GROUPS: tl.constexpr,
    E: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_I: tl.constexpr,
    RULE: tl.constexpr,
    MEAN: tl.constexpr,
    COMBINE: tl.constexpr,
):
    """What is left when every split of a head has been published; ``COMBINE`` writes the output too."""
    r = tl.arange(0, ROWS)
    mine = r < GROUPS
    at_extremes = extremes + pair.to(tl.int64) * (SPLITS * 2 * GROUPS) + r
    top = tl.full((ROWS,), START, tl.float32)
    for s in tl.static_range(SPLITS):
        highest = tl.load(at_extremes + s * 2 * GROUPS, mask=mine, other=START, cache_modifier=".cg")
        top = tl.maximum(top, highest)
    total = tl.zeros((ROWS,), tl.float32)
    output = tl.zeros((ROWS, BLOCK_E), tl.float32)
    e = tl.arange(0, BLOCK_E)
    inside = mine[:, None] & (e < E)[None, :]
    at_partials = partials + (pair.to(tl.int64) * SPLITS * GROUPS + r)[:, None] * E + e[None, :]
    for s in tl.static_range(SPLITS):
        highest = tl.load(at_extremes + s * 2 * GROUPS, mask=mine, other=START, cache_modifier=".cg")
        summed = tl.load(at_extremes + (s * 2 + 1) * GROUPS, mask=mine, other=0.0, cache_modifier=".cg")
        weight = tl.exp2(highest - top)
        total += weight * summed
        if COMBINE:
            part = tl.load(at_partials + s * GROUPS * E, mask=inside, other=0.0, cache_modifier=".cg")
            output += weight[:, None] * part
    # A row without any token has no weight at all.
    total = tl.maximum(total, TINY)
    if COMBINE:
        result = output / total[:, None]
        at_out = out + (pair.to(tl.int64) * GROUPS + r)[:, None] * E + e[None, :]
        tl.store(at_out, result.to(out.dtype.element_ty), mask=inside)

    if RULE != NONE:
        sum_of_all = top + tl.log2(total)
        at_logits = logits + (pair.to(tl.int64) * GROUPS + r)[:, None] * logits_stride
        for block in range(0, count, BLOCK_I):
            c = block + tl.arange(0, BLOCK_I)
            known = c < count
            logit = tl.load(
                at_logits + c[None, :],
                mask=mine[:, None] & known[None, :],
                other=EMPTY,
                cache_modifier=".cg",
            )
            weights = tl.exp2(logit - sum_of_all[:, None])
            mass = tl.sum(weights, axis=0) / GROUPS if MEAN else tl.max(weights, axis=0)
            held = known & (tl.max(logit, axis=0) > START)
            before = tl.load(importance + base + c, mask=held & (c != column), other=0.0)
            before *= tl.cast(decay, tl.float32)
            after = tl.maximum(before, mass) if RULE == _MAX else before + mass
            tl.store(importance + base + c, after, mask=held)

    tl.store(cursor + pair, taken + 1)
    tl.store(lengths + pair, length + real)


@triton.jit(do_not_specialize=["width"])
def kv_combine_kernel(
    real,
    out,
    importance,
    queue,
    cursor,
    lengths,
    first,
    sizes,
    partials,
    extremes,
    logits,
    real_stride,
    slots_stride,
    logits_stride,
    width,
    decay,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    E: tl.constexpr,
    QUEUE: tl.constexpr,
    REAL_BY_HEAD: tl.constexpr,
    SPLITS: tl.constexpr,
    RULE: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Second of two launches, grid (B H,)."""
    pair = tl.program_id(0)
    row = (pair // HEADS).to(tl.int64)
    head = pair % HEADS
    start, count, _, column, taken = reach(first, sizes, queue, cursor, pair, head, width, QUEUE)
    length = tl.load(lengths + pair)
    is_real = 1
    if real is not None:
        is_real = tl.load(real + (pair if REAL_BY_HEAD else row * real_stride)).to(tl.int32)
    finish(
        out,
        importance,
        partials,
        extremes,
        logits,
        cursor,
        lengths,
        pair,
        row * slots_stride + start,
        count,
        column,
        taken,
        length,
        is_real,
        logits_stride,
        decay,
        GROUPS,
        E,
        SPLITS,
        ROWS,
        BLOCK_E,
        BLOCK_I,
        RULE,
        MEAN,
        True,
    )
