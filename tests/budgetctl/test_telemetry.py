"""Reports: lengths, budgets and how each thought closed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from budgetctl.controller import BudgetController
from budgetctl.guidance import guidance_push
from budgetctl.kernels.row_state import CLOSING
from budgetctl.sampling import SeededSampler
from budgetctl.telemetry import ThoughtReport, report_sequences

PROMPT = [7, 8, 9, 10, 2]
CLOSE = 11


def scripted(
    case: Any, thought: list[int], wish: float | list[float], rest: list[int], **options: Any
) -> ThoughtReport:
    """Step a controller along one row whose model gives the close logit ``wish`` (all other tokens have 0)."""
    controller = BudgetController(case, prompt_length=5, **options)
    ids = PROMPT + thought + rest
    for stop in range(5, len(ids)):
        scores = torch.zeros(1, 18)
        scores[0, [5, 6]] = 2.0
        step = stop - 5
        scores[0, CLOSE] = wish[step] if isinstance(wish, list) else wish
        controller(torch.tensor([ids[:stop]]), scores)
    (report,) = report_sequences(controller, [ids], 5)
    return report


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize(
    ("budget", "wish", "close"),
    [
        (10, 5.0, "natural"),  # inside the budget, wanted
        (3, 5.0, "natural"),  # at the end of the budget, wanted all the same
        (3, 0.0, "forced"),
        (None, -5.0, "natural"),  # no limit: whatever closes is the model's
    ],
)
def test_natural_and_forced(budget: int | None, wish: float, close: str, greedy: bool, markers: Any) -> None:
    report = scripted(
        markers["opened by the template"],
        [5, 6, 5],
        wish,
        [CLOSE, 4, 1],
        thinking_budget=budget,
        greedy=greedy,
    )
    assert report == ThoughtReport(3, 1, budget, None, close, False)


@pytest.mark.parametrize("greedy", [False, True])
def test_steered(greedy: bool, markers: Any) -> None:
    """Guidance that takes all probability from what does not fit leaves it to the close."""

    class Doom:
        guidance_strength, dtype = 4.0, torch.float32

        def outlook(self, scores: torch.Tensor, own_logits: bool) -> object:
            return self

        def natural_length(self, outlook: object) -> torch.Tensor:
            return torch.tensor([100.0])

        def guide(
            self, scores: torch.Tensor, outlook: object, top: Any, ids: Any, rows: Any, **_: Any
        ) -> Any:
            # Token 5 does not fit, token 6 does.
            fit, state_fit = torch.where(ids == 5, -9.0, -0.1), torch.tensor([-9.0])
            closing = rows[:, CLOSING:].long()
            push, tail = guidance_push(top, ids, fit, state_fit, closing, self.guidance_strength)
            return scores + tail.expand_as(scores).scatter(1, ids, push), state_fit

    case = markers["opened by the template"]
    options: Any = {"thinking_budget": 10, "forecast": Doom(), "greedy": greedy}
    controller = BudgetController(case, prompt_length=5, **options)
    scores = torch.full((1, 18), -5.0)
    # Token 5 is the favourite; with it out of the way the close is.
    scores[0, [5, 6, CLOSE]] = torch.tensor([2.0, -0.5, 0.0])
    ids = torch.tensor([[*PROMPT, 6]])
    guided = controller(ids, scores)
    assert int(guided.argmax()) == CLOSE
    (report,) = report_sequences(controller, [[*PROMPT, 6, CLOSE, 4]], 5)
    assert report.close == "steered"


def test_none(markers: Any) -> None:
    case = markers["opened by the template"]
    assert scripted(case, [5, 6], 0.0, [], thinking_budget=9) == ThoughtReport(2, 0, 9, None, "none", False)
    model = markers["opened by the model"]
    (report,) = report_sequences(
        BudgetController(model, thinking_budget=9, prompt_length=3), [[7, 8, 9, 4, 4, 1]], 3
    )
    assert report == ThoughtReport(0, 2, 9, None, "none", False)


def test_leak(markers: Any) -> None:
    report = scripted(markers["opened by the template"], [5], 0.0, [CLOSE, 4, CLOSE, 4, 1])
    assert (report.leaked, report.answer_tokens) == (True, 3)
    assert set(report.as_dict()) == {
        "thinking_tokens",
        "answer_tokens",
        "thinking_budget",
        "predicted_tokens",
        "close",
        "leaked",
        "guidance_strength",
        "note_tokens",
    }


def test_a_forced_close_of_three_tokens(markers: Any) -> None:
    case = markers["spelled, template"]
    for wanted, kind in ((False, "forced"), (True, "natural")):
        controller = BudgetController(case, thinking_budget=2, prompt_length=4)
        ids = [7, 8, 9, 10, 5, 6, 12, 13, 14, 4]
        for stop in range(4, len(ids)):
            scores = torch.zeros(1, 18)
            scores[0, ids[stop]] += 9.0 * wanted
            controller(torch.tensor([ids[:stop]]), scores)
        (report,) = report_sequences(controller, [ids], 4)
        assert (report.close, report.thinking_tokens, report.answer_tokens) == (kind, 2, 1)


def test_the_last_close_counts(markers: Any) -> None:
    """The first by the model, the second by force."""
    case = markers["opened by the template"]
    wish = [0.0, 9.0] + [0.0] * 6
    report = scripted(case, [5], wish, [CLOSE, 4, 10, 6, 6, CLOSE, 4], thinking_budget=4)
    assert (report.thinking_tokens, report.close) == (4, "forced")


def test_equal_prompts_under_other_limits_are_told_apart(markers: Any) -> None:
    case = markers["opened by the template"]
    controller = BudgetController(case, thinking_budget=[1, 5, None], prompt_length=5)
    row = [*PROMPT, 5, CLOSE, 4]
    for stop in range(5, len(row)):
        scores = torch.zeros(3, 18)
        scores[1:, CLOSE] = 9.0
        controller(torch.tensor([row[:stop]] * 3), scores)
    assert [r.close for r in report_sequences(controller, [row] * 3, 5)] == ["forced", "natural", "natural"]


def test_reports_of_a_run(
    toy: Any, markers: Any, forecast: Any, boundaries: Any, prompts_of: Any, write: Any, count: Any
) -> None:
    case = markers["opened by the template"]
    prompts = prompts_of(case, 12)
    width = prompts.shape[1]
    controller = BudgetController(
        case,
        effort=["low", "high", "auto"] * 4,
        thinking_budget=[None, 6, 9] * 4,
        forecast=forecast,
        boundaries=boundaries,
        prompt_length=width,
        max_new_tokens=30,
    )
    ids = write(toy, prompts, [controller, SeededSampler(range(12), width)], 30)
    reports = report_sequences(controller, ids, width)
    kinds = set()
    for row, report in zip(ids.tolist(), reports, strict=True):
        counted = count(row, width, case)
        assert (report.thinking_tokens, report.answer_tokens) == (counted.used, counted.answer)
        assert report.thinking_tokens <= report.thinking_budget
        assert report.predicted_tokens >= 1
        assert not report.leaked
        kinds.add(report.close)
    assert {"steered", "forced"} <= kinds
    assert [r.thinking_budget for r in reports[2::3]] == [9] * 4


def test_json(markers: Any) -> None:
    report = scripted(markers["opened by the template"], [5, 6], 0.0, [CLOSE, 4, 1], thinking_budget=2)
    assert json.loads(report.to_json()) == report.as_dict()
    assert "\n" not in report.to_json()
    assert json.loads(report.to_json())["predicted_tokens"] is None


def test_guidance_strength_of_what_was_steered(markers: Any, forecast: Any) -> None:
    """Rows without a limit are not steered, and without a forecast none is."""
    case = markers["opened by the template"]
    rows = [[*PROMPT, 5, CLOSE, 4]] * 3
    limits: Any = {"thinking_budget": [4, None, None], "effort": [None, "auto", "max"], "prompt_length": 5}
    for options, expected in (
        ({"forecast": forecast}, [2.0, 0.0, 2.0]),
        ({"forecast": forecast, "guidance_strength": 0.5}, [0.5, 0.0, 0.5]),
        ({"guidance_strength": 0.5}, [0.0] * 3),
        ({"forecast": forecast, "max_new_tokens": 20, "answer_reserve": 4}, [2.0] * 3),
    ):
        reports = report_sequences(BudgetController(case, **limits, **options), rows, 5)
        assert [report.guidance_strength for report in reports] == expected
    idle = BudgetController(case, forecast=forecast, prompt_length=5)
    assert [report.guidance_strength for report in report_sequences(idle, rows, 5)] == [0.0] * 3
