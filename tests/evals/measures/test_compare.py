"""Gains over a reference: paired by hand, and over its interpolated curve."""

from __future__ import annotations

import numpy as np
import pytest

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures import shape
from budgetctl.evals.measures.summary import summarise_run
from tests.evals.measures.fixture import BUDGETS, QUICK, cell_of, make_answer


def test_gain_at_the_same_budget_is_paired(run: list[Answer], summary: shape.Summary) -> None:
    right = {(o.method, o.budget, o.effort, o.task, o.item, o.seed): o for o in run}
    for one in summary["overall"]["comparisons"]:
        assert one["reference"] == "hard-cut" != one["method"]
        pairs = [
            (a, b)
            for (method, budget, effort, *key), a in right.items()
            if (method, budget, effort) == (one["method"], one["budget"], one["effort"])
            for b in [right.get(("hard-cut", budget, effort, *key))]
            if b is not None
        ]
        assert one["pairs"] == len(pairs) == (32 if one["budget"] in BUDGETS else 0)
        if pairs:
            assert one["gain"] is not None
            assert one["token_gain"] is not None
            assert one["gain"]["mean"] == pytest.approx(np.mean([a.correct - b.correct for a, b in pairs]))
            assert one["token_gain"]["mean"] == pytest.approx(
                np.mean([a.tokens - b.tokens for a, b in pairs])
            )
        else:
            assert one["gain"] is one["token_gain"] is None


def test_gain_at_equal_tokens_is_over_the_interpolated_curve(summary: shape.Summary) -> None:
    for section in (summary["overall"], *summary["tasks"].values()):
        points = section["methods"]["hard-cut"]["points"]
        tokens, accuracies = ([point[name] for point in points] for name in ("tokens", "accuracy"))
        assert tokens == sorted(tokens)
        for one in section["comparisons"]:
            cell, matched = cell_of(section, one["method"], one["budget"], one["effort"]), one["matched"]
            assert matched is not None
            line = np.interp(cell["tokens"]["mean"], tokens, accuracies)
            assert matched["tokens"] == pytest.approx(cell["tokens"]["mean"])
            assert matched["reference_accuracy"] == pytest.approx(line)
            assert matched["gain"]["mean"] == pytest.approx(cell["accuracy"]["mean"] - line)
            assert matched["inside"] == (tokens[0] <= cell["tokens"]["mean"] <= tokens[-1])
            assert matched["reference_tokens"] == pytest.approx(
                np.clip(cell["tokens"]["mean"], tokens[0], tokens[-1])
            )


def test_another_reference(run: list[Answer]) -> None:
    found = summarise_run(run, reference="budgetctl", how=QUICK)
    assert found["reference"] == "budgetctl"
    compared = {one["method"]: one for one in found["overall"]["comparisons"] if one["budget"] == 32}
    gain = summarise_run(run, how=QUICK)["overall"]["comparisons"]
    (back,) = (one for one in gain if (one["method"], one["budget"]) == ("budgetctl", 32))
    assert compared["hard-cut"]["gain"] is not None
    assert back["gain"] is not None
    assert compared["hard-cut"]["gain"]["mean"] == pytest.approx(-back["gain"]["mean"])
    assert compared["hard-cut"]["gain"]["low"] == pytest.approx(-back["gain"]["high"])


def test_only_what_all_settings_answered_is_matched() -> None:
    budgets = (8, 16)
    answers = [
        make_answer(item=item, budget=budget, thinking_tokens=budget, answer_tokens=0, correct=budget == 16)
        for budget in budgets
        for item in "abc"
        if (budget, item) != (16, "c")
    ]
    answers += [
        make_answer(method="ours", item=item, budget=None, thinking_tokens=10, answer_tokens=2, correct=True)
        for item in "bcd"
    ]
    (one,) = summarise_run(answers, how=QUICK)["overall"]["comparisons"]
    assert one["pairs"] == 0
    assert one["matched"] is not None
    assert one["matched"]["pairs"] == 1
    assert one["matched"]["reference_accuracy"] == 0.5
    assert one["matched"]["gain"] == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_the_same_budget_with_another_effort_is_not_the_same() -> None:
    answers = [
        make_answer(effort="low"),
        make_answer(method="ours"),
        make_answer(method="ours", effort="low"),
    ]
    low, plain = summarise_run(answers, how=QUICK)["overall"]["comparisons"]
    assert (low["effort"], low["pairs"], plain["effort"], plain["pairs"]) == ("low", 1, None, 0)
