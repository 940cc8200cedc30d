"""A run summarised: a small one by hand, a made-up one against plain loops, files written, odd runs."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.errors import EvalError
from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures import shape
from budgetctl.evals.measures.adherence import CLOSES as KINDS
from budgetctl.evals.measures.cells import Resampling
from budgetctl.evals.measures.summary import summarise_run, write_summary
from budgetctl.evals.output import write_jsonl
from tests.evals.measures.fixture import BUDGETS, QUICK, cell_of, make_answer


def test_a_cell_by_hand() -> None:
    answers = [
        make_answer(item="a", thinking_tokens=10, answer_tokens=2, overhead_tokens=4, seconds=1.0),
        make_answer(item="a", seed=1, correct=False, thinking_tokens=20, answer_tokens=4, close="steered"),
        make_answer(item="b", correct=True, thinking_tokens=16, answer_tokens=6, read_tokens=8, leaked=True),
        make_answer(
            item="c", correct=False, score=0.5, thinking_tokens=18, answer_tokens=4, kv_bytes=None, level=5.0
        ),
    ]
    found = cell_of(summarise_run(answers, how=QUICK)["tasks"]["dial"], "hard-cut", 16)
    assert (found["n"], found["questions"], found["seeds"]) == (4, 3, 2)
    means = {
        name: found[name]["mean"]
        for name in ("accuracy", "score", "tokens", "thinking_tokens", "answer_tokens", "overhead_tokens")
    }
    assert means == {
        "accuracy": 0.5,
        "score": 0.625,
        "tokens": 21.0,
        "thinking_tokens": 16.0,
        "answer_tokens": 4.0,
        "overhead_tokens": 1.0,
    }
    assert found["read_tokens"]["mean"] == 2.0
    assert found["close"] == {"natural": 0.75, "steered": 0.25, "forced": 0, "early": 0, "none": 0}
    assert found["violation"] == 0.5
    assert found["overshoot"] == pytest.approx((4 + 2) / 16 / 4)
    assert found["length_error"] == pytest.approx((6 + 4 + 0 + 2) / 16 / 4)
    assert found["leak"] == 0.25
    assert found["e3"] == pytest.approx(50**2 / 20)
    assert found["auc_oaa"] == pytest.approx((0.99 + 0.984) / 4)
    assert found["seconds"]["mean"] == pytest.approx(2.5 / 4)
    assert found["tokens_per_second"] == pytest.approx(84 / 2.5)
    assert found["kv_bytes"] is not None
    assert (found["kv_bytes"]["mean"], found["kv_bytes_peak"]) == (1024, 1024)
    assert (found["token_ratio"], found["calibration"]) == (None, None)
    assert [(one["level"], one["n"], one["accuracy"]["mean"]) for one in found["levels"]] == [
        (3.0, 3, pytest.approx(2 / 3)),
        (5.0, 1, 0.0),
    ]


def test_the_limit_is_what_was_asked_for_else_what_is_in_force() -> None:
    answers = [
        make_answer(budget=16, thinking_budget=8, thinking_tokens=12),
        make_answer(budget=None, effort="low", thinking_budget=8, thinking_tokens=12),
    ]
    asked, effort = summarise_run(answers, how=QUICK)["overall"]["cells"]
    assert (asked["violation"], asked["length_error"]) == (0.0, 0.25)
    assert (effort["violation"], effort["overshoot"]) == (1.0, 0.5)


def test_ratios_are_to_the_base_without_a_limit() -> None:
    answers = [
        make_answer(method="full", budget=budget, thinking_tokens=used, answer_tokens=0)
        for budget, used in ((None, 40), (10, 10))
    ]
    capped, free = summarise_run(answers, how=QUICK)["overall"]["cells"]
    assert (capped["token_ratio"], free["token_ratio"]) == (0.25, 1.0)
    assert summarise_run(answers[1:], how=QUICK)["overall"]["cells"][0]["token_ratio"] is None


def test_cells_against_plain_loops(run: list[Answer], summary: shape.Summary) -> None:
    sections = {**summary["tasks"], None: summary["overall"]}
    for task, section in sections.items():
        told = 0
        for cell in section["cells"]:
            some = [
                one
                for one in run
                if task in (None, one.task)
                and (one.method, one.budget, one.effort) == (cell["method"], cell["budget"], cell["effort"])
            ]
            told += len(some)
            assert cell["n"] == len(some) > 0
            assert cell["accuracy"]["mean"] == pytest.approx(sum(one.correct for one in some) / len(some))
            assert cell["tokens"]["mean"] == pytest.approx(sum(one.tokens for one in some) / len(some))
            assert cell["accuracy"]["low"] <= cell["accuracy"]["mean"] <= cell["accuracy"]["high"]
            full = [one.tokens for one in run if one.method == "full" and task in (None, one.task)]
            assert cell["token_ratio"] == pytest.approx(cell["tokens"]["mean"] / np.mean(full))
            over = [one.thinking_tokens > one.thinking_budget for one in some if one.thinking_budget]
            assert cell["violation"] == (pytest.approx(np.mean(over)) if over else None)
            assert bool(cell["levels"]) == (task is not None)
        assert told == section["n"] == sum(task in (None, one.task) for one in run)


def test_order_of_the_records_does_not_matter(run: list[Answer], summary: shape.Summary) -> None:
    mixed = list(run)
    random.Random(3).shuffle(mixed)
    assert summarise_run(mixed, how=QUICK) == summary


def test_one_task_alone_is_as_in_the_whole_run(run: list[Answer], summary: shape.Summary) -> None:
    alone = summarise_run([one for one in run if one.task == "dial"], how=QUICK)
    assert alone["tasks"]["dial"] == summary["tasks"]["dial"] == alone["overall"]


@pytest.mark.parametrize(
    "answers",
    [
        [make_answer()],
        [make_answer(budget=None, thinking_tokens=0, close="none", level=None, kv_bytes=None, seconds=0.0)],
        [make_answer(budget=0, thinking_tokens=0, answer_tokens=0, item=str(at)) for at in range(3)],
        [make_answer(correct=False, item=str(at), budget=8 * at + 8) for at in range(3)],
        [make_answer(correct=False, method=m, budget=None, effort=e) for m, e in
         (("full", None), ("ours", "low"), ("ours", "medium"), ("ours", "high"))],
        [make_answer(seed=-1), make_answer(method="ours", seed=3)],
    ],
    ids=["one record", "no thought", "no tokens", "all wrong", "wrong base", "no pairs"],
)  # fmt: skip
def test_odd_runs_give_json_without_nan(answers: list[Answer]) -> None:
    found = summarise_run(answers, how=QUICK)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["overall"]["n"] == len(answers)


def test_what_cannot_be_told_is_null() -> None:
    empty = make_answer(
        budget=None, thinking_tokens=0, answer_tokens=0, seconds=0.0, kv_bytes=None, close="none"
    )
    cell = summarise_run([empty], how=QUICK)["overall"]["cells"][0]
    for name in (
        "e3",
        "violation",
        "overshoot",
        "length_error",
        "tokens_per_second",
        "kv_bytes",
        "kv_bytes_peak",
    ):
        assert cell[name] is None
    unpaired = summarise_run([make_answer(seed=-1), make_answer(method="ours", seed=3)], how=QUICK)
    (comparison,) = unpaired["overall"]["comparisons"]
    assert (comparison["pairs"], comparison["gain"], comparison["matched"]) == (0, None, None)


def test_the_shape_is_as_declared(summary: shape.Summary) -> None:
    def check(value: dict[str, Any], kind: Any) -> None:
        assert set(value) == set(get_type_hints(kind))

    check(summary, shape.Summary)
    for section in (summary["overall"], *summary["tasks"].values()):
        check(section, shape.Section)
        for cell in section["cells"]:
            check(cell, shape.Cell)
            check(cell["accuracy"], shape.MeanInterval)
            for level in cell["levels"]:
                check(level, shape.Level)
        for method in section["methods"].values():
            check(method, shape.Method)
            for point in method["points"]:
                check(point, shape.Point)
            if method["area_shared"]:
                check(method["area_shared"], shape.SharedArea)
        for comparison in section["comparisons"]:
            check(comparison, shape.Comparison)
            assert comparison["matched"] is not None
            check(comparison["matched"], shape.Matched)
    calibration = cell_of(summary["overall"], "full")["calibration"]
    assert calibration is not None
    check(calibration, shape.Calibration)
    assert math.isclose(sum(calibration["pit"]), 1)


def test_files_of_a_run(run: list[Answer], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "records.jsonl", (one.as_dict() for one in run))
    path = write_summary(tmp_path)
    assert path == tmp_path / "summary.json"
    assert json.loads(path.read_text(encoding="utf-8")) == summarise_run(run)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert [line for line in table.splitlines() if line.startswith("## ")] == [
        "## All tasks (16 questions)",
        "## chain (8 questions)",
        "## dial (8 questions)",
    ]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 3 * (2 + 3 + 3 * len(BUDGETS) + 3)
    assert len({line.count("|") for line in rows}) == 1
    kept = path.read_bytes()
    (tmp_path / "records.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(EvalError, match=r"records.jsonl:1: "):
        write_summary(tmp_path)
    assert path.read_bytes() == kept
    assert sorted(one.name for one in tmp_path.iterdir()) == ["records.jsonl", "summary.json", "table.md"]


answers_of_a_run = st.lists(
    st.builds(
        make_answer,
        task=st.sampled_from(("chain", "dial")),
        item=st.sampled_from("abc"),
        method=st.sampled_from(("full", "hard-cut", "ours")),
        budget=st.sampled_from((None, 0, 8, 16)),
        effort=st.sampled_from((None, "low", "medium", "high", 0.5)),
        seed=st.integers(-1, 2),
        level=st.sampled_from((None, 1.0, 2.0)),
        correct=st.booleans(),
        thinking_tokens=st.integers(0, 40),
        answer_tokens=st.integers(0, 3),
        close=st.sampled_from(KINDS),
        predicted_tokens=st.sampled_from((None, 12.0)),
        predicted_cdf=st.sampled_from((None, 0.0, 0.4, 1.0)),
        seconds=st.sampled_from((0.0, 1.5)),
        kv_bytes=st.sampled_from((None, 0, 99)),
    ),
    min_size=1,
    max_size=24,
    unique_by=lambda one: (one.cell, one.item),
)


@given(answers_of_a_run, st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_any_run_is_json_in_any_order(answers: list[Answer], order: random.Random) -> None:
    how = Resampling(resamples=20)
    found = summarise_run(answers, how=how)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    mixed = list(answers)
    order.shuffle(mixed)
    assert summarise_run(mixed, how=how) == found
    assert sum(cell["n"] for cell in found["overall"]["cells"]) == len(answers)
    again = [replace(one, seed=one.seed + 10) for one in answers]
    twice = summarise_run([*answers, *again], how=how)["overall"]
    for cell, double in zip(found["overall"]["cells"], twice["cells"], strict=True):
        assert double["accuracy"] == pytest.approx(cell["accuracy"])
        assert (double["n"], double["questions"]) == (2 * cell["n"], cell["questions"])
