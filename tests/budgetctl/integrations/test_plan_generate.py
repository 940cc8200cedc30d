"""``generate(plan=...)`` on the embedded reasoner: shares kept in every decoding mode, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

import budgetctl
from budgetctl.errors import BudgetError, PlanError
from budgetctl.integrations.transformers import Installation
from budgetctl.plan.difficulty import weigh_by_length
from budgetctl.plan.plan import Plan
from budgetctl.plan.report import StepUse, step_use
from budgetctl.reasoner.load import PREDICTOR, load_reasoner
from budgetctl.reasoner.plans import plan_question
from budgetctl.reasoner.tasks import Question, take_questions

QUESTIONS = [q for q in take_questions("tune", 60) if q.family == "pair"][:4]
LIMITS = {"thinking_budget": 44, "max_new_tokens": 80}


@pytest.fixture(scope="module")
def found() -> Iterator[Installation]:
    model, tokenizer = load_reasoner()
    installation = budgetctl.install(model, tokenizer, PREDICTOR)
    yield installation
    installation.uninstall()


def strict(question: Question) -> Plan:
    """A plan whose steps end at their shares."""
    return plan_question(question.prompt).with_schedule("weighted", firmness=1.0)


def inputs_of(found: Installation, questions: list[Question]) -> Any:
    texts = [
        found.tokenizer.apply_chat_template(
            [{"role": "user", "content": q.prompt}], add_generation_prompt=True, tokenize=False
        )
        for q in questions
    ]
    return found.tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    )


def uses(found: Installation, sequences: torch.Tensor, width: int) -> list[list[StepUse]]:
    controller = found.controller
    assert controller is not None
    assert controller.steps is not None
    room = int(controller.limits.room)
    totals = [min(r.thinking_budget or room, room) for r in found.reports(sequences)]
    return step_use(
        controller.steps.plans, controller.limits, sequences, width, controller.delimiters, totals
    )


@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": False},
        {"do_sample": True},
        {"num_beams": 2, "do_sample": False},
        {"num_return_sequences": 2, "do_sample": True},
    ],
)
def test_each_question_follows_its_own_plan(mode: dict[str, Any], found: Installation) -> None:
    inputs = inputs_of(found, QUESTIONS)
    plans = [strict(q) for q in QUESTIONS]
    torch.manual_seed(1)
    sequences = found.model.generate(**inputs, **LIMITS, **mode, plan=plans)
    for steps, report in zip(
        uses(found, sequences, inputs.input_ids.shape[1]), found.reports(sequences), strict=True
    ):
        assert report.thinking_tokens <= 44
        assert sum(step.share for step in steps) == 44
        assert all(step.inside for step in steps)
        assert sum(step.used for step in steps) == report.thinking_tokens


def test_alone_as_in_the_batch(found: Installation) -> None:
    plans = [plan_question(q.prompt) if i % 2 else None for i, q in enumerate(QUESTIONS)]
    inputs = inputs_of(found, QUESTIONS)
    together = found.model.generate(**inputs, **LIMITS, do_sample=False, plan=plans)
    width = inputs.input_ids.shape[1]
    for row, question in enumerate(QUESTIONS):
        own = inputs_of(found, [question])
        alone = found.model.generate(**own, **LIMITS, do_sample=False, plan=plans[row])
        new = alone[0, own.input_ids.shape[1] :].tolist()
        assert together[row, width : width + len(new)].tolist() == new


def test_headings_are_written_for_a_plan_of_texts(found: Installation) -> None:
    inputs = inputs_of(found, QUESTIONS[:1])
    sequences = found.model.generate(
        **inputs, **LIMITS, do_sample=False, plan=["turn dial 1", {"text": "turn dial 2", "weight": 2}]
    )
    text = found.tokenizer.decode(sequences[0, inputs.input_ids.shape[1] :])
    assert text.startswith("Step 1: turn dial 1\n")
    assert "\nStep 2: turn dial 2\n" in text
    assert [step.share for step in uses(found, sequences, inputs.input_ids.shape[1])[0]] == [15, 29]


def test_shares_of_an_effort_and_of_the_room_alone(found: Installation) -> None:
    inputs = inputs_of(found, QUESTIONS)
    plans = [strict(q) for q in QUESTIONS]
    sequences = found.model.generate(**inputs, effort=0.4, max_new_tokens=100, do_sample=False, plan=plans)
    for steps, report in zip(
        uses(found, sequences, inputs.input_ids.shape[1]), found.reports(sequences), strict=True
    ):
        assert sum(step.share for step in steps) == min(report.thinking_budget, 74)
        assert all(step.inside for step in steps)
    assert len({report.thinking_budget for report in found.reports(sequences)}) > 1
    sequences = found.model.generate(**inputs, max_new_tokens=40, do_sample=False, plan=plans)
    assert max(report.thinking_tokens for report in found.reports(sequences)) <= 29


def test_no_plan_changes_nothing(found: Installation) -> None:
    inputs = inputs_of(found, QUESTIONS)
    plain = found.model.generate(**inputs, **LIMITS, do_sample=False)
    for plan in (None, [None] * len(QUESTIONS), Plan.single("the question")):
        assert torch.equal(found.model.generate(**inputs, **LIMITS, do_sample=False, plan=plan), plain)


NOTE = {"template": "({budget}: {regime})"}


@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": False},
        {"do_sample": True},
        {"num_beams": 2, "do_sample": False},
        {"num_return_sequences": 2, "do_sample": True},
    ],
)
def test_what_is_left_is_told_at_each_step(mode: dict[str, Any], found: Installation) -> None:
    inputs = inputs_of(found, QUESTIONS)
    plan = {"steps": ["one", "two", {"text": "three", "weight": 6}], "firmness": 1, "floor": 0}
    torch.manual_seed(1)
    sequences = found.model.generate(
        **inputs, thinking_budget=220, max_new_tokens=300, **mode, plan=plan, budget_notes=NOTE
    )
    width = inputs.input_ids.shape[1]
    told = 0
    for row, report in zip(sequences[:, width:], found.reports(sequences), strict=True):
        notes = re.findall(
            r"\nStep \d: \w+\n(\(about (\d+) of 220 thinking tokens: [A-Z]+\)\n)", found.tokenizer.decode(row)
        )
        sizes = [len(found.tokenizer(note, add_special_tokens=False).input_ids) for note, _ in notes]
        assert report.note_tokens == sum(sizes)
        assert report.thinking_tokens <= 220
        told += len(notes)
        # Headings are written where shares are spent, so that what is left falls with every note.
        assert all(int(a) > int(b) for (_, a), (_, b) in pairwise(notes))
    assert told > len(sequences) / 2


def test_notes_alone_as_in_the_batch_and_from_a_tracker(found: Installation) -> None:
    inputs = inputs_of(found, QUESTIONS)
    tracker = {"tokens": 900, "used": 750, "tools": {"calculator": {"calls": 4, "used": 1}}}
    notes: list[Any] = [NOTE, None, {"tracker": tracker, "template": "({budget}{tools})"}, NOTE]
    plan = [{"text": "one", "heading": ""}, "two"]
    limits = {"thinking_budget": 150, "max_new_tokens": 220, "do_sample": False}
    together = found.model.generate(**inputs, **limits, plan=plan, budget_notes=notes)
    width = inputs.input_ids.shape[1]
    reports = found.reports(together)
    assert reports[1].note_tokens == 0 < reports[2].note_tokens
    for row, question in enumerate(QUESTIONS):
        own = inputs_of(found, [question])
        alone = found.model.generate(**own, **limits, plan=plan, budget_notes=notes[row])
        new = alone[0, own.input_ids.shape[1] :].tolist()
        assert together[row, width : width + len(new)].tolist() == new
    text = found.tokenizer.decode(together[2, width:])
    assert text.lstrip().startswith("(150 of 900 thinking tokens; calculator: 3 of 4 calls)\n")


def test_parts_of_an_effort_are_told(found: Installation) -> None:
    inputs = inputs_of(found, QUESTIONS)
    sequences = found.model.generate(
        **inputs,
        effort=1.0,
        max_new_tokens=300,
        do_sample=False,
        plan={"steps": ["one", {"text": "two", "weight": 5}], "firmness": 1, "floor": 0},
        budget_notes={"template": "({budget})"},
    )
    told = [r.note_tokens > 0 for r in found.reports(sequences)]
    texts = found.tokenizer.batch_decode(sequences)
    assert any(told)
    assert [" % of the thinking tokens)\n" in text for text in texts] == told


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget_notes": True}, "without a plan"),
        ({"budget_notes": [True] * 3, "plan": ["a", "b"]}, "3 values for 4 prompts"),
        ({"budget_notes": "loud", "plan": ["a", "b"]}, "expected true, a BudgetTracker"),
        ({"budget_notes": {"template": "</think>"}, "plan": ["a", "b"]}, "holds a marker"),
        ({"budget_notes": {"template": "Step by step"}, "plan": ["a", "b"]}, "begins unlike the headings"),
    ],
)
def test_notes_that_are_refused(options: dict[str, Any], match: str, found: Installation) -> None:
    with pytest.raises(BudgetError, match=match):
        found.model.generate(**inputs_of(found, QUESTIONS), **LIMITS, **options)


def test_weights_by_predicted_length(found: Installation) -> None:
    plan = Plan.of(
        [
            "A dial shows 3: turn +4. Where does it stop?",
            "A dial shows 3: turn +4 -1 +5 -2 +3 +1. Where does it stop?",
        ]
    )
    short, long = (step.weight for step in weigh_by_length(plan, found).steps)
    assert 1 <= short < long / 2
    model, tokenizer = load_reasoner()
    with pytest.raises(BudgetError, match="need a length predictor"):
        weigh_by_length(plan, budgetctl.install(model, tokenizer))


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        ([], "0 steps"),
        ("auto", "plan of type str"),
        ([Plan.of(["a"])] * 3, "3 plans for 4 prompts"),
        ([{"text": "a", "heading": "B:\n", "marks": ["A:"]}], "begins with one of the marks"),
    ],
)
def test_plans_that_are_refused(plan: Any, match: str, found: Installation) -> None:
    with pytest.raises(PlanError, match=match):
        found.model.generate(**inputs_of(found, QUESTIONS), **LIMITS, plan=plan)
