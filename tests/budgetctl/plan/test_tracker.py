"""The budget tracker: regimes, the united cost, and what the agent reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from budgetctl.errors import BudgetError
from budgetctl.plan.tracker import BudgetTracker, ToolBudget, regime_of


@pytest.mark.parametrize(
    ("part", "regime"),
    [
        (1, "HIGH"),
        (0.7, "HIGH"),
        (0.69, "MEDIUM"),
        (0.3, "MEDIUM"),
        (0.29, "LOW"),
        (0.1, "LOW"),
        (0.09, "CRITICAL"),
        (0, "CRITICAL"),
    ],
)
def test_regimes(part: float, regime: str) -> None:
    assert regime_of(part) == regime
    assert BudgetTracker(100, used=100 - round(100 * part)).regime == regime


def test_the_scarcest_budget_decides_and_one_cost_unites_them() -> None:
    tools = {"search": ToolBudget(10, price=50), "calculator": ToolBudget(4)}
    tracker = BudgetTracker(1000, tools=tools).think(200)
    assert (tracker.regime, tracker.cost) == ("HIGH", 200)
    for _ in range(3):
        tracker = tracker.call("calculator")
    assert (tracker.regime, tracker.cost) == ("LOW", 200)
    tracker = tracker.call("search").call("calculator")
    assert (tracker.regime, tracker.cost, tracker.callable_tools()) == ("CRITICAL", 250, ["search"])
    assert tools["search"].used == 0
    with pytest.raises(BudgetError, match=r"spent after 4 calls: expected one of \['search'\]"):
        tracker.call("calculator")
    with pytest.raises(BudgetError, match="unknown"):
        tracker.call("browser")
    assert tracker.text() == (
        "<budget>\nThinking tokens: 200 used, 800 left\nsearch: 1 calls used, 9 left\ncalculator: 4 calls used, 0 left\n"
        "No more calls of: calculator.\nCRITICAL: Answer now with what is known.\n</budget>"
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: BudgetTracker(-1),
        lambda: BudgetTracker(2.5),  # type: ignore[arg-type]
        lambda: BudgetTracker(None),  # type: ignore[arg-type]
        lambda: BudgetTracker(5).think(-1),
        lambda: ToolBudget(-1),
        lambda: ToolBudget(1, price=float("nan")),
        lambda: ToolBudget(1, price=-2),
    ],
)
def test_numbers_that_are_none(make: Callable[[], object]) -> None:
    with pytest.raises(BudgetError):
        make()
