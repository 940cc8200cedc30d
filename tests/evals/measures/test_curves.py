"""Areas, anytime accuracy and s1's three measures, by hand and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.evals.measures.curves import (
    anytime_accuracy,
    curve_area,
    merged_points,
    s1_control,
    s1_performance,
    s1_scaling,
)

points = st.lists(
    st.tuples(st.integers(1, 500), st.floats(0, 1)), min_size=2, max_size=12, unique_by=lambda point: point[0]
)


def test_area_by_hand() -> None:
    assert curve_area([10, 20, 40], [0.2, 0.6, 0.8]) == pytest.approx((0.4 * 10 + 0.7 * 20) / 30)
    assert curve_area([1, 10, 1000], [0.2, 0.6, 0.8], log=True) == pytest.approx((0.4 + 0.7 * 2) / 3)
    assert curve_area([10, 20, 40], [0.2, 0.6, 0.8], 15, 20) == pytest.approx(0.5)
    assert curve_area([1, 100], [0.0, 1.0], 1, 10, log=True) == pytest.approx(0.25)


def test_area_of_a_point_and_of_a_start_at_zero() -> None:
    assert curve_area([16], [0.5]) is None
    assert curve_area([16, 16], [0.5, 0.7]) is None
    assert curve_area([0, 16], [0.2, 0.4]) == pytest.approx(0.3)
    assert curve_area([0, 16], [0.2, 0.4], log=True) is None


def test_equal_abscissae_count_as_their_mean() -> None:
    x, y = merged_points([20, 10, 20], [0.9, 0.1, 0.5])
    assert (x.tolist(), y.tolist()) == ([10, 20], [0.1, pytest.approx(0.7)])


@given(points)
@settings(max_examples=60, deadline=None)
def test_area_is_numpys_trapezoid_in_any_order(curve: list[tuple[int, float]]) -> None:
    x, y = np.array(sorted(curve), dtype=float).T
    mixed = np.random.default_rng(len(curve)).permutation(len(curve))
    area = curve_area(x[mixed], y[mixed])
    assert area == pytest.approx(np.trapezoid(y, x) / np.ptp(x))
    assert curve_area(x[mixed], y[mixed], log=True) == pytest.approx(
        np.trapezoid(y, np.log(x)) / np.ptp(np.log(x))
    )
    assert y.min() - 1e-9 <= area <= y.max() + 1e-9


def test_anytime_accuracy() -> None:
    assert anytime_accuracy([0.2, 0.4, 0.9]) == pytest.approx(0.5)
    assert anytime_accuracy([0.2, 0.4, 0.9], prior=[1, 1, 2]) == pytest.approx(0.6)
    assert anytime_accuracy([[0.0, 1.0], [1.0, 1.0]]).tolist() == [0.5, 1.0]


def test_s1_by_hand() -> None:
    assert s1_control([10, 17, 30], [16, 16, 32]) == pytest.approx(2 / 3)
    assert s1_control([], []) is None
    slopes = [(0.5 - 0.2) / 10, (0.6 - 0.2) / 30, (0.6 - 0.5) / 20]
    assert s1_scaling([40, 10, 20], [0.6, 0.2, 0.5]) == pytest.approx(np.mean(slopes))
    assert s1_scaling([10, 10], [0.2, 0.4]) is None
    assert s1_performance([0.2, 0.6, 0.5]) == 0.6


@given(points)
@settings(max_examples=60, deadline=None)
def test_scaling_is_the_mean_over_pairs(curve: list[tuple[int, float]]) -> None:
    slopes = [(f - e) / (b - a) for a, e in curve for b, f in curve if b > a]
    x, y = zip(*curve, strict=True)
    assert s1_scaling(x, y) == pytest.approx(sum(slopes) / len(slopes))
