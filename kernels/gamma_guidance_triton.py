"""The guidance kernel: head, log P, push and the logits it changes, in one launch.

One program a row and part of the vocabulary. Programs do not wait for each other: each evaluates the row's candidates
by itself (64 candidates and the state are 65 of 128 lanes, one a thread) and writes the logits of its own part. Nothing
that a program reads is written by another, because the candidates' scores come in a tensor of their own; within a
program barriers part reading, writing the rest and writing the candidates.
"""

# Triton reads the annotations of a kernel; only its compile-time constants have one.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import math

import triton
import triton.language as tl

from budgetctl.kernels import reference
from budgetctl.kernels.log_gamma_cdf_triton import log1p, log_gamma_cdf
from budgetctl.kernels.row_state import (
    ACTION,
    CLOSING,
    FORCED,
    LEFT,
    LOWER,
    STRENGTH,
    TEMPERATURE,
    Action,
)

_ACTION, _LEFT, _LOWER = tl.constexpr(ACTION), tl.constexpr(LEFT), tl.constexpr(LOWER)
_TEMPERATURE, _STRENGTH = tl.constexpr(TEMPERATURE), tl.constexpr(STRENGTH)
_FORCED, _CLOSING = tl.constexpr(FORCED), tl.constexpr(CLOSING)
_EVALUATE, _GUIDE, _FORCE = (tl.constexpr(int(a)) for a in (Action.EVALUATE, Action.GUIDE, Action.FORCE))
_LOG_LIKELY = tl.constexpr(math.log(reference.LIKELY_SHARE))
_LOG_CLOSE = tl.constexpr(math.log(reference.CLOSE_SHARE))
_HOPELESS = tl.constexpr(-math.log(reference.HOPELESS_FIT))
_LEAST_GAP = tl.constexpr(reference.LEAST_GAP)
_MOST_HALF_PUSH = tl.constexpr(reference.MOST_HALF_PUSH)


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _log1m_exp(x):
    """log(1 - exp(x)) for x < 0."""
    small = tl.maximum(x, -0.25)
    series = small * (1.0 + small / 2 * (1.0 + small / 3 * (1.0 + small / 4 * (1.0 + small / 5))))
    return tl.log(tl.where(x > -0.25, -series, 1.0 - tl.exp(x)))


@triton.jit
def _number(row, column):
    """A column of the row's state, float32 scalar."""
    return tl.load(row + column).to(tl.float32)


@triton.jit
def _log_bound(row, column):
    """log(1 + L) of the longest thought that fits into the tokens of a column, its close counted."""
    return tl.log(tl.maximum(_number(row, column), 0.0) + 2.0)


@triton.jit
def _parameters(
    features,
    weight,
    bias,
    table,
    tokens,
    known,
    floor,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Concentration and rate [lanes]: of the candidates where ``known``, of the state elsewhere."""
    w = tl.arange(0, BLOCK_W)
    p = tl.load(features + w, mask=w < WIDTH, other=0.0).to(tl.float32)
    trunk = p / (1.0 + tl.exp(-p))
    weight_a = tl.load(weight + w, mask=w < WIDTH, other=0.0).to(tl.float32)
    weight_r = tl.load(weight + WIDTH + w, mask=w < WIDTH, other=0.0).to(tl.float32)
    state_a = tl.sum(trunk * weight_a, axis=0) + tl.load(bias).to(tl.float32)
    state_r = tl.sum(trunk * weight_r, axis=0) + tl.load(bias + 1).to(tl.float32)
    # One lane a thread from here on: a two-dimensional load and sum would leave several lanes in each.
    raw_a, raw_r = tokens * 0.0 + state_a, tokens * 0.0 + state_r
    entry = table + tokens.to(tl.int64) * RANK
    for i in tl.static_range(RANK):
        value = tl.load(entry + i, mask=known, other=0.0).to(tl.float32)
        raw_a += value * tl.load(features + WIDTH + i).to(tl.float32)
        raw_r += value * tl.load(features + WIDTH + RANK + i).to(tl.float32)
    return _softplus(raw_a) + floor, _softplus(raw_r) + floor


@triton.jit
def gamma_guidance_kernel(
    logits,
    out,
    features,
    weight,
    bias,
    table,
    scores,
    ids,
    rows,
    state_fit,
    logits_stride,
    out_stride,
    features_stride,
    scores_stride,
    ids_stride,
    rows_stride,
    floor,
    VOCAB: tl.constexpr,
    K: tl.constexpr,
    CLOSES: tl.constexpr,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    INTERVAL: tl.constexpr,
    EXACT: tl.constexpr,
    IN_PLACE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Arguments as :func:`budgetctl.kernels.gamma_guidance.gamma_guidance` has them; strides of rows in elements.

    Grid (B, parts); a part is BLOCKS blocks of BLOCK_V tokens. LANES > K, the state is lane K.
    """
    index = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    logits += index * logits_stride
    out += index * out_stride
    row = rows + index * rows_stride
    first = part * (BLOCKS * BLOCK_V)
    stop = first + BLOCKS * BLOCK_V
    at = tl.arange(0, BLOCK_V)
    # torch.compile passes a Python number as float64, Triton itself as float32.
    floor = tl.cast(floor, tl.float32)
    action = tl.load(row + _ACTION).to(tl.int32)
    guided = action == _GUIDE
    evaluated = guided | ((action == _EVALUATE) & (part == 0))
    rest = 0.0
    state = 0.0
    lane = tl.arange(0, LANES)
    push = lane * 0.0
    # Scalar conditions select bounds; masks compare with them (the interpreter cannot join a scalar and a mask).
    known = lane < tl.where(evaluated, K, 0)
    token = tl.load(ids + index * ids_stride + lane, mask=known, other=-1).to(tl.int32)

    if evaluated:
        a, rate = _parameters(
            features + index * features_stride,
            weight,
            bias,
            table,
            token,
            known,
            floor,
            WIDTH,
            RANK,
            BLOCK_W,
        )
        fit = log_gamma_cdf(a, rate * _log_bound(row, _LEFT))
        if INTERVAL:
            short = log_gamma_cdf(a, rate * _log_bound(row, _LOWER))
            between = fit + _log1m_exp(tl.minimum(short - fit, -_LEAST_GAP))
            fit = tl.where(_number(row, _LOWER) >= 0.0, between, fit)
        state = tl.sum(tl.where(lane == K, fit, 0.0), axis=0)

        temperature = _number(row, _TEMPERATURE)
        score = tl.load(scores + index * scores_stride + lane, mask=known, other=-float("inf"))
        score = score.to(tl.float32) / temperature
        closing = lane < 0
        for i in tl.static_range(CLOSES):
            closing = closing | (token == tl.load(row + _CLOSING + i).to(tl.int32))
        other = tl.where(closing, -float("inf"), score)
        highest = tl.max(other, axis=0)
        likely = (other >= highest + _LOG_LIKELY) & (other > -float("inf"))
        best = tl.max(tl.where(likely, fit, -float("inf")), axis=0)
        best = tl.where(best > -float("inf"), best, state)
        close = tl.max(tl.where(closing, score, -float("inf")), axis=0)
        best = tl.where(close >= highest + _LOG_CLOSE, 0.0, best)
        scale = temperature * _number(row, _STRENGTH) * _HOPELESS / tl.maximum(-best, _HOPELESS)
        push = (fit - best) * scale
        # The close keeps its logit wherever it stands in the ranking; it is written as such below.
        token = tl.where(closing, -1, token)
        rest = tl.minimum(state - best, 0.0) * scale
        if out.dtype.element_ty == tl.float16:
            push = tl.minimum(tl.maximum(push, -_MOST_HALF_PUSH), _MOST_HALF_PUSH)
            rest = tl.maximum(rest, -_MOST_HALF_PUSH)

    if part == 0:
        tl.store(state_fit + index, state)

    if action == _FORCE:
        forced = tl.load(row + _FORCED).to(tl.int32)
        for block in range(BLOCKS):
            v = first + block * BLOCK_V + at
            value = tl.where(v == forced, 0.0, -float("inf"))
            tl.store(out + v, value.to(out.dtype.element_ty), mask=v < VOCAB)
    else:
        stop = tl.where(guided, stop, 0)
        mine = (token >= first) & (token < stop)
        number = tl.arange(0, BLOCK_C)
        end = tl.load(row + _CLOSING + number, mask=number < CLOSES, other=-1).to(tl.int32)
        ends_here = (end >= first) & (end < stop)
        before = tl.load(logits + token, mask=mine, other=0.0).to(tl.float32)
        end_before = tl.load(logits + end, mask=ends_here, other=0.0).to(tl.float32)
        if EXACT:
            if guided | (not IN_PLACE):
                tl.debug_barrier()
                for block in range(BLOCKS):
                    v = first + block * BLOCK_V + at
                    value = tl.load(logits + v, mask=v < VOCAB, other=0.0).to(tl.float32)
                    # Selected, not added as zero: a negative zero stays one.
                    value = tl.where(guided, value + rest, value)
                    tl.store(out + v, value.to(out.dtype.element_ty), mask=v < VOCAB)
                tl.debug_barrier()
        else:
            push = push - rest
            end_before = end_before - rest
        tl.store(out + token, (before + push).to(out.dtype.element_ty), mask=mine)
        tl.store(out + end, end_before.to(out.dtype.element_ty), mask=ends_here)
