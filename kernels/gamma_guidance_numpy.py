"""Guidance of a small batch on the CPU, in NumPy on the tensors' own memory.

A step of few rows is bound by the number of operations, not by what is in them, and an operation on a small array
costs NumPy a half to a third of what it costs PyTorch. What is computed is that of ``reference``, in float64 from the
head's output on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.special import gammainc

from budgetctl.kernels.host_reads import may_look
from budgetctl.kernels.log_gamma_cdf import log_gamma_cdf
from budgetctl.kernels.reference import CLOSE_SHARE, HOPELESS_FIT, LIKELY_SHARE, interval_fit
from budgetctl.kernels.row_state import (
    ACTION,
    CLOSING,
    FORCED,
    LEFT,
    LOWER,
    STRENGTH,
    TEMPERATURE,
    Action,
    GuidanceHead,
)

Array = np.ndarray[Any, Any]

#: Most candidates of all rows together; beyond, PyTorch has more to compute than to call, and may use several threads.
MOST_CANDIDATES = 8192
#: Logits that NumPy adds to; beyond, PyTorch uses its threads.
MOST_LOGITS = 1 << 15
DTYPES = frozenset({torch.float32, torch.float64})
#: Below this the incomplete gamma function is too near the smallest numbers for its logarithm to be taken.
LEAST_PROBABILITY = 1e-280
#: Numbers of which one slow operation costs less than four fast ones.
FEW_NUMBERS = 1024
#: Where log(1 + e^x) is x.
SOFTPLUS_IS_X = 40.0

_LIKELY, _CLOSE, _HOPELESS = math.log(LIKELY_SHARE), math.log(CLOSE_SHARE), -math.log(HOPELESS_FIT)
_LEAVE, _GUIDE, _FORCE = int(Action.LEAVE), int(Action.GUIDE), int(Action.FORCE)
_LEAST = float(np.finfo(np.float32).min)


def takes(
    logits: torch.Tensor, features: torch.Tensor, head: GuidanceHead, candidate_scores: torch.Tensor
) -> bool:
    """Whether these are guided here: few rows in the CPU's memory, float32 or float64, eager and without a gradient."""
    return (
        may_look(logits.device)
        and candidate_scores.numel() <= MOST_CANDIDATES
        and logits.dtype in DTYPES
        and features.dtype in DTYPES
        and candidate_scores.dtype in DTYPES
        and head.table.dtype in DTYPES
        and not (logits.requires_grad or features.requires_grad or candidate_scores.requires_grad)
    )


def gamma_guidance(
    logits: torch.Tensor,
    features: torch.Tensor,
    head: GuidanceHead,
    candidate_scores: torch.Tensor,
    candidate_ids: torch.Tensor,
    rows: torch.Tensor,
    *,
    interval: bool = False,
    tail: str = "exact",
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Guided logits; :func:`budgetctl.kernels.gamma_guidance.gamma_guidance` describes arguments and result."""
    state, ids = rows.numpy(), candidate_ids.numpy()
    action, warmth = state[:, ACTION], state[:, TEMPERATURE, None]
    guided = action == _GUIDE
    others = np.count_nonzero(guided) < len(ids)
    spots = _spots(ids, state[:, CLOSING:])
    added = np.zeros(spots.shape)
    with np.errstate(all="ignore"):
        fit = _fit(features.numpy(), head, ids, state[:, LEFT], state[:, LOWER] if interval else None)
        scale = state[:, STRENGTH, None] * warmth
        rest = _push(candidate_scores.numpy(), spots, fit, warmth, scale, added[:, : ids.shape[1]])
    if tail == "relative":
        added -= rest
    if others:
        # Adding -0.0 leaves every number as it is, bit for bit.
        added, rest = (np.where(guided[:, None], part, -0.0) for part in (added, rest))
    result = _written(logits, spots, added, None if tail == "relative" else rest, out)
    double = features.dtype == torch.float64 or candidate_scores.dtype == torch.float64
    state_fit = fit[:, 0].astype(np.float64 if double else np.float32)
    if others:
        forced = action == _FORCE
        state_fit[forced | (action == _LEAVE)] = 0.0
        if np.count_nonzero(forced):
            after = result.numpy()
            after[forced] = -np.inf
            after[forced, state[forced, FORCED].astype(np.int64)] = 0.0
    return result, torch.from_numpy(state_fit)


def guide_every_row(
    logits: torch.Tensor,
    features: Array,
    head: GuidanceHead,
    candidate_scores: torch.Tensor,
    candidate_ids: torch.Tensor,
    closing_ids: Array,
    left: Array,
    temperature: Array | float,
    strength: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`gamma_guidance` with the exact tail where all rows are guided and none has a lower end: the same logits
    without packing what differs between rows, in as few operations as there are.

    Args:
        logits: [B, V], as :func:`takes` has it; likewise ``candidate_scores``.
        features: [B, width + 2 rank].
        head: of the length predictor.
        candidate_scores: [B, k].
        candidate_ids: [B, k] int64.
        closing_ids: [B, c] or [c] int64, tokens that close the thought.
        left: [B] thinking tokens left.
        temperature: a number or [B, 1], inside the bounds of :func:`pack_rows`.
        strength: of guidance, at most ``MOST_STRENGTH``.
        out: ``logits`` itself to work in place, None for a new tensor.
    """
    ids = candidate_ids.numpy()
    spots = _spots(ids, closing_ids)
    added = np.zeros(spots.shape)
    with np.errstate(all="ignore"):
        fit = _fit(features, head, ids, left, None)
        warmth, scale = temperature, temperature * strength
        rest = _push(candidate_scores.numpy(), spots, fit, warmth, scale, added[:, : ids.shape[1]])
    return _written(logits, spots, added, rest, out)


def _spots(ids: Array, closing_ids: Array) -> Array:
    """[B, k + c] int64: candidates, then the closing tokens, since the close keeps its logit wherever it stands in the
    ranking."""
    count, k = ids.shape
    spots = np.empty((count, k + closing_ids.shape[-1]), np.int64)
    spots[:, :k] = ids
    spots[:, k:] = closing_ids
    return spots


def _written(
    logits: torch.Tensor, spots: Array, added: Array, rest: Array | None, out: torch.Tensor | None
) -> torch.Tensor:
    """Logits with ``added`` [B, n] at ``spots`` [B, n] and ``rest`` [B, 1] at all others; both are written over."""
    before = logits.numpy()
    if len(spots) > 1:
        spots += np.arange(0, before.size, before.shape[1])[:, None]
    # Before anything is written: ``out`` may be ``logits``.
    added += before.take(spots)
    if rest is None:
        result = logits.clone() if out is None else out if out is logits else out.copy_(logits)
        after = result.numpy()
    elif before.size > MOST_LOGITS:
        result = torch.add(logits, torch.from_numpy(rest.astype(before.dtype)), out=out)
        after = result.numpy()
    else:
        after = np.add(before, rest.astype(before.dtype), out=None if out is None else out.numpy())
        result = torch.from_numpy(after) if out is None else out
    after.put(spots, added)
    return result


def _fit(features: Array, head: GuidanceHead, ids: Array, left: Array, lower: Array | None) -> Array:
    """[B, 1 + k] log probability that the thought ends in time: by the state, then given each candidate; with ``lower``
    [B] that of an interval, where it is not below 0."""
    weight, bias, table = head.arrays
    width, rank = head.width, head.rank
    trunk = features[:, :width]
    by_state = (trunk / (1 + np.exp(-trunk))) @ weight + bias
    query = features[:, width:].reshape(-1, 2, rank)
    # [B, 2, 1 + k]: concentrations and rates lie together.
    both = np.empty((len(ids), 2, 1 + ids.shape[1]))
    both[:, :, 0] = by_state
    moved = np.matmul(table.take(ids, axis=0), query.transpose(0, 2, 1))
    np.add(moved.transpose(0, 2, 1), by_state[:, :, None], out=both[:, :, 1:])
    if both.size <= FEW_NUMBERS:
        softplus = np.logaddexp(both, 0.0, out=both)
    else:
        softplus = np.minimum(both, SOFTPLUS_IS_X)
        np.exp(softplus, out=softplus)
        np.log1p(softplus, out=softplus)
        np.maximum(softplus, both, out=softplus)
    softplus += head.floor
    concentration, rate = softplus[:, 0], softplus[:, 1]
    fit = _log_prob(concentration, rate, left)
    if lower is None:
        return fit
    low = _log_prob(concentration, rate, lower)
    return interval_fit(*map(torch.from_numpy, (fit, low, lower >= 0))).numpy()


def _log_prob(concentration: Array, rate: Array, left: Array) -> Array:
    """[B, n] log P(L <= left + 1) of Gamma distributions of log(1 + L)."""
    bound = np.log(np.maximum(left, 0.0) + 2)
    z = rate * bound[:, None]
    probability = gammainc(concentration, z)
    if not np.minimum.reduce(probability, axis=None) > LEAST_PROBABILITY:
        return log_gamma_cdf(torch.from_numpy(concentration), torch.from_numpy(z), 1.0).numpy()
    found = np.log(probability, out=probability)
    return np.minimum(found, 0.0, out=found)


def _push(
    scores: Array, spots: Array, fit: Array, warmth: Array | float, strength: Array | float, push: Array
) -> Array:
    """:func:`budgetctl.kernels.reference.guidance_push` for all rows: writes ``push`` [B, k], returns the tail [B, 1].

    ``spots`` [B, k + c] are the candidates and the closing tokens; ``warmth`` is the temperature, and ``strength`` has it
    as a factor.
    """
    by_state, of_candidates = fit[:, :1], fit[:, 1:]
    k = scores.shape[1]
    ids = spots[:, :k]
    closing = ids == spots[:, k : k + 1]
    for column in range(k + 1, spots.shape[1]):
        closing |= ids == spots[:, column : column + 1]
    log_probs = scores / warmth
    closes = np.count_nonzero(closing) > 0
    others = log_probs
    if closes:
        others = log_probs.copy()
        np.copyto(others, -np.inf, where=closing)
    highest = np.maximum.reduce(others, axis=1, keepdims=True)
    # No banned token is a likely one, even if all are banned.
    least = np.maximum(highest + _LIKELY, _LEAST)
    best = np.maximum.reduce(of_candidates, axis=1, keepdims=True, where=others >= least, initial=-np.inf)
    # A row whose only candidate is the close has nothing to weigh.
    np.copyto(best, by_state, where=best == -np.inf)
    if closes:
        close = np.where(closing, log_probs, -np.inf).max(1, keepdims=True)
        # A close that the model considers fits for certain, and is then the best there is.
        np.copyto(best, 0.0, where=close >= highest + _CLOSE)
    scale = strength * -_HOPELESS / np.minimum(best, -_HOPELESS)
    np.multiply(of_candidates - best, scale, out=push)
    if closes:
        np.copyto(push, 0.0, where=closing)
    return np.minimum(by_state - best, 0.0) * scale
