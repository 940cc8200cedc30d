"""The agent's loop: calls made and refused, results and budgets told, its notes in the thought; and a calculator that is safe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import budgetctl
from budgetctl.errors import BudgetctlError
from budgetctl.evals.agent import QUESTION, scripted
from budgetctl.plan.agent import Message, Reply, ThinkingModel, run_agent
from budgetctl.plan.calculator import CalculatorError, calculate
from budgetctl.plan.tracker import BudgetTracker, ToolBudget
from budgetctl.reasoner.load import load_reasoner

TOOLS = {"calculator": calculate}


def tracker_of(calls: int, tokens: int = 500, price: float = 20) -> BudgetTracker:
    return BudgetTracker(tokens, tools={"calculator": ToolBudget(calls, price)})


def test_a_played_model_works_its_question_out() -> None:
    run = run_agent(QUESTION, scripted, TOOLS, tracker_of(5))
    assert [turn.result for turn in run.turns] == ["391", "779", "56", "1114", None]
    assert run.answer == f"The answer is {17 * 23 + 41 * 19 - 8 * 7}."
    assert run.tracker.cost == run.tracker.used + 4 * 20
    last = run.messages[-2]["content"]
    assert last.startswith("calculator gives 1114\n\n<budget>")
    assert "calculator: 4 calls used, 1 left" in last


def test_calls_beyond_their_budget_are_refused_and_cost_nothing() -> None:
    def stubborn(messages: Sequence[Message], tracker: BudgetTracker) -> Reply:
        return Reply("again\ncalculator: 2 + 2", 7)

    run = run_agent("?", stubborn, TOOLS, tracker_of(2), max_turns=5)
    assert [turn.refused for turn in run.turns] == [False, False, True, True, True]
    assert run.turns[3].result == "refused: no calls of calculator are left"
    assert (run.tracker.tools["calculator"].used, run.tracker.cost) == (2, 35 + 40)
    assert "No more calls of: calculator." in run.messages[-1]["content"]
    none = run_agent("?", stubborn, TOOLS, tracker_of(0), max_turns=1)
    assert none.turns[0].refused


def test_one_reply_is_left_when_the_tokens_are_spent() -> None:
    seen: list[int] = []

    def slow(messages: Sequence[Message], tracker: BudgetTracker) -> Reply:
        seen.append(tracker.left)
        return Reply("calculator: 1 + 1", min(30, tracker.left))

    run = run_agent("?", slow, TOOLS, tracker_of(9, tokens=70))
    assert seen == [70, 40, 10, 0]
    assert run.tracker.used == 70
    assert run.turns[-1].tool is None


def test_a_bad_expression_is_told_and_costs_its_call() -> None:
    replies = iter(["calculator: __import__('os')", "search: x\nnothing more"])
    run = run_agent("?", lambda messages, tracker: Reply(next(replies), 1), TOOLS, tracker_of(3))
    assert str(run.turns[0].result).startswith("error: ")
    assert run.tracker.tools["calculator"].used == 1
    assert run.turns[1].tool is None  # no such tool: a reply
    with pytest.raises(BudgetctlError, match="a budget for each tool"):
        run_agent("?", scripted, TOOLS, BudgetTracker(5))


@pytest.fixture
def thinking() -> Iterator[ThinkingModel]:
    model, tokenizer = load_reasoner()
    installation = budgetctl.install(model, tokenizer)
    yield ThinkingModel(installation, max_new_tokens=320, do_sample=False)
    installation.uninstall()


def test_a_model_thinks_inside_what_is_left_and_reads_it_first(thinking: ThinkingModel) -> None:
    """The reasoner that comes along cannot call tools; what it may spend and what opens its thought are the same."""
    messages = [{"role": "user", "content": "A dial shows 3: turn +4 -1. Where does it stop?"}]
    tracker = tracker_of(3, tokens=400).think(150)
    reply = thinking(messages, tracker)
    assert 0 < reply.note_tokens <= reply.thinking_tokens <= 250
    assert reply.text.startswith("Answer")
    tight = thinking(messages, tracker.think(240))
    assert tight.note_tokens == 0  # ten tokens are left, which the note does not fit into
    assert tight.thinking_tokens <= 10
    run = run_agent(messages[0]["content"], thinking, TOOLS, tracker, max_turns=2)
    assert run.tracker.used == 150 + run.turns[0].reply.thinking_tokens
    assert run.note_tokens == run.turns[0].reply.note_tokens > 0


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("17 * 23 + 1", "392"),
        ("-(2 + 3) ** 2", "-25"),
        ("7 // 2 % 2", "1"),
        ("1 / 4", "0.25"),
        (" 2e3 ", "2000"),
    ],
)
def test_arithmetic(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "2 +",
        "__import__('os').system('true')",
        "(lambda: 1)()",
        "'a' * 3",
        "True + 1",
        "x",
        "[1][0]",
        "2 ** 99999999999",
        "9 ** 9 ** 9 ** 9",
        "(-8) ** 0.5",
        "1e308 * 10",
        "1 / 0",
        "0 ** -1",
        "5 % 0",
        "(" * 300 + "1" + ")" * 300,
        "1 + " * 200 + "1",
        "\x00",
        "1 if 1 else 2",
    ],
)
def test_what_is_no_arithmetic_is_refused(expression: str) -> None:
    with pytest.raises(CalculatorError):
        calculate(expression)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789.+-*/%() e_j", max_size=40))
def test_any_text_has_a_value_or_is_refused(text: str) -> None:
    with contextlib.suppress(CalculatorError):
        float(calculate(text))
