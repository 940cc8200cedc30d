"""A step of the controller waits for no device: after the first, when constants have been made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from budgetctl.controller import BudgetController
from budgetctl.extension import Extension
from budgetctl.plan.enforce import StepGuide
from budgetctl.plan.note_guide import NoteGuide
from budgetctl.plan.notes import LEVELS, SpelledNotes
from budgetctl.plan.plan import Plan, Step
from budgetctl.plan.row_plans import RowPlans, SpelledStep
from budgetctl.protect import Spans
from budgetctl.sampling import SeededSampler
from tests.conftest import LINE, MARKERS, VOCAB, A, B
from tests.device_waits import DEVICE, listening, on_device

ROWS, WIDTH = 6, 9
OPTIONS: tuple[dict[str, Any], ...] = (
    {"thinking_budget": [3, 0, 6, 9, None, 30]},
    {"effort": ["low", 0.3, "high", "max", "auto", "xhigh"], "min_thinking_tokens": 1},
    {"effort": "medium", "guided_steps": "line", "temperature": [0.7, 1.0, 0.5, 1.2, 0.9, 2.0]},
    {"thinking_target": [5, 6, 7, 8, 9, 10], "target_tolerance": 1, "greedy": True},
    {"thinking_budget": 8, "min_thinking_tokens": 2, "extension": Extension((A, B), 2)},
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize(
    ("way", "case"), [("own logits", "spelled, template"), ("logits of others", "closed by a phrase")]
)
def test_a_step_waits_for_nothing(
    way: str, case: str, options: dict[str, Any], forecast: Any, boundaries: Any
) -> None:
    model, ends = on_device(forecast, with_spans(boundaries))
    controller = controller_of(case, model, ends, **options)
    controller.first = way == "own logits"
    assert waits_of(controller) == []


def test_without_a_forecast(boundaries: Any) -> None:
    controller = controller_of("implicit", None, with_spans(boundaries).to(DEVICE), thinking_budget=[3, 5])
    assert waits_of(controller) == []


def test_with_a_plan_and_notes(forecast: Any, boundaries: Any) -> None:
    model, ends = on_device(forecast, boundaries)
    controller = controller_of("opened by the template", model, ends, thinking_budget=30)
    plan = Plan((Step("one", 1.0), Step("two", 2.0)))
    steps = (SpelledStep((), (), (), 0), SpelledStep(((B, A), (LINE, A, B)), (False, True), (B, A), 2))
    controller.steps = StepGuide(RowPlans((plan,), (steps,), LINE, boundaries.line), controller.limits)
    notes = SpelledNotes((14, 16, LINE), ((14, 13, LINE),) * (LEVELS + 1))
    controller.notes = NoteGuide([notes], controller.limits, controller.steps)
    assert waits_of(controller) == []


def test_seeded_sampling() -> None:
    assert waits_of(SeededSampler(range(ROWS), WIDTH)) == []


def with_spans(boundaries: Any) -> Any:
    """With code fences and tokens of a part of a character."""
    columns = torch.arange(VOCAB)
    return replace(boundaries, spans=Spans(columns == 15, (LINE, 15), (columns == 16).long()))


def controller_of(case: str, forecast: Any, boundaries: Any, **options: Any) -> BudgetController:
    return BudgetController(
        MARKERS[case],
        forecast=forecast,
        boundaries=boundaries,
        prompt_length=WIDTH,
        max_new_tokens=20,
        answer_reserve=4,
        **options,
    )


def waits_of(controller: BudgetController | SeededSampler) -> list[str]:
    """What is waited for at the second step."""
    for width in (WIDTH, WIDTH + 1):
        ids = torch.zeros(ROWS, width, dtype=torch.int64, device=DEVICE)
        scores = torch.zeros(ROWS, VOCAB, dtype=torch.float64, device=DEVICE)
        with listening() as waits:
            assert controller(ids, scores) is not scores
    return waits


@pytest.mark.parametrize(
    "waited",
    [
        lambda x: torch.as_tensor(0.5, device=x.device),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: x.new_tensor(1.0),
        lambda x: x[:, [0, 1]],
        lambda x: x.__setitem__((slice(None), [0, 1]), 0.0),
        lambda x: x[torch.tensor([0])],
        lambda x: x.__setitem__(x > 0, 0.0),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x.copy_(torch.zeros(3, 3)),
        lambda x: torch.where(x > 0, torch.tensor(0.5), x),
    ],
)
def test_what_is_waited_for_is_heard(waited: Any) -> None:
    """Or the tests above would pass whatever is done."""
    x = torch.zeros(3, 3, device=DEVICE)
    with listening() as waits:
        waited(x)
    assert len(waits) >= 1


@pytest.mark.parametrize(
    "looked", [lambda x: bool((x > 0).any()), lambda x: x.tolist(), lambda x: x[x > 0], lambda x: x.cpu()]
)
def test_nobody_looks_at_a_value(looked: Any) -> None:
    with pytest.raises(RuntimeError):
        looked(torch.zeros(3, 3, device=DEVICE))


def test_what_is_not_waited_for_is_not_heard() -> None:
    x = torch.zeros(3, 3, device=DEVICE)
    with listening() as waits:
        x[:, 1] = 0.5
        x = torch.where(x > 0, 0.0, x) * torch.tensor(2.0)
        x = torch.zeros(3).to(x.device, non_blocking=True) + x.new_full((), 0.5)
    assert waits == []
