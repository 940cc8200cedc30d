"""The comparison of plans: its questions, its numbers, and the command from start to files on the tiny reasoner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from budgetctl.evals import plan as evaluation
from budgetctl.evals.load import LoadedModel, load_model
from budgetctl.evals.plan_arms import breaks_off, shown_prompt, uses_of
from budgetctl.evals.runner import Record
from budgetctl.predictors.artifact import describe_model, save_predictor
from budgetctl.predictors.gamma import GammaLengthPredictor, GammaPredictorConfig
from budgetctl.reasoner.plans import plan_question
from budgetctl.reasoner.tasks import take_questions

PAIRS = evaluation.take_pairs("tune", 3)


def test_the_questions_have_two_parts_and_enough_turns() -> None:
    assert len({q.prompt for q in PAIRS}) == 3
    for question in PAIRS:
        assert (question.family, question.level >= 4) == ("pair", True)
        plan = plan_question(question.prompt)
        turns = [len(part.operations) for part in question.parts]
        assert [step.weight for step in plan.steps] == [9.0 * turns[0], 9.0 * turns[1], 8.0]
        assert question.parts[1].states[0] + question.parts[1].operations[0] == plan.steps[1].heading
        assert evaluation.budget_of(question, 4.5) == round(4.5 * question.level) + 9


def test_every_other_question_is_a_single_step() -> None:
    others = [q for q in take_questions("tune", 40) if q.family != "pair"]
    assert len(others) > 10
    assert all(plan_question(q.prompt).source == "fallback" for q in others)


def test_e3_is_the_square_of_percent_over_tokens() -> None:
    value, low, high = evaluation.e3(np.array([1.0, 1, 1, 0]), np.array([40.0, 50, 60, 50]))
    assert value == pytest.approx(75**2 / 50)
    assert low < value < high
    assert evaluation.e3(np.ones(4), np.full(4, 20.0)) == (500.0, 500.0, 500.0)


def test_steps_are_told_from_the_tokens_of_an_answer(loaded: LoadedModel, record: Record) -> None:
    question = PAIRS[0]
    plan = plan_question(question.prompt)
    first, second = "9+3=2\n", f"{plan.steps[1].heading}=7\n"
    texts = [f"{first}{second}Sum 2+7=9\n", first + second, ""]
    rows = []
    for text in texts:
        ids = loaded.tokenizer.encode(text + "</think>\n\nAnswer: 9<|im_end|>", add_special_tokens=False)
        used = len(loaded.tokenizer.encode(text, add_special_tokens=False))
        rows.append(replace(record, new_ids=tuple(ids), thinking_tokens=used, thinking_budget=20))
    uses = uses_of(loaded, rows, [plan] * 3)
    sizes = [
        len(loaded.tokenizer.encode(part, add_special_tokens=False))
        for part in (first, second, "Sum 2+7=9\n")
    ]
    assert [[step.used for step in steps] for steps in uses] == [sizes, [*sizes[:2], 0], [0, 0, 0]]
    assert [step.begun for step in uses[1]] == [True, True, False]
    assert sum(step.share for step in uses[0]) == 20
    assert uses[0][2].inside == (sum(sizes) <= 20)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("9+3=2\n1-4=7\nSum 2+7=9\n", False),
        ("9+3=2\n2-\n1-4=7\n", True),
        ("9+3=2\n2-1=\n1-4=7\n", True),
        ("9+3=2\n1-4", False),
        ("We are at 9, then +3 brings us to 2.\nWe are at 1\nSum 2+7=9\n", True),
        ("9+3=2\ncheck 2 -3 is 9 ok\nWait, check again.\n9+3=2\nSame.\nSum 2+7=9\n", False),
    ],
)
def test_a_line_without_its_result_is_broken_off(
    text: str, broken: bool, loaded: LoadedModel, record: Record
) -> None:
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    assert breaks_off(loaded, replace(record, new_ids=tuple(ids), thinking_tokens=len(ids))) == broken


def test_what_the_published_system_shows() -> None:
    plan = plan_question(PAIRS[0].prompt)
    words = shown_prompt(PAIRS[0], plan, 60, "step")
    assert words.startswith(PAIRS[0].prompt)
    assert words.count("(at most ") == 3
    assert "Use at most 21 words in all." in shown_prompt(PAIRS[0], plan, 60, "all")
    assert "at most" not in shown_prompt(PAIRS[0], plan, 60, None)


@pytest.fixture(scope="module")
def paths(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reasoner")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    head = loaded.model.get_output_embeddings().weight.detach().float()
    torch.manual_seed(0)
    predictor = GammaLengthPredictor(GammaPredictorConfig(16, 8, 2))
    with torch.no_grad():
        predictor.set_scales(torch.randn(64, 16), head)
    save_predictor(predictor, folder / "predictor", describe_model(head, loaded.delimiters, "tiny"))
    return {"model": str(folder), "predictor": str(folder / "predictor")}


def test_the_command_and_its_second_run(
    paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "MIDDLE", evaluation.MIDDLE[1:2])
    asked: dict[str, Any] = {**paths, "count": 2, "a_turn": "3", "max_new_tokens": 30, "out": tmp_path}
    evaluation.main(**asked)
    rows = json.loads((tmp_path / "summary.json").read_text())
    names = [row["system"] for row in rows]
    assert names == ["no plan", *(arm.name for arm, _ in (*evaluation.ALWAYS, *evaluation.MIDDLE))]
    for row in rows:
        if row["system"].startswith(("one cap", "steps")):
            assert row["over_budget"] == 0.0
    assert all("planner_tokens" in row for row in rows if row["system"].startswith(("steps", "plan")))
    first = (tmp_path / "table.md").read_text()
    model = load_model(**paths, with_predictor=True).model

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(model.__class__, "generate", refuse)
    evaluation.main(**asked)
    assert (tmp_path / "table.md").read_text() == first
