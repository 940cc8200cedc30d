"""Calibration of predicted lengths: uniform where the prediction is right, by hand elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from budgetctl.evals.measures.calibration import central_coverage, mean_absolute_error, pit_shares
from budgetctl.predictors.calibrate import pit_histogram


def test_by_hand() -> None:
    cdf = [0.04, 0.06, 0.2, 0.3, 0.5, 0.74, 0.76, 0.94, 0.96, 1.0]
    assert pit_shares(cdf, 4) == [0.3, 0.1, 0.2, 0.4]
    assert central_coverage(cdf) == {"50": 0.3, "80": 0.5, "90": 0.7}
    assert mean_absolute_error([10, 20], [13, 15]) == 4
    assert mean_absolute_error([], []) is None


def test_a_right_prediction_is_calibrated_and_a_narrow_one_is_not() -> None:
    law = stats.gamma(4.0, scale=30.0)
    lengths = law.rvs(20_000, random_state=np.random.default_rng(0))
    right = law.cdf(lengths)
    assert pit_shares(right) == pytest.approx([0.1] * 10, abs=0.01)
    assert list(central_coverage(right).values()) == pytest.approx([0.5, 0.8, 0.9], abs=0.012)
    narrow = stats.gamma(16.0, scale=7.5).cdf(lengths)
    assert central_coverage(narrow)["90"] < 0.7
    assert pit_shares(narrow)[0] > 0.2
    assert pit_shares(right) == pytest.approx(pit_histogram(torch.as_tensor(right)), abs=1e-3)
