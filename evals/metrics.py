"""Means with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile-bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, coverage: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of ``values`` with a percentile-bootstrap interval; values are resampled with replacement."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values to average: expected at least one")
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [data[rng.integers(0, data.size, (100, data.size))].mean(1) for _ in range(-(-resamples // 100))]
    )
    tail = (1 - coverage) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(data.mean()), float(low), float(high))


def paired_difference(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, **options: int
) -> Interval:
    """Mean of ``first - second`` over the same questions with its interval."""
    return bootstrap_mean(
        np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), **options
    )
