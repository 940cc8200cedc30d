"""Tables and curves of before and after."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from budgetctl.evals.rl_curves import accuracy_table, draw, learning_curve, length_table, smooth
from budgetctl.evals.rl_warm_up import least_budget
from budgetctl.evals.runner import Record

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


def test_smoothing_is_a_mean_of_the_last_values() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    expected = [np.mean(values[max(0, i - 2) : i + 1]) for i in range(len(values))]
    assert smooth(values, 3) == pytest.approx(expected)


def test_curves_are_read_from_the_trainers_state_and_drawn(
    records: dict[str, dict[int | None, list[Record]]], tmp_path: Path
) -> None:
    log = [
        {"num_tokens": 100 * i, "rewards/accuracy/mean": i / 4, "rollout/thinking_tokens": 9 - i}
        for i in range(4)
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [*log, {"train_loss": 0.1}]}))
    assert learning_curve(tmp_path, "rollout/thinking_tokens") == ([0, 100, 200, 300], [9, 8, 7, 6])
    draw({"hbpo": tmp_path}, records, tmp_path / "plots" / "curves.png")
    assert (tmp_path / "plots" / "curves.png").stat().st_size > 10_000


def test_an_example_names_the_least_budget_that_holds_it() -> None:
    assert [least_budget(n, [96, 24, 48]) for n in (1, 24, 25, 96, 97)] == [24, 24, 48, 96, None]
