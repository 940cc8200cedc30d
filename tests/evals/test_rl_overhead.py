"""Timed steps of TRL's trainer and ours: the same work, and the tables' arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

pytest.importorskip("trl")

from budgetctl.delimiters import find_delimiters
from budgetctl.evals import rl_overhead
from budgetctl.evals.rl_overhead import cost_table, model_directory, operator_table
from budgetctl.evals.rl_steps import PARTS, StepTimes, Work, step_times, step_trainer, top_operators
from budgetctl.reasoner.load import WEIGHTS, load_reasoner

WORK = Work(str(WEIGHTS), rows=2, group=2, tokens=12)


def turn(*steps: float) -> StepTimes:
    times = StepTimes()
    times.steps = list(steps)
    times.parts = {part: [step / 8 for step in steps] for part in PARTS}
    return times


def test_costs_are_medians_and_ratios_are_taken_turn_by_turn() -> None:
    found = {"trl": [turn(1.0, 2.0, 3.0), turn(8.0, 8.0, 8.0)], "hbpo": [turn(3.0, 3.0, 3.0), turn(4.0)]}
    head, _, first, second = cost_table(found, WORK)
    assert head.count("|") == first.count("|")
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells == [
        "TRL's GRPOTrainer",
        "6",
        "5.50",
        *["12%"] * 4,
        "50%",
        f"{2 * 12 / 5.5:.0f}",
        "1.000 (1.000 to 1.000)",
    ]
    assert second.endswith("| 1.000 (0.500 to 1.500) |")


def test_operators_stand_side_by_side() -> None:
    found = {"trl": [("aten::mm", 0.25, 3), ("others", 0.75, 4)], "grpo": [("aten::bmm", 0.5, 1)] * 2}
    assert operator_table(found)[2:] == [
        "| aten::mm 25% (3) | aten::bmm 50% (1) |",
        "| others 75% (4) | aten::bmm 50% (1) |",
    ]


@pytest.mark.parametrize("name", ["trl", "grpo", "hbpo", "elastic"])
def test_every_trainer_samples_as_many_tokens(name: str, tmp_path: Path) -> None:
    _, tokenizer = load_reasoner()
    close = len(find_delimiters(tokenizer).forced_end_ids)
    trainer = step_trainer(name, WORK, 2, str(tmp_path))
    trainer.train()
    expected = WORK.tokens - (close if name == "elastic" else 0)
    logged = trainer.state.log_history[-1]
    assert logged["completions/min_length"] == logged["completions/max_length"] == expected


def test_parts_are_within_a_step_and_adapters_can_be_trained(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    work = Work(str(WEIGHTS), rows=2, group=2, tokens=12, lora=4)
    times = step_times("hbpo", work, 2, str(tmp_path))
    assert len(times.steps) == 2
    for number, step in enumerate(times.steps):
        parts = [times.parts[part][number] for part in PARTS]
        assert min(parts) > 0
        assert sum(parts) < step


def test_a_profiled_step_has_matrix_products_and_shares_that_sum_to_one(tmp_path: Path) -> None:
    rows = top_operators("grpo", WORK, str(tmp_path), 4)
    assert len(rows) == 5
    assert rows[-1][0] == "others"
    assert sum(share for _, share, _ in rows) == pytest.approx(1)
    assert any("mm" in name for name, _, _ in rows[:-1])


def test_an_unknown_trainer_is_named() -> None:
    with pytest.raises(typer.BadParameter, match=r"trainers grop: expected some of trl, grpo"):
        rl_overhead.main(trainers="trl,grop")


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    with model_directory(str(tmp_path)) as folder:
        assert folder == str(tmp_path)
    with model_directory("reasoner") as folder:
        assert folder == str(WEIGHTS)
