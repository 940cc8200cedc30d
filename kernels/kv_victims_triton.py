"""The victims of every head of every layer in one launch.

Grid (layers B H,): a program has one head. The layers' tensors are allocations of their own; where they are stands in a
table of addresses, a row a layer (:class:`~budgetctl.kernels.kv_victims.VictimTable`).

What goes first is a matter of one number: a slot's score, as an integer of the same order, in the upper half of an int64,
and its age in the lower. No two slots of a head have the same number, so that the next victim is the smallest number
above the last victim's, and the one thread that holds it writes the slot down. The order is that of
:func:`budgetctl.kernels.kv_reference.standing`. Heads of up to ``BLOCK`` slots are ranked once and stay in registers;
of wider ones the numbers are made again for every victim.

Programs share nothing that is written: a head's queue and cursor are written by its own program alone.
"""

# Triton reads the annotations of a kernel; only its compile-time constants have one.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl

from budgetctl.kernels.kv_victims import COLUMNS

_IMPORTANCE, _NORMS, _POSITIONS, _QUEUE, _CURSOR, _LENGTHS, _PROMPTS, _ANSWERS, _FIRST, _SIZES, _, _SLOTS = (
    tl.constexpr(i) for i in range(len(COLUMNS))
)
_WIDTH = tl.constexpr(len(COLUMNS))
_TINY, _MOST = tl.constexpr(torch.finfo(torch.float32).tiny), tl.constexpr(torch.finfo(torch.float32).max)
_INFINITY = tl.constexpr(float("inf"))
_LAST = tl.constexpr(torch.iinfo(torch.int64).max)
_LATEST = tl.constexpr(torch.iinfo(torch.int32).max)
_ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _means(importance, norms, positions, base, count, prior, BLOCK: tl.constexpr):
    """``(floor, usual)``: ``prior`` times the mean importance of the head's tokens, and the mean norm of their values."""
    c = tl.arange(0, BLOCK)
    mass, norm = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    tokens = tl.zeros((BLOCK,), tl.int32)
    for block in range(0, count, BLOCK):
        inside = block + c < count
        held = tl.load(positions + base + block + c, mask=inside, other=-1) >= 0
        mass += tl.load(importance + base + block + c, mask=held, other=0.0)
        norm += tl.load(norms + base + block + c, mask=held, other=0.0)
        tokens += held.to(tl.int32)
    all_tokens = tl.maximum(tl.sum(tokens, axis=0), 1).to(tl.float32)
    floor = tl.div_rn(tl.cast(prior, tl.float32) * tl.sum(mass, axis=0), all_tokens)
    usual = tl.div_rn(tl.sum(norm, axis=0), all_tokens)
    return floor, tl.maximum(usual, _TINY, propagate_nan=_ALL)


@triton.jit
def _numbers(
    importance,
    norms,
    positions,
    scores,
    base,
    c,
    count,
    floor,
    usual,
    prompt,
    late,
    GUARDED: tl.constexpr,
):
    """The numbers int64 of columns ``c``, the lowest of which goes first."""
    inside = c < count
    position = tl.load(positions + base + c, mask=inside, other=0)
    if scores is not None:
        score = tl.load(scores + c, mask=inside, other=0.0)
    else:
        held = inside & (position >= 0)
        score = tl.load(importance + base + c, mask=held, other=0.0)
        if GUARDED:
            norm = tl.load(norms + base + c, mask=held, other=0.0)
            score = tl.div_rn(tl.maximum(score, floor, propagate_nan=_ALL) * norm, usual)
    # NaN is no number and takes the other side of each comparison.
    score = tl.where(score < _MOST, tl.where(score > -_MOST, score, -_MOST), _MOST)
    score = tl.where(score == 0.0, 0.0, score)  # not -0
    score = tl.where((position < prompt) | (position >= late), _INFINITY, score)
    score = tl.where(position < 0, -_INFINITY, score)
    score = tl.where(inside, score, _INFINITY)
    age = tl.where(position < 0, c, position)
    age = tl.where(inside, age, _LATEST - c)
    bits = score.to(tl.int32, bitcast=True)
    # Of negative numbers the larger bits are the lower number.
    ordered = tl.where(bits < 0, bits ^ _LATEST, bits)
    return (ordered.to(tl.int64) << 32) | age.to(tl.int64)


@triton.jit(do_not_specialize=["pairs", "width", "sinks", "recent"])
def kv_victims_kernel(
    table,
    scores,
    scores_layer_stride,
    scores_row_stride,
    scores_head_stride,
    pairs,
    width,
    sinks,
    recent,
    prompt_share,
    prior,
    HEADS: tl.constexpr,
    QUEUE: tl.constexpr,
    COUNT: tl.constexpr,
    GUARDED: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """``table`` [layers, len(COLUMNS)] int64; ``scores`` [layers, B, H, w] float32 or None; ``pairs`` is B H.

    Names ``COUNT`` victims in the last entries of each queue and sets the cursor to the first of them. ``WHOLE``: no
    head has more than ``BLOCK`` columns.
    """
    program = tl.program_id(0)
    layer = program // pairs
    pair = program % pairs
    row = (pair // HEADS).to(tl.int64)
    head = pair % HEADS
    entry = table + layer * _WIDTH
    importance = tl.load(entry + _IMPORTANCE).to(tl.pointer_type(tl.float32))
    norms = tl.load(entry + _NORMS).to(tl.pointer_type(tl.float32))
    positions = tl.load(entry + _POSITIONS).to(tl.pointer_type(tl.int32))
    queue = tl.load(entry + _QUEUE).to(tl.pointer_type(tl.int32))
    cursor = tl.load(entry + _CURSOR).to(tl.pointer_type(tl.int32))
    lengths = tl.load(entry + _LENGTHS).to(tl.pointer_type(tl.int32))
    prompts = tl.load(entry + _PROMPTS).to(tl.pointer_type(tl.int32))
    answers = tl.load(entry + _ANSWERS).to(tl.pointer_type(tl.int32))
    first = tl.load(entry + _FIRST).to(tl.pointer_type(tl.int64))
    sizes = tl.load(entry + _SIZES).to(tl.pointer_type(tl.int64))

    start = tl.load(first + head)
    size = tl.load(sizes + head).to(tl.int32)
    count = tl.minimum(size, width)
    base = row * tl.load(entry + _SLOTS) + start
    prompt = tl.load(prompts + pair)
    prompt = tl.where(
        prompt.to(tl.float32) <= size.to(tl.float32) * tl.cast(prompt_share, tl.float32), prompt, 0
    )
    prompt = tl.maximum(prompt, sinks)
    late = tl.minimum(tl.load(lengths + pair) - recent, tl.load(answers + pair))
    if scores is not None:
        scores += (
            layer.to(tl.int64) * scores_layer_stride + row * scores_row_stride + head * scores_head_stride
        )
    floor, usual = 0.0, 1.0
    if GUARDED:
        floor, usual = _means(importance, norms, positions, base, count, prior, BLOCK)

    n = tl.arange(0, BLOCK)
    at = queue + pair.to(tl.int64) * QUEUE + (QUEUE - COUNT)
    victim = tl.full((), -_LAST, tl.int64)
    if WHOLE:
        numbers = _numbers(
            importance, norms, positions, scores, base, n, count, floor, usual, prompt, late, GUARDED
        )
        for i in range(COUNT):
            victim = tl.min(tl.where(numbers > victim, numbers, _LAST), axis=0)
            tl.store(at + i + tl.zeros_like(n), (start + n).to(tl.int32), mask=numbers == victim)
    else:
        for i in range(COUNT):
            least = tl.full((BLOCK,), _LAST, tl.int64)
            column = n
            for block in range(0, count, BLOCK):
                numbers = _numbers(
                    importance,
                    norms,
                    positions,
                    scores,
                    base,
                    block + n,
                    count,
                    floor,
                    usual,
                    prompt,
                    late,
                    GUARDED,
                )
                lower = (numbers > victim) & (numbers < least)
                least = tl.where(lower, numbers, least)
                column = tl.where(lower, block + n, column)
            victim = tl.min(least, axis=0)
            tl.store(at + i + tl.zeros_like(n), (start + column).to(tl.int32), mask=least == victim)
    tl.store(cursor + pair, QUEUE - COUNT)
