"""The online knapsack: its competitive ratio on adversarial orders, and what it refuses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.errors import BudgetError
from budgetctl.plan.online import KnapsackThreshold


def bought(rule: KnapsackThreshold, offers: list[tuple[float, float]]) -> tuple[float, float]:
    value = spent = 0.0
    for worth, cost in offers:
        if rule.buys(worth, cost, spent):
            value, spent = value + worth, spent + cost
    return value, spent


def best(budget: float, offers: list[tuple[float, float]]) -> float:
    """Most value by knowing all offers, fractions of the last one allowed."""
    value, left = 0.0, budget
    for worth, cost in sorted(offers, key=lambda o: -o[0] / o[1]):
        taken = min(left, cost)
        value, left = value + worth * taken / cost, left - taken
    return value


@given(
    st.floats(1.0, 50),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 400)), min_size=1, max_size=12),
    st.booleans(),
)
def test_never_worse_than_the_ratio(spread: float, groups: list[tuple[float, int]], rising: bool) -> None:
    """Groups of equal offers of one token each, in any order and from bad to good, which is the worst case."""
    rule = KnapsackThreshold(500, 0.2, 0.2 * spread)
    groups = sorted(groups) if rising else groups
    offers = [(0.2 * spread**place, 1.0) for place, count in groups for _ in range(count)]
    value, spent = bought(rule, offers)
    assert spent <= 500
    # Each offer is a 500th of the budget, so that the bound is met up to that.
    assert value * rule.ratio >= best(500, offers) * (1 - 2 * rule.ratio / 500)


def test_the_adversary_that_stops_when_it_hurts_most() -> None:
    """Ever better offers, each enough to fill the budget; the adversary may stop after any: the ratio holds after each."""
    rule = KnapsackThreshold(4_000, 1.0, 100.0)
    offers: list[tuple[float, float]] = []
    worst = 0.0
    for step in range(12):
        offers += [(100 ** (step / 11), 1.0)] * 4_000
        value, _ = bought(rule, offers)
        worst = max(worst, best(4_000, offers) / value)
    assert 0.7 * rule.ratio < worst <= rule.ratio * 1.001


def test_price_by_what_is_spent() -> None:
    rule = KnapsackThreshold(100, 2.0, 20.0)
    assert rule.price(0) == pytest.approx(2 / math.e)
    assert rule.price(100) == pytest.approx(20.0)
    free = 100 / rule.ratio
    assert rule.price(free) == pytest.approx(2.0)  # until then every offer is taken
    assert rule.buys(2.0 * 5, 5, free - 1)
    assert not rule.buys(2.0 * 5, 5, free + 5)
    assert not rule.buys(1000.0, 5, 96)
    assert not rule.buys(0.0, 0, 0)
    assert not rule.buys(math.nan, 1, 0)


@pytest.mark.parametrize("values", [(0, 1, 2), (10, 0, 2), (10, 3, 2), (10, 1, math.inf), (math.nan, 1, 2)])
def test_ranges_that_are_none(values: tuple[float, float, float]) -> None:
    with pytest.raises(BudgetError, match="0 < low <= high"):
        KnapsackThreshold(*values)
