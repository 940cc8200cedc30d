"""Allocators: exact totals, bounds, symmetry, closed forms, and names that are read."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.errors import BudgetError
from budgetctl.plan.allocators import ALLOCATORS, Allocator, by_shape, uniform
from budgetctl.plan.bounds import check_problem, clamped
from budgetctl.plan.schedules import (
    constant_shape,
    cosine_shape,
    exponential_shape,
    linear_shape,
    polynomial_shape,
    rex_shape,
    uba_shape,
)

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=12)
PLACELESS = ("uniform", "weighted", "bam_eq6", "bam_exact", "greedy")


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], int, list[int], list[int]]:
    weights = draw(st.lists(st.sampled_from((0.0, 1e-9, 0.2, 1.0, 1.0, 3.0, 1e6)), min_size=1, max_size=9))
    weights[draw(st.integers(0, len(weights) - 1))] = 1.0
    floors = draw(st.lists(st.integers(0, 30), min_size=len(weights), max_size=len(weights)))
    caps = [low + draw(st.integers(0, 60)) for low in floors]
    return weights, draw(st.integers(sum(floors), sum(caps))), floors, caps


@pytest.mark.parametrize("name", ALLOCATORS)
@settings(max_examples=30)
@given(problem=problems())
def test_sums_floors_and_caps(name: str, problem: Any) -> None:
    weights, total, floors, caps = problem
    found = Allocator.parse(name)(weights, total, floors, caps)
    assert sum(found) == total
    assert all(low <= tokens <= high for low, tokens, high in zip(floors, found, caps, strict=True))
    assert all(isinstance(tokens, int) for tokens in found)


@pytest.mark.parametrize("name", ALLOCATORS)
@settings(max_examples=30)
@given(weights=WEIGHTS, total=st.integers(0, 5000))
def test_sums_without_bounds(name: str, weights: list[float], total: int) -> None:
    found = Allocator.parse(name)(weights, total)
    assert sum(found) == total
    assert min(found) >= 0


@pytest.mark.parametrize("name", PLACELESS)
@settings(max_examples=30)
@given(weights=WEIGHTS, total=st.integers(0, 500), data=st.data())
def test_places_do_not_count(name: str, weights: list[float], total: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(weights))))
    allocator = Allocator.parse(name)
    straight, permuted = allocator(weights, total), allocator([weights[i] for i in order], total)
    # Ties are broken by place, by one token.
    assert all(abs(straight[i] - b) <= 1 for i, b in zip(order, permuted, strict=True))
    if len(set(weights)) == len(weights) and name in ("weighted", "greedy"):
        assert sorted(straight) == sorted(permuted)


@given(weights=WEIGHTS, total=st.integers(0, 5000))
def test_weighted_is_proportional_and_scale_free(weights: list[float], total: int) -> None:
    found = by_shape(weights, total)
    for tokens, weight in zip(found, weights, strict=True):
        assert abs(tokens - total * weight / math.fsum(weights)) < 1 + 1e-6
    assert by_shape([1024 * w for w in weights], total) == found


@given(problem=problems())
def test_clamped_shares_are_one_multiple_between_the_bounds(problem: Any) -> None:
    weights, total, floors, caps = problem
    exact = clamped(check_problem(weights, total, floors, caps))
    assert math.fsum(exact) == pytest.approx(total, abs=1e-6)
    free = [
        x / w
        for x, w, low, high in zip(exact, weights, floors, caps, strict=True)
        if w and low + 1e-9 < x < high - 1e-9
    ]
    if free:
        assert max(free) <= min(free) * (1 + 1e-6)
        # A step at its floor would have no more by this multiple, one at its cap no less.
        for x, w, low, high in zip(exact, weights, floors, caps, strict=True):
            if x <= low + 1e-9 and low < high:
                assert w * free[0] <= low + 1e-6
            if x >= high - 1e-9 and low < high:
                assert w * free[0] >= min(high, total) - 1e-6


def test_the_paper_s_shapes() -> None:
    def normal(shape: list[float]) -> list[float]:
        return [round(x / sum(shape), 3) for x in shape]

    assert normal(constant_shape(4)) == [0.25] * 4
    assert normal(linear_shape(4)) == [0.4, 0.3, 0.2, 0.1]
    assert normal(polynomial_shape(4)) == [0.533, 0.3, 0.133, 0.033]
    assert normal(exponential_shape(4)) == [0.291, 0.262, 0.236, 0.212]
    assert normal(cosine_shape(4)) == [0.458, 0.354, 0.146, 0.042]
    assert cosine_shape(1) == [1.0]


def test_rex_and_uba_shapes() -> None:
    assert rex_shape(4) == pytest.approx([1, 6 / 7, 2 / 3, 0.4])
    assert rex_shape(4, 0.0) == pytest.approx(linear_shape(4))
    assert rex_shape(4, 0.9) == pytest.approx([1, 0.75 / 0.775, 0.5 / 0.55, 0.25 / 0.325])
    assert uba_shape(4, 2.0) == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])
    assert uba_shape(4, 5.0)[1:3] == pytest.approx([0.7, 0.286], abs=1e-3)
    assert min(uba_shape(8, 1e-6)) > 0.99


@given(st.integers(1, 40), st.floats(0, 4), st.floats(0.01, 1), st.floats(0, 0.99), st.floats(0.01, 9))
def test_shapes_never_rise_and_leave_something(
    count: int, power: float, gamma: float, d: float, phi: float
) -> None:
    for shape in (
        polynomial_shape(count, power),
        exponential_shape(count, gamma),
        cosine_shape(count),
        rex_shape(count, d),
        uba_shape(count, phi),
    ):
        assert len(shape) == count
        assert min(shape) > 0
        assert all(a >= b * (1 - 1e-12) for a, b in pairwise(shape))


def test_a_floor_keeps_the_last_step_from_starving() -> None:
    """Credits of a planner rise and the decay falls: the measured case of five steps."""
    credits = [0.13, 0.18, 0.22, 0.22, 0.24]
    assert Allocator.parse("polynomial")(credits, 600)[-1] == 16
    found = Allocator.parse("polynomial")(credits, 600, 48)
    assert found[-1] == 48
    assert sum(found) == 600


def test_names_with_parameters() -> None:
    weights, total = [1.0, 2.0, 3.0], 100
    assert Allocator.parse("polynomial(1)")(weights, total) == Allocator.parse("linear")(weights, total)
    assert Allocator.parse(" exponential( 1.0 ) ")(weights, total) == Allocator.parse("weighted")(
        weights, total
    )
    assert str(Allocator.parse("rex(0.25)")) == "rex(0.25)"
    assert str(Allocator.parse(Allocator("uniform"))) == "uniform"
    assert uniform(weights, total) == [34, 33, 33]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("quadratic", "expected one of uniform"),
        ("linear(2)", "no parameter"),
        ("rex(x)", "a number as its d"),
        ("rex(nan)", "a number as its d"),
        ("rex(1)", r"in \[0, 1\)"),
        ("uba(0)", "> 0"),
        ("exponential(2)", "in .0, 1."),
        ("cosine(0)", "> 0"),
        ("polynomial(-1)", ">= 0"),
        ("bam_exact(-1)", "positive numbers"),
        ("uniform; drop", "expected one of"),
        (3, "expected one of"),
    ],
)
def test_schedules_that_are_none(text: Any, match: str) -> None:
    with pytest.raises(BudgetError, match=match):
        Allocator.parse(text)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([], 5), "at least one number"),
        (([0.0, 0.0], 5), "not all zero"),
        (([1.0, -1.0], 5), "none negative"),
        (([1.0, math.nan], 5), "none negative"),
        (([1.0, math.inf], 5), "none negative"),
        ((["1", 2], 5), "expected at least one number"),
        (([1.0], -5), "total=-5"),
        (([1.0], 2.5), "total=2.5"),
        (([1.0, 1.0], 5, 3), "sum to at most the total"),
        (([1.0, 1.0], 5, 0, 2), "caps that sum to at least"),
        (([1.0, 1.0], 5, [0, 4], [5, 3]), "floors that sum"),
        (([1.0, 1.0], 5, [1]), "one for all steps or one a step"),
        (([1.0, 1.0], 5, True), "whole number"),
    ],
)
@pytest.mark.parametrize("name", ["uniform", "linear", "bam_eq6", "bam_exact", "greedy"])
def test_what_cannot_be_shared_out_is_told(name: str, arguments: Any, match: str) -> None:
    with pytest.raises(BudgetError, match=match):
        Allocator.parse(name)(*arguments)
