"""The allocation model: the exact optimum against brute force and a general solver, and the paper's closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from budgetctl.errors import BudgetError
from budgetctl.plan.allocators import ALLOCATORS, Allocator
from budgetctl.plan.greedy import greedy_marginal
from budgetctl.plan.uncertainty import bam_eq6, bam_exact, bam_optimum, left_after, uncertainty

STEPS = st.lists(st.tuples(st.floats(0.05, 20), st.floats(0.3, 4)), min_size=2, max_size=6)


@pytest.mark.parametrize(
    ("betas", "total", "eq6", "exact"),
    [
        ([1.5] * 4, 600, 0.00739, 0.00739),
        ([1, 1.5, 2.5, 4], 100, 0.1787, 0.1073),
        ([1, 1.5, 2.5, 4], 600, 0.02775, 0.01330),
    ],
)
def test_the_closed_form_is_the_optimum_for_equal_exponents_only(
    betas: list[float], total: int, eq6: float, exact: float
) -> None:
    weights = [5.0, 2.0, 1.0, 8.0]
    assert uncertainty(weights, bam_eq6(weights, total, beta=betas), betas) == pytest.approx(eq6, rel=0.02)
    assert uncertainty(weights, bam_exact(weights, total, beta=betas), betas) == pytest.approx(
        exact, rel=0.02
    )
    assert uncertainty(weights, bam_optimum(weights, total, beta=betas), betas) <= exact * 1.001


@settings(max_examples=40)
@given(STEPS, st.integers(10, 2000))
def test_no_allocator_leaves_less(steps: list[tuple[float, float]], total: int) -> None:
    weights, betas = map(list, zip(*steps, strict=True))
    least = uncertainty(weights, bam_exact(weights, total, beta=betas), betas)
    for name in ALLOCATORS:
        other = Allocator.parse(name)(weights, total)
        assert least <= uncertainty(weights, other, betas) * (1 + 1e-9)
    assert uncertainty(weights, bam_optimum(weights, total, beta=betas), betas) <= least * (1 + 1e-9)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0.05, 20), st.floats(0.3, 4), st.integers(0, 3)), min_size=2, max_size=3),
    st.integers(6, 20),
)
def test_brute_force_finds_nothing_better(steps: list[tuple[float, float, int]], total: int) -> None:
    weights, betas, floors = map(list, zip(*steps, strict=True))
    assume(sum(floors) <= total)
    every = (
        (*head, total - sum(head))
        for head in itertools.product(range(total + 1), repeat=len(steps) - 1)
        if sum(head) <= total
    )
    best = min(
        uncertainty(weights, tokens, betas)
        for tokens in every
        if all(b >= low for b, low in zip(tokens, floors, strict=True))
    )
    found = bam_exact(weights, total, floors, beta=betas)
    assert uncertainty(weights, found, betas) == pytest.approx(best, rel=1e-12)


@settings(max_examples=25)
@given(STEPS, st.integers(60, 1000), st.floats(0, 0.9), st.floats(1.2, 4))
def test_a_general_solver_agrees(
    steps: list[tuple[float, float]], total: int, low: float, high: float
) -> None:
    weights, betas = map(list, zip(*steps, strict=True))
    floor = math.floor(low * total / len(steps))
    cap = math.ceil(high * total / len(steps))
    found = bam_optimum(weights, total, floor, cap, beta=betas)
    assert math.fsum(found) == pytest.approx(total, rel=1e-9)
    c, power = np.array(weights), np.array(betas)
    scale = uncertainty(weights, found, betas)
    solved = minimize(
        lambda x: float((c / (x * total) ** power).sum() / scale),
        np.full(len(steps), 1 / len(steps)),
        jac=lambda x: -c * power / (x * total) ** (power + 1) * total / scale,
        bounds=[(max(floor, 1e-3) / total, min(cap, total) / total)] * len(steps),
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assume(solved.success)
    assert scale <= uncertainty(weights, list(solved.x * total), betas) * (1 + 1e-6)
    assert solved.fun == pytest.approx(1.0, rel=1e-3)


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=8), st.floats(0.3, 4), st.integers(200, 5000))
def test_equal_exponents_make_the_two_equal(weights: list[float], beta: float, total: int) -> None:
    closed, exact = bam_eq6(weights, total, beta=beta), bam_exact(weights, total, beta=beta)
    assert all(abs(a - b) <= 1 for a, b in zip(closed, exact, strict=True))


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=8), st.integers(1, 400), st.integers(0, 5))
def test_greedy_is_the_optimum_in_whole_tokens(weights: list[float], total: int, floor: int) -> None:
    assume(floor * len(weights) <= total)
    one, other = greedy_marginal(weights, total, floor), bam_exact(weights, total, floor)
    assume(total >= len(weights))
    assert uncertainty(weights, one) == pytest.approx(uncertainty(weights, other), rel=1e-12)


def test_greedy_takes_any_cost() -> None:
    """The first tokens of step 1 bring most, the further ones nothing."""
    found = greedy_marginal([1.0, 1.0], 10, cost=lambda step, b: -5 * min(b, 2) if step else -b)
    assert found == [8, 2]


def test_steps_without_weight_get_the_floor_or_what_nobody_else_may_have() -> None:
    assert bam_exact([1.0, 0.0, 4.0], 30, 2) == [9, 2, 19]
    assert bam_exact([1.0, 0.0], 30, 0, [10, 30]) == [10, 20]
    assert bam_exact([1.0, 1.0], 3, [3, 0]) == [3, 0]
    assert left_after(0.0, 0, 1.0) == 0.0
    assert uncertainty([1.0], [0]) == math.inf


@pytest.mark.parametrize("beta", [0, -1.0, math.nan, [1.0], [1.0, "2"], True])
def test_exponents_that_are_none(beta: object) -> None:
    with pytest.raises(BudgetError, match="positive numbers"):
        bam_exact([1.0, 1.0], 10, beta=beta)  # type: ignore[arg-type]
