"""The tables of the KV budget are made, and a roomy cache answers as a full one does."""

from __future__ import annotations

import math

import pytest
from typer.testing import CliRunner

from budgetctl.evals.kv_tables import Outcome, app, ask
from budgetctl.reasoner.load import load_reasoner
from budgetctl.reasoner.tasks import take_questions


def test_a_roomy_cache_answers_as_a_full_one() -> None:
    model, tokenizer = load_reasoner()
    questions = take_questions("test", 12, min_level=7)
    full = ask(model, tokenizer, questions)
    assert ask(model, tokenizer, questions, {"capacity": 200}) == full
    assert full.right >= 10
    tight = ask(model, tokenizer, questions, {"capacity": 40, "policy": "window", "recent": 8})
    assert tight.right < full.right


def test_the_standard_error_is_that_of_a_share() -> None:
    assert Outcome(100, 80, 90, 4000, 90).error == pytest.approx(math.sqrt(0.8 * 0.2 / 100))


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["accuracy", "--questions", "4", "--capacities", "64", "--policies", "window,r-kv"], 5),
        (["accuracy", "--questions", "4", "--capacities", "64", "--policies", "tova", "--interval", "0"], 4),
        (["steps", "--lengths", "64", "--batches", "2", "--count", "3"], 3),
    ],
)
def test_tables_are_made(arguments: list[str], rows: int) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == rows
    assert len({line.count("|") for line in lines}) == 1
