"""What an accuracy curve says in one number. Points (x, y) [k]; those of equal x count as one, their mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def merged_points(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The curve with rising x."""
    at, value = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    rising, which = np.unique(at, return_inverse=True)
    return rising, np.bincount(which, weights=value) / np.bincount(which)


def curve_area(
    x: ArrayLike, y: ArrayLike, start: float | None = None, stop: float | None = None, log: bool = False
) -> float | None:
    """Area under the curve from ``start`` to ``stop`` by trapezoids, divided by the range: a mean accuracy in [0, 1].

    Args:
        x: budgets or mean tokens.
        y: accuracies.
        start: left end, within the curve; the curve's own when left out.
        stop: right end, likewise.
        log: on an axis of log x, between points too.

    Returns:
        None with a range of length 0, or on a logarithmic axis that starts at 0.
    """
    at, value = merged_points(x, y)
    left, right = at[0] if start is None else start, at[-1] if stop is None else stop
    if right <= left or (log and left <= 0):
        return None
    if log:
        keep = at > 0
        at, value = np.log(at[keep]), value[keep]
        left, right = np.log(left), np.log(right)
    inner = (at > left) & (at < right)
    grid = np.concatenate([[left], at[inner], [right]])
    heights = np.interp(grid, at, value)
    return float(np.sum(np.diff(grid) * (heights[1:] + heights[:-1]) / 2) / (right - left))


def anytime_accuracy(accuracies: ArrayLike, prior: ArrayLike | None = None) -> np.ndarray:
    """Expected accuracy when the budget is drawn from a prior: the sum of P_j Acc(b_j) (AnytimeReasoner, arXiv 2505.13438)
    over the last axis of ``accuracies`` [..., k]; ``prior`` [k] is uniform when left out."""
    values = np.asarray(accuracies, dtype=np.float64)
    weights = np.ones(values.shape[-1]) if prior is None else np.asarray(prior, dtype=np.float64)
    return np.asarray(values @ (weights / weights.sum()))


def s1_control(used: ArrayLike, limits: ArrayLike) -> float | None:
    """Share of settings whose mean thinking tokens stay between 0 and the limit (s1, arXiv 2501.19393, section 3.2, eq.
    1); None without any. A setting within its limit on average may be over it on many questions: see the violations."""
    spent, limit = np.asarray(used, dtype=np.float64), np.asarray(limits, dtype=np.float64)
    return float(np.mean(spent <= limit)) if spent.size else None


def s1_scaling(tokens: ArrayLike, accuracies: ArrayLike) -> float | None:
    """Mean slope (f(b) - f(a)) / (b - a) over all pairs of settings with b > a mean thinking tokens (s1, eq. 2), as accuracy
    in [0, 1] per token; None without such a pair."""
    at, value = np.asarray(tokens, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    run, rise = at[None, :] - at[:, None], value[None, :] - value[:, None]
    rising = run > 0
    return float(np.mean(rise[rising] / run[rising])) if rising.any() else None


def s1_performance(accuracies: ArrayLike) -> float:
    """Best accuracy of a setting (s1, eq. 3)."""
    return float(np.max(np.asarray(accuracies, dtype=np.float64)))
