"""Does a thought keep to its limit, and how does it end?

``used`` and ``limits`` are thinking tokens [n]. What is divided by the limit leaves limits of 0 out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

CLOSES = ("natural", "steered", "forced", "early", "none")


def violation_rate(used: ArrayLike, limits: ArrayLike) -> float | None:
    """Share of thoughts with used > limit; None without any."""
    spent, limit = _arrays(used, limits)
    return float(np.mean(spent > limit)) if spent.size else None


def mean_overshoot(used: ArrayLike, limits: ArrayLike) -> float | None:
    """Mean of max(used - limit, 0) / limit, over all thoughts; None without any."""
    spent, limit = _arrays(used, limits, positive=True)
    return float(np.mean(np.maximum(spent - limit, 0) / limit)) if spent.size else None


def length_error(used: ArrayLike, limits: ArrayLike) -> float | None:
    """Mean of abs(n - n*) / n*, n* being the length asked for (L1, arXiv 2503.04697); None without any.

    It counts a thought that ends early by itself as an error: a measure of methods that aim at a length.
    """
    spent, limit = _arrays(used, limits, positive=True)
    return float(np.mean(np.abs(spent - limit) / limit)) if spent.size else None


def requested_used_correlation(used: ArrayLike, limits: ArrayLike) -> float | None:
    """Pearson correlation of the lengths asked for and used, over records (as L1's evaluation prints it); None where one
    of them does not vary."""
    spent, limit = _arrays(used, limits)
    if spent.size < 2 or np.ptp(spent) == 0 or np.ptp(limit) == 0:
        return None
    a, b = spent - spent.mean(), limit - limit.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def close_shares(closes: Sequence[str]) -> dict[str, float]:
    """Share of the thoughts that ended in each way, every way listed."""
    return {kind: float(np.mean([close == kind for close in closes])) for kind in CLOSES}


def _arrays(used: ArrayLike, limits: ArrayLike, positive: bool = False) -> tuple[np.ndarray, np.ndarray]:
    spent, limit = np.asarray(used, dtype=np.float64), np.asarray(limits, dtype=np.float64)
    if spent.shape != limit.shape:
        raise ValueError(f"lengths {spent.shape} and limits {limit.shape}: expected as many of both")
    keep = limit > 0 if positive else np.ones(limit.shape, dtype=bool)
    return spent[keep], limit[keep]
