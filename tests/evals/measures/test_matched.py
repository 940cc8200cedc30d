"""Mixtures at equal tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.evals.measures.matched import mixture_at

MEANS = [30.0, 10.0, 20.0]
RIGHT = [np.array([1, 1]), np.array([0, 1]), np.array([1, 0])]


@pytest.mark.parametrize(
    ("tokens", "right", "reached", "inside"),
    [
        (12.5, [0.25, 0.75], 12.5, True),
        (20.0, [1.0, 0.0], 20.0, True),
        (28.0, [1.0, 0.8], 28.0, True),
        (10.0, [0.0, 1.0], 10.0, True),
        (30.0, [1.0, 1.0], 30.0, True),
        (5.0, [0.0, 1.0], 10.0, False),
        (99.0, [1.0, 1.0], 30.0, False),
    ],
)
def test_by_hand(tokens: float, right: list[float], reached: float, inside: bool) -> None:
    mixture = mixture_at(MEANS, tokens)
    assert mixture.of(RIGHT).tolist() == pytest.approx(right)
    assert (mixture.tokens, mixture.inside) == (reached, inside)


def test_one_setting() -> None:
    mixture = mixture_at([7.0], 7.0)
    assert (mixture.lower, mixture.upper, mixture.tokens, mixture.inside) == (0, 0, 7.0, True)


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=8), st.floats(0, 1100))
@settings(max_examples=100, deadline=None)
def test_is_the_linear_interpolation(means: list[float], tokens: float) -> None:
    accuracies = [np.array([np.sin(mean)]) for mean in means]
    mixture = mixture_at(means, tokens)
    used = mixture.of([np.array([mean]) for mean in means])[0]
    assert used == pytest.approx(min(max(tokens, min(means)), max(means)))
    assert mixture.tokens == pytest.approx(used)
    if len(set(means)) == len(means):
        order = np.argsort(means)
        line = np.interp(tokens, np.array(means)[order], np.concatenate(accuracies)[order])
        assert mixture.of(accuracies)[0] == pytest.approx(line, abs=1e-6)
