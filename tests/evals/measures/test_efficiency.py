"""E3, ACT, overthinking-adjusted accuracy and throughput, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from budgetctl.evals.measures.efficiency import act_score, auc_oaa, e3, tokens_per_second


def test_e3_by_hand() -> None:
    assert e3(0.8, 500) == pytest.approx(12.8)
    assert e3(0.9, 1000) == pytest.approx(8.1)
    assert e3(0.0, 100) == 0.0


def test_e3_without_tokens() -> None:
    assert e3(0.5, 0) is None


def test_act_by_hand() -> None:
    accuracies = {"low": 0.6, "medium": 0.72, "high": 0.88}
    costs = {"low": 250.0, "medium": 500.0, "high": 1100.0}
    low, medium, high = 0.5 * 0.75 + 0.5 * 0.75, 0.5 * 0.9 + 0.5 * 0.5, 1.1
    assert act_score(accuracies, costs, 0.8, 1000) == pytest.approx(100 * (low + medium + high) / 3)
    one = act_score({"high": 0.8}, {"high": 9}, 0.8, 1000, weights={"high": 1.0})
    assert one == pytest.approx(100)


def test_act_without_a_mode_or_a_base() -> None:
    accuracies, costs = {"low": 0.5, "medium": 0.6, "high": 0.7}, {"low": 1.0, "medium": 2.0, "high": 3.0}
    assert act_score(accuracies, costs, 0.0, 100) is None
    assert act_score(accuracies, costs, 0.5, 0) is None
    assert act_score({"low": 0.5}, {"low": 1.0}, 0.5, 100) is None


def test_auc_oaa_is_the_mean_over_thresholds() -> None:
    rng = np.random.default_rng(0)
    right, thinking = rng.random(50) < 0.7, rng.integers(0, 1500, 50)
    thinking[:5] = 0
    found = auc_oaa(right, thinking)
    # the integral of a step function whose steps are at whole thresholds: its sum over t = 1 … horizon
    brute = np.mean([np.mean(right * (thinking < t)) for t in range(1, 1001)])
    assert found == pytest.approx(brute)
    assert auc_oaa([1, 1, 0], [0, 0, 0]) == pytest.approx(2 / 3)
    assert auc_oaa([1, 1], [50, 200], horizon=100) == pytest.approx(0.25)


def test_throughput() -> None:
    assert tokens_per_second([10, 30], [0.5, 1.5]) == 20
    assert tokens_per_second([10], [0.0]) is None
