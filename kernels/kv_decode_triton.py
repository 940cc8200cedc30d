"""The decode kernel: one token a row enters its slot, attends over all slots, and importance follows, in one launch.

Grid (B H, splits). Each program takes one split of one head's slots (flash-decoding) and publishes a partial sum, its
largest logit, and the logits themselves (log2, float32) in scratch memory. The last of a head's programs to arrive has
them all: it combines the partial sums in the order of the splits, so that the result does not depend on who is last, and
reads the logits again for the attention mass of each key, which needs the sum over all splits.

What keeps programs apart: the program whose split holds the new token's slot alone writes that slot, and attends to the
new token from registers; no program reads the slot's old key, value or importance for attention. ``cursor`` and
``lengths`` are advanced by the last program, when all have read them. Stores before the atomic counter are released by
it (a barrier gathers those of the program's threads), loads after it go past the first-level cache. The counter is at 0
again when the launch ends.

As two launches, :func:`kv_decode_kernel` publishes only, and :func:`~budgetctl.kernels.kv_combine_triton.kv_combine_kernel` does what the last program does.
"""

# Triton reads the annotations of a kernel; only its compile-time constants have one.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import math

import triton
import triton.language as tl

from budgetctl.kernels.kv_combine_triton import EMPTY, NONE, START, TINY, finish, reach

_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit(do_not_specialize=["width"])
def kv_decode_kernel(
    query,
    key,
    value,
    real,
    out,
    keys,
    values,
    positions,
    importance,
    value_norms,
    evicted,
    queue,
    cursor,
    lengths,
    first,
    sizes,
    partials,
    extremes,
    logits,
    counters,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    real_stride,
    slots_stride,
    logits_stride,
    width,
    scale,
    decay,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    QUEUE: tl.constexpr,
    REAL_BY_HEAD: tl.constexpr,
    SPLITS: tl.constexpr,
    RULE: tl.constexpr,
    MEAN: tl.constexpr,
    FUSED: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Arguments as :func:`budgetctl.kernels.kv_decode.decode_step` has them; strides in elements, of rows and of heads.

    ``slots_stride`` is S. ``real``, ``value_norms`` and ``evicted`` may be None. ``UPCAST`` computes products in float32,
    for the interpreter, which knows no bfloat16.
    """
    pair = tl.program_id(0)
    split = tl.program_id(1)
    row = (pair // HEADS).to(tl.int64)
    head = pair % HEADS
    start, count, slots, column, taken = reach(first, sizes, queue, cursor, pair, head, width, QUEUE)
    base = row * slots_stride + start
    length = tl.load(lengths + pair)
    is_real = 1
    if real is not None:
        is_real = tl.load(real + (pair if REAL_BY_HEAD else row * real_stride)).to(tl.int32)

    blocks = tl.cdiv(tl.cdiv(count, BLOCK_N), SPLITS)
    low = split * (blocks * BLOCK_N)
    high = tl.minimum(low + blocks * BLOCK_N, count)
    # Only the split that holds the slot has anything of the new token; 0 elements elsewhere.
    inside = (column >= 0) & (column < slots)
    owner = inside & (tl.minimum(column // (blocks * BLOCK_N), SPLITS - 1) == split)
    enters = tl.where(owner, is_real, 0)

    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    grouped = g < GROUPS
    at_query = query + row * query_stride + (head * GROUPS + g)[:, None] * query_head_stride + d[None, :]
    q = tl.load(at_query, mask=grouped[:, None] & (d < D)[None, :], other=0.0)
    new_key = tl.load(
        key + row * key_stride + head * key_head_stride + d, mask=d < tl.where(owner, D, 0), other=0.0
    )
    new_value = tl.load(
        value + row * value_stride + head * value_head_stride + e, mask=e < tl.where(owner, E, 0), other=0.0
    )
    wide_key, wide_value = new_key.to(tl.float32), new_value.to(tl.float32)
    if UPCAST:
        q = q.to(tl.float32)

    to_log2 = tl.cast(scale, tl.float32) * _LOG2_E
    new_logit = tl.sum(q.to(tl.float32) * wide_key[None, :], axis=1) * to_log2
    new_logit = tl.where(enters != 0, new_logit, EMPTY)
    highest = tl.maximum(new_logit, START)
    summed = tl.exp2(new_logit - highest)
    output = summed[:, None] * wide_value[None, :]
    at_logits = logits + (pair.to(tl.int64) * GROUPS + g)[:, None] * logits_stride

    for block in range(low, high, BLOCK_N):
        c = block + n
        # Whatever is in the new token's slot is not read.
        old = (c < high) & (c != column)
        at = base + c
        held = tl.load(positions + at, mask=old, other=-1) >= 0
        mask = old[None, :]
        if D != BLOCK_D:
            mask = mask & (d < D)[:, None]
        k = tl.load(keys + at[None, :] * D + d[:, None], mask=mask, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
        logit = tl.dot(q, k, input_precision="ieee") * to_log2
        logit = tl.where(held[None, :], logit, EMPTY)
        if RULE != NONE:
            tl.store(at_logits + c[None, :], logit, mask=grouped[:, None] & old[None, :])
        higher = tl.maximum(highest, tl.max(logit, axis=1))
        weights = tl.exp2(logit - higher[:, None])
        fading = tl.exp2(highest - higher)
        summed = summed * fading + tl.sum(weights, axis=1)
        mask = old[:, None]
        if E != BLOCK_E:
            mask = mask & (e < E)[None, :]
        v = tl.load(values + at[:, None] * E + e[None, :], mask=mask, other=0.0)
        weights = weights.to(v.dtype)
        if UPCAST:
            weights, v = weights.to(tl.float32), v.to(tl.float32)
        output = tl.dot(weights, v, output * fading[:, None], input_precision="ieee")
        highest = higher

    if owner:
        at = base + column
        if evicted is not None:
            lost = tl.where(tl.load(positions + at) >= 0, tl.load(importance + at), 0.0)
            lost += tl.load(evicted + pair)
            tl.debug_barrier()
            tl.store(evicted + pair, lost)
        tl.store(keys + at * D + d, new_key, mask=d < D)
        tl.store(values + at * E + e, new_value, mask=e < E)
        tl.store(positions + at, tl.where(is_real != 0, length, -1))
        tl.store(importance + at, 0.0)
        if value_norms is not None:
            tl.store(value_norms + at, tl.sum(tl.abs(wide_value), axis=0))
        if RULE != NONE:
            tl.store(
                logits + (pair.to(tl.int64) * GROUPS + g) * logits_stride + column, new_logit, mask=grouped
            )

    part = pair.to(tl.int64) * SPLITS + split
    at_extremes = extremes + part * (2 * GROUPS) + g
    tl.store(at_extremes, highest, mask=grouped)
    tl.store(at_extremes + GROUPS, summed, mask=grouped)
    alone: tl.constexpr = SPLITS == 1 and FUSED
    written = grouped[:, None] & (e < E)[None, :]
    if alone:
        result = output / tl.maximum(summed, TINY)[:, None]
        at_out = out + (pair.to(tl.int64) * GROUPS + g)[:, None] * E + e[None, :]
        tl.store(at_out, result.to(out.dtype.element_ty), mask=written)
    else:
        tl.store(partials + (part * GROUPS + g)[:, None] * E + e[None, :], output, mask=written)

    if FUSED:
        # All threads of the program have stored before one of them counts it.
        tl.debug_barrier()
        arrived = 0
        if SPLITS > 1:
            arrived = tl.atomic_add(counters + pair, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLITS - 1:
            finish(
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
                SPLITS > 1,
            )
            if SPLITS > 1:
                tl.store(counters + pair, 0)
