"""The budget tracker: regimes, the united cost, what the agent reads, and an agent with a calculator."""

from __future__ import annotations

import ast
import operator
import re
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


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def calculate(text: str) -> int:
    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant):
            return int(node.value)  # type: ignore[arg-type]
        assert isinstance(node, ast.BinOp)
        return OPERATORS[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(text, mode="eval").body)


def run_agent(agent: Callable[[str], str], tracker: BudgetTracker) -> tuple[str, BudgetTracker]:
    """A loop: the agent reads its context, which ends with its budgets, and calls the calculator or answers."""
    context = tracker.text()
    while True:
        reply = agent(context)
        tracker = tracker.think(len(reply.split()))
        call = re.search(r"calculator\((.*)\)", reply)
        if call is None or "calculator" not in tracker.callable_tools():
            return reply, tracker
        tracker = tracker.call("calculator")
        context += f"\n{reply}\n{calculate(call[1])}\n{tracker.text()}"


def test_an_agent_stops_calling_when_its_budget_is_spent() -> None:
    def agent(context: str) -> str:
        latest = context.rpartition("<budget>")[2]
        results = re.findall(r"^(\d+)$", context, re.MULTILINE)
        if "CRITICAL" in latest:
            return f"the answer is {results[-1]}"
        return f"next calculator({results[-1] if results else 1} * 2)"

    reply, tracker = run_agent(agent, BudgetTracker(500, tools={"calculator": ToolBudget(5, price=10)}))
    assert reply == "the answer is 32"
    assert tracker.tools["calculator"].left == 0
    assert tracker.cost == tracker.used + 50
