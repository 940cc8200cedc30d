"""Intervals that resample questions: against scipy's bootstrap, known variances, and how often they cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from budgetctl.evals.measures.bootstrap import (
    clustered_mean,
    clustered_means,
    column_means,
    group_ids,
    resampled_means,
)
from budgetctl.evals.metrics import bootstrap_mean, paired_difference


def test_questions_are_numbered_in_order() -> None:
    assert group_ids([("b", 1), ("a", 2), ("b", 1), ("a", 10)]).tolist() == [2, 0, 2, 1]


def test_one_record_a_question_agrees_with_scipy() -> None:
    data = np.random.default_rng(3).gamma(2.0, 3.0, 200)
    found = clustered_mean(data, np.arange(200), resamples=4000)
    other = stats.bootstrap(
        (data,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    width = other.high - other.low
    assert found.mean == pytest.approx(data.mean())
    assert found.low == pytest.approx(other.low, abs=0.05 * width)
    assert found.high == pytest.approx(other.high, abs=0.05 * width)
    plain = bootstrap_mean(data, resamples=4000)
    assert found.low == pytest.approx(plain.low, abs=0.05 * width)


def test_clusters_agree_with_scipy_on_sums_and_sizes() -> None:
    rng = np.random.default_rng(4)
    groups = np.sort(np.concatenate([np.arange(60), rng.integers(0, 60, 90)]))
    data = rng.normal(0, 1, 60)[groups] + rng.normal(0, 0.3, groups.size)
    sums, sizes = np.bincount(groups, data), np.bincount(groups).astype(float)

    def ratio(s: np.ndarray, n: np.ndarray, axis: int) -> np.ndarray:
        return s.sum(axis) / n.sum(axis)

    other = stats.bootstrap(
        (sums, sizes), ratio, paired=True, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    found = clustered_mean(data, groups, resamples=4000)
    width = other.high - other.low
    assert found.mean == pytest.approx(data.mean())
    assert found.low == pytest.approx(other.low, abs=0.05 * width)
    assert found.high == pytest.approx(other.high, abs=0.05 * width)


def _experiments(rng: np.random.Generator, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Answers of 60 questions under 4 seeds, right with a probability of the question's own; 0.6 on average."""
    groups = np.repeat(np.arange(60), 4)
    return [((rng.random(240) < rng.beta(0.6, 0.4, 60)[groups]).astype(float), groups) for _ in range(count)]


def test_interval_covers_as_often_as_it_says() -> None:
    runs = _experiments(np.random.default_rng(11), 400)
    intervals = [clustered_mean(right, groups, resamples=500) for right, groups in runs]
    covered = np.mean([one.low <= 0.6 <= one.high for one in intervals])
    error = 3 * (0.95 * 0.05 / 400) ** 0.5
    assert (
        0.95 - error - 0.01 <= covered <= 0.95 + error
    )  # percentile intervals are short by about 1 / questions


def test_records_as_if_independent_would_cover_too_seldom() -> None:
    runs = _experiments(np.random.default_rng(12), 200)
    apart = [clustered_mean(right, np.arange(right.size), resamples=500) for right, _ in runs]
    assert np.mean([one.low <= 0.6 <= one.high for one in apart]) < 0.85


def test_draws_have_the_variance_of_a_mean_over_questions() -> None:
    right, groups = _experiments(np.random.default_rng(13), 1)[0]
    by_question = np.bincount(groups, right) / 4
    draws = resampled_means(right, groups, 20_000)
    assert draws.shape == (20_000, 1)
    assert draws.std() == pytest.approx(by_question.std() / 60**0.5, rel=0.02)


def test_many_questions_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.arange(50)
    data = np.random.default_rng(0).random((50, 2))
    whole = resampled_means(data, groups, 33)
    monkeypatch.setattr("budgetctl.evals.measures.bootstrap._DRAWN_AT_ONCE", 350)
    np.testing.assert_allclose(resampled_means(data, groups, 33), whole, rtol=1e-12)


def test_absent_values_are_left_out() -> None:
    columns = np.array([[1.0, np.nan], [3.0, 4.0], [5.0, np.nan]])
    assert column_means(columns).tolist() == [3.0, 4.0]
    first, second = clustered_means(columns, np.arange(3))
    assert (first.mean, second.mean, second.low, second.high) == (3.0, 4.0, 4.0, 4.0)
    with pytest.raises(ValueError, match="no values to average"):
        clustered_means(np.array([[1.0, np.nan]]), np.zeros(1, dtype=int))


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 6)), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_more_seeds_of_the_same_answers_change_nothing(rows: list[tuple[float, int]]) -> None:
    values, questions = np.array([v for v, _ in rows]), [q for _, q in rows]
    once = clustered_mean(values, group_ids(questions), resamples=50)
    twice = clustered_mean(
        np.concatenate([values, values]), group_ids([*questions, *questions]), resamples=50
    )
    assert (twice.mean, twice.low, twice.high) == pytest.approx((once.mean, once.low, once.high))


def test_a_difference_of_pairs_is_that_of_metrics() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(300)
    other = base + rng.normal(0.1, 0.05, 300)
    found = clustered_mean(other - base, np.arange(300), resamples=4000)
    plain = paired_difference(other, base, resamples=4000)
    assert found.low == pytest.approx(plain.low, abs=0.001)
    assert found.high == pytest.approx(plain.high, abs=0.001)
