"""Intervals that resample questions: the answers of one question under several seeds are not independent.

The cluster bootstrap (Davison & Hinkley 1997, section 3.8), as Miller (arXiv 2411.00640) advises errors by
question for evaluations of language models; percentile intervals (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from budgetctl.evals.metrics import Interval

RESAMPLES = 2000
CONFIDENCE = 0.95
_DRAWN_AT_ONCE = 1 << 21


def group_ids(keys: Iterable[Hashable]) -> np.ndarray:
    """Which question each record belongs to, int64 [n], numbered in the order of the sorted keys."""
    listed: list[Any] = list(keys)
    order = {key: at for at, key in enumerate(sorted(set(listed)))}
    return np.array([order[key] for key in listed], dtype=np.int64)


def column_means(columns: ArrayLike) -> np.ndarray:
    """Mean [m] over the records of each column of [n, m]; NaN marks a record that a column does not have."""
    data = _columns(columns)
    with np.errstate(invalid="ignore"):
        return np.nansum(data, axis=0) / np.sum(~np.isnan(data), axis=0)


def resampled_means(
    columns: ArrayLike, groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Means over records when as many questions are drawn with replacement.

    Args:
        columns: what is averaged, [n] or [n, m]; NaN marks a record that a column does not have.
        groups: question of each record, int [n], every one of 0 … q - 1.
        resamples: how often questions are drawn.
        seed: of the draws. The same number of questions and seed give the same draws, so that columns of several calls
            stay paired.

    Returns:
        float64 [resamples, m]; NaN where none of a column's records were drawn.
    """
    data = _columns(columns)
    present = ~np.isnan(data)
    count = int(groups.max()) + 1
    sums, sizes = np.zeros((2, count, data.shape[1]))
    np.add.at(sums, groups, np.where(present, data, 0.0))
    np.add.at(sizes, groups, present)
    rng = np.random.default_rng(seed)
    chunk = max(_DRAWN_AT_ONCE // count, 1)
    means = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append((times @ sums) / (times @ sizes))
    return np.concatenate(means)


def percentile_interval(mean: float, draws: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """``mean`` with the central quantiles of its bootstrap ``draws`` [resamples]."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Interval(float(mean), float(low), float(high))


def clustered_means(
    columns: ArrayLike,
    groups: np.ndarray,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Mean over records of each column with its interval; arguments as of :func:`resampled_means`.

    Raises:
        ValueError: a column has no records.
    """
    data = _columns(columns)
    if np.isnan(data).all(axis=0).any():
        raise ValueError("no values to average: expected at least one in every column")
    draws = resampled_means(data, groups, resamples, seed)
    return [
        percentile_interval(mean, drawn, confidence)
        for mean, drawn in zip(column_means(data), draws.T, strict=True)
    ]


def clustered_mean(values: Sequence[float] | np.ndarray, groups: np.ndarray, **options: Any) -> Interval:
    """As :func:`clustered_means`, of one column."""
    return clustered_means(values, groups, **options)[0]


def _columns(columns: ArrayLike) -> np.ndarray:
    data = np.asarray(columns, dtype=np.float64)
    return data[:, None] if data.ndim == 1 else data
