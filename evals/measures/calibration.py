"""Is the length predictor honest? From the probability that it gave, at the start, to a length of at most the actual one.

That is the probability integral transform (PIT; Dawid 1984, Gneiting et al. 2007): uniform if the prediction is
calibrated. Lengths are whole numbers, and P(L <= l) counts the actual one, so it is a little high for short thoughts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

COVERAGES = (0.5, 0.8, 0.9)


def pit_shares(cdf: ArrayLike, bins: int = 10) -> list[float]:
    """Share of the PIT values [n] in each of ``bins`` equal parts of [0, 1]."""
    counts, _ = np.histogram(np.asarray(cdf, dtype=np.float64), bins=bins, range=(0.0, 1.0))
    return [float(count / counts.sum()) for count in counts]


def central_coverage(cdf: ArrayLike, coverages: Sequence[float] = COVERAGES) -> dict[str, float]:
    """Share of lengths within each central interval of the prediction: PIT between (1 - c) / 2 and (1 + c) / 2; keys are
    percents, as "90"."""
    values = np.asarray(cdf, dtype=np.float64)
    return {
        f"{100 * c:g}": float(np.mean((values >= (1 - c) / 2) & (values <= (1 + c) / 2))) for c in coverages
    }


def mean_absolute_error(predicted: ArrayLike, actual: ArrayLike) -> float | None:
    """Mean of abs(predicted - actual), tokens; None without any."""
    told, found = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    return float(np.mean(np.abs(told - found))) if told.size else None
