"""Tables and curves of before and after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budgetctl.evals import rl_curves, rl_openings, rl_warm_up
from budgetctl.evals.load import load_model
from budgetctl.evals.rl_curves import (
    accuracy_table,
    difference_table,
    draw,
    learning_curve,
    length_table,
    smooth,
)
from budgetctl.evals.rl_warm_up import least_budget, question_rows
from budgetctl.evals.runner import Record
from budgetctl.reasoner.load import WEIGHTS, load_reasoner
from budgetctl.reasoner.tasks import take_questions

pytest.importorskip("matplotlib")


def record(index: int, level: int, tokens: int, correct: bool) -> Record:
    return Record(
        index=index,
        family="dial",
        level=level,
        seed=index,
        thinking_tokens=tokens,
        answer_tokens=5,
        thinking_budget=None,
        predicted_tokens=None,
        close="natural",
        leaked=False,
        correct=correct,
        new_ids=(1,),
    )


@pytest.fixture
def records() -> dict[str, dict[int | None, list[Record]]]:
    levels = range(1, 11)
    before = [record(i, level, 10 * level, level < 6) for i, level in enumerate(levels)]
    after = [record(i, level, 5 * level, level < 8) for i, level in enumerate(levels)]
    return {"before": {16: before, None: before}, "hbpo": {16: after, None: after}}


def test_tables_hold_means_and_paired_differences(
    records: dict[str, dict[int | None, list[Record]]],
) -> None:
    head, _, first, last = accuracy_table(records)
    assert head == "| thinking budget | before | hbpo |"
    assert first.startswith("| 16 | 0.500 [")
    assert "| 0.700 [" in first
    assert "; +0.200 [" in first
    assert last.startswith("| none | 0.500")
    lengths = length_table(records)
    assert lengths[2].startswith("| 1-2 | 15 [10, 20] at 1.00 | 8 [")
    assert lengths[-1].startswith("| all | 55 [")


def test_runs_are_compared_with_a_reference(records: dict[str, dict[int | None, list[Record]]]) -> None:
    records["brpo"] = records["before"]
    head, _, *rows = difference_table(records, "hbpo")
    assert head == "| thinking budget, less hbpo | brpo |"
    assert [row.split("[")[0] for row in rows] == ["| 16 | -0.200 ", "| none | -0.200 "]


def test_runs_of_other_seeds_count_once_a_question(
    records: dict[str, dict[int | None, list[Record]]],
) -> None:
    records["both"] = {budget: kept + records["before"][budget] for budget, kept in records["hbpo"].items()}
    _, _, first, *_ = accuracy_table(records)
    cells = first.split(" | ")
    assert cells[3].startswith("0.600 [")
    assert " (0.700, 0.500); +0.100 [" in cells[3]
    # Two runs with the same answers say no more of the questions than one.
    records["both"] = {budget: 2 * kept for budget, kept in records["hbpo"].items()}
    _, _, first, *_ = accuracy_table(records)
    cells = first.strip("| ").split(" | ")
    assert cells[3].replace(" (0.700, 0.700)", "") == cells[2]
    *_, last = length_table(records)
    assert last.split(" | ")[2] == last.strip("| ").split(" | ")[3]
    *_, last = difference_table(records, "both")
    assert last == "| none | +0.000 [+0.000, +0.000] |"


def test_smoothing_is_a_mean_of_the_last_values() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    expected = [np.mean(values[max(0, i - 2) : i + 1]) for i in range(len(values))]
    assert smooth(values, 3) == pytest.approx(expected)


def test_curves_are_read_from_the_trainers_state_and_drawn(
    records: dict[str, dict[int | None, list[Record]]], tmp_path: Path
) -> None:
    log = [{"step": i, "rewards/accuracy/mean": i / 4, "rollout/thinking_tokens": 9 - i} for i in range(4)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [*log, {"train_loss": 0.1}]}))
    assert learning_curve(tmp_path, "rollout/thinking_tokens") == ([0, 1, 2, 3], [9, 8, 7, 6])
    draw({"hbpo": [tmp_path, tmp_path]}, records, tmp_path / "plots" / "curves.png")
    assert (tmp_path / "plots" / "curves.png").stat().st_size > 10_000


def test_an_example_names_the_least_budget_that_holds_it() -> None:
    assert [least_budget(n, [96, 24, 48]) for n in (1, 24, 25, 96, 97)] == [24, 24, 48, 96, None]


def test_a_question_stands_once_plain_and_once_under_each_budget_that_it_has_thoughts_of() -> None:
    answers = [("long", 40), ("short", 8), ("shorter", 7), ("endless", 99)]
    rows = question_rows("Q:", answers, [16, 32, 64], {16: "16.", 32: "32.", 64: "64."})
    assert [tuple(row.values()) for row in rows] == [
        ("Q:", "long", 0),
        ("Q:64.", "long", 64),
        ("Q:16.", "short", 16),
    ]
    assert question_rows("Q:", [], [16], {16: "16."}) == []


def test_warm_up_examples_fit_the_budget_they_name_and_no_smaller_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"count": 6, "samples": 3, "budgets": "16,32,64", "limit": 64, "seed": 1}
    rl_warm_up.main(tmp_path / "w.jsonl", batch=9, opening="Within {budget}.\n", **options)
    rows = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
    _, tokenizer = load_reasoner()
    plain = [row["prompt"] for row in rows if row["budget"] == 0]
    opened = [row for row in rows if row["budget"]]
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert len(opened) > len(plain) > 0  # some question under two budgets
    for row in opened:
        prompt, sentence = row["prompt"].split("<think>\n")
        assert prompt + "<think>\n" in plain
        assert sentence == f"Within {row['budget']}.\n"
        length = len(tokenizer(row["completion"], add_special_tokens=False).input_ids)
        assert {16: 0, 32: 16, 64: 32}[row["budget"]] < length <= row["budget"]
    assert all(row["completion"].endswith("<|im_end|>") for row in rows)


def test_the_evaluation_runs_and_goes_on_from_its_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "same")
    log = [{"step": 1, "rewards/accuracy/mean": 1.0, "rollout/thinking_tokens": 3.0}]
    (tmp_path / "same" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    monkeypatch.setattr(rl_curves, "BUDGETS", (8,))
    options: dict[str, Any] = {"count": 3, "out": tmp_path / "eval", "figure": tmp_path / "curves.png"}
    after = [f"same={tmp_path / 'same'}"]
    rl_curves.main(str(WEIGHTS), after, **options)
    first = capsys.readouterr().out
    assert "; +0.000 [+0.000, +0.000] |" in first  # the same weights and noise
    assert (tmp_path / "curves.png").exists()
    monkeypatch.setattr(rl_curves, "ask", None)
    rl_curves.main(str(WEIGHTS), after, **options)
    assert capsys.readouterr().out == first


def test_thoughts_are_opened_by_the_sentence_and_counted_without_it() -> None:
    loaded = load_model(None)
    questions = take_questions("test", 3)
    plain = rl_openings.opened_thoughts(loaded, questions, "", 48)
    assert rl_openings.opened_thoughts(loaded, questions[:1], "", 48) == ([plain[0][0]], [plain[1][0]])
    assert any(plain[1])
    closed = rl_openings.opened_thoughts(loaded, questions, "Stop.\n", 48)
    assert closed[0] != plain[0]
    assert max(plain[0]) <= 48
