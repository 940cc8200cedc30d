"""Examples whose named budget was kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from budgetctl.evals import rl_distill
from budgetctl.reasoner.load import load_reasoner
from budgetctl.spelling import encode


@dataclass(frozen=True)
class Answered:
    correct: bool


def test_right_answers_stand_behind_the_budget_that_was_kept() -> None:
    rows = rl_distill.distilled_rows(
        ["P", "P", "P"],
        [Answered(True), Answered(False), Answered(True)],  # type: ignore[list-item]
        ["long", "wrong", "short"],
        [0, 24, 48],
        "Within {budget}.\n",
    )
    assert rows == [
        {"prompt": "P", "completion": "long", "budget": 0},
        {"prompt": "PWithin 48.\n", "completion": "short", "budget": 48},
    ]


def test_completions_fit_their_budgets_and_carry_no_sentence(tmp_path: Path) -> None:
    out = tmp_path / "examples.jsonl"
    rl_distill.main(out, count=6, budgets="24,60", limit=120, seed=3, batch=18, opening="In {budget}.\n")
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    tokenizer = load_reasoner()[1]
    assert {row["budget"] for row in rows} == {0, 24, 60}
    for row in rows:
        assert row["prompt"].endswith(f"In {row['budget']}.\n") == bool(row["budget"])
        assert "In " not in row["completion"]
        if row["budget"]:
            assert len(encode(tokenizer, row["completion"])) <= row["budget"] + 4, row


@pytest.mark.parametrize("size", [1, 12, 13])
def test_a_small_budget_leaves_at_least_one_token_of_thought(size: int) -> None:
    assert rl_distill.thinking_of(size, 160) >= 1
