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
from budgetctl.evals.plan_arms import Arm, breaks_off, shown_prompt, uses_of
from budgetctl.evals.runner import Record
from budgetctl.plan.allocators import ALLOCATORS
from budgetctl.plan.parse import parse_plan
from budgetctl.plan.plan import Plan
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


class Written:
    """Plans the first question as the rule does, in other shares, and fails at the others."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def __call__(self, question: str) -> Plan:
        self.seen.append(question)
        if len(self.seen) > 1:
            return Plan.single(question, planner_tokens=70)
        text = json.dumps({"steps": [{"text": s.text, "credit": 5} for s in plan_question(question).steps]})
        return parse_plan(text, planner_tokens=30)


def test_rows_of_a_model_that_plans(
    paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    given: list[object] = []

    def load(*arguments: object) -> Written:
        given.extend(arguments)
        return Written(seen)

    monkeypatch.setattr(evaluation, "load_planner", load)
    monkeypatch.setattr(evaluation, "MIDDLE", ())
    few = ("one cap, cut", "steps weighted, cut", "one cap, steered", "steps weighted, steered")
    monkeypatch.setattr(evaluation, "ALWAYS", [pair for pair in evaluation.ALWAYS if pair[0].name in few])
    evaluation.main(
        **paths,
        count=2,
        a_turn="3",
        max_new_tokens=30,
        planner_model=tmp_path / "small",
        planner_prompt="Plan {question}",
        out=tmp_path,
    )
    assert given == [tmp_path / "small", tmp_path / "plans", "Plan {question}"]
    assert seen == [question.prompt for question in evaluation.take_pairs("test", 2)]
    rows = {row["system"]: row for row in json.loads((tmp_path / "summary.json").read_text())}
    planned = [row for name, row in rows.items() if name.endswith("planned by small")]
    assert len(planned) == 3
    for row in planned:
        assert (row["planner_tokens"], row["fallbacks"], row["over_budget"]) == (50.0, 0.5, 0.0)
        correct, tokens = 100 * row["accuracy"], row["tokens"]
        assert row["e3_with_planner"] == pytest.approx(correct**2 / (tokens + 50))
    assert rows["steps weighted, cut"]["fallbacks"] == 0.0
    agreed = json.loads((tmp_path / "planner.json").read_text())
    assert (agreed["planned"], agreed["same_steps"], agreed["same_credits"]) == (0.5, 0.5, 0.0)
    # A plan that has changed is not answered by what was kept.
    kept = set(tmp_path.glob("*planned-by-small*.jsonl"))
    seen.clear()
    monkeypatch.setattr(evaluation, "load_planner", lambda *arguments: plan_question)
    evaluation.main(
        **paths, count=2, a_turn="3", max_new_tokens=30, planner_model=tmp_path / "small", out=tmp_path
    )
    assert len(set(tmp_path.glob("*planned-by-small*.jsonl")) - kept) == 3
    rows = {row["system"]: row for row in json.loads((tmp_path / "summary.json").read_text())}
    for name in ("steps weighted, cut", "steps weighted, steered"):
        ours, rule = rows[f"{name}, planned by small"], rows[name]
        assert ours["thinking_tokens"] == rule["thinking_tokens"]
        assert (ours["planner_tokens"], rule["planner_tokens"] > 50) == (0.0, True)


def test_what_a_planner_may_cost(loaded: LoadedModel, record: Record) -> None:
    """With as many tokens for the plan the square of accuracy over tokens is that of the reference."""
    rows = [replace(record, correct=value, new_ids=(5,) * 18) for value in (True, True, True, False)]
    reference = [replace(row, correct=at < 2) for at, row in enumerate(rows)]
    plans = [plan_question(PAIRS[0].prompt)] * 4
    arm = Arm("steps", "cut", schedule="weighted")
    row = evaluation.summarise(loaded, arm, rows, plans, reference, [1] * 4)
    worth = row["planner_tokens_worth"]
    assert worth == pytest.approx(75**2 / (50**2 / 16) - 16)
    again = evaluation.summarise(loaded, arm, rows, plans, reference, [worth] * 4)
    assert again["e3_with_planner"] == pytest.approx(50**2 / 16)
    assert f"{row['e3_with_planner']:.1f} (1)" in evaluation.table([{"a_turn": 3.0, **row}])


def test_every_schedule_has_a_row() -> None:
    names = {arm.schedule for arm, _ in (*evaluation.ALWAYS, *evaluation.MIDDLE)}
    assert set(ALLOCATORS) < names
    plan = plan_question(PAIRS[0].prompt)
    for name in names - {None}:
        assert sum(plan.with_schedule(str(name)).shares(40)) == 40


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
