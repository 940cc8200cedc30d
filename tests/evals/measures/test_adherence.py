"""Limits kept and missed, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from budgetctl.evals.measures.adherence import (
    CLOSES,
    close_shares,
    length_error,
    mean_overshoot,
    requested_used_correlation,
    violation_rate,
)

USED, LIMITS = [10, 16, 24, 20], [16, 16, 16, 10]


def test_by_hand() -> None:
    assert violation_rate(USED, LIMITS) == 0.5
    assert mean_overshoot(USED, LIMITS) == pytest.approx((0 + 0 + 0.5 + 1.0) / 4)
    assert length_error(USED, LIMITS) == pytest.approx((0.375 + 0 + 0.5 + 1.0) / 4)


def test_a_limit_of_zero_is_kept_or_not_but_divides_nothing() -> None:
    assert violation_rate([0, 3], [0, 0]) == 0.5
    assert mean_overshoot([0, 3], [0, 0]) is None
    assert mean_overshoot([3, 12], [0, 8]) == 0.5
    assert length_error([3, 12], [0, 8]) == 0.5


def test_without_limits() -> None:
    for measure in (violation_rate, mean_overshoot, length_error, requested_used_correlation):
        assert measure([], []) is None
    with pytest.raises(ValueError, match="as many of both"):
        violation_rate([1, 2], [1])


def test_correlation_is_pearsons() -> None:
    rng = np.random.default_rng(0)
    limits = rng.integers(1, 100, 80).astype(float)
    used = limits * 0.7 + rng.normal(0, 20, 80)
    assert requested_used_correlation(used, limits) == pytest.approx(stats.pearsonr(used, limits).statistic)
    assert requested_used_correlation([1, 2, 3], [10, 20, 30]) == 1.0
    assert requested_used_correlation([1, 2, 3], [8, 8, 8]) is None
    assert requested_used_correlation([5, 5], [8, 9]) is None
    assert requested_used_correlation([5], [8]) is None


def test_every_close_has_its_share() -> None:
    shares = close_shares(["natural", "early", "natural", "none"])
    assert shares == {"natural": 0.5, "steered": 0, "forced": 0, "early": 0.25, "none": 0.25}
    assert tuple(shares) == CLOSES
