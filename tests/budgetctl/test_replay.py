"""Replaying a finished sequence tells what the controller did live, step by step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.special import rel_entr

from budgetctl.budget import NO_CAP
from budgetctl.controller import BudgetController
from budgetctl.errors import BudgetError
from budgetctl.extension import Extension
from budgetctl.replay import COVERAGES, replay
from budgetctl.sampling import SeededSampler
from budgetctl.step_trace import StepTrace

STEPS = 20


class Reader:
    """The toy model as ``replay`` calls a model of transformers; its cache is the recurrent state."""

    device = torch.device("cpu")
    generation_config = SimpleNamespace(pad_token_id=0)

    def __init__(self, toy: Any) -> None:
        self.toy = toy
        self.read: list[int] = []

    def __call__(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
        hidden = self.toy.start(1) if past_key_values is None else past_key_values
        logits = []
        for tokens in input_ids.T:
            hidden = self.toy.step(hidden, tokens)
            logits.append(self.toy.logits(hidden))
        self.read.append(input_ids.shape[1])
        return SimpleNamespace(logits=torch.stack(logits, 1), past_key_values=hidden if use_cache else None)


class Letters:
    """One letter a token; the two bytes of a character are tokens 3 and 4."""

    pad_token_id = 0

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        whole = "".join({3: "\x03", 4: "\x04"}.get(int(i), chr(97 + int(i))) for i in ids)
        return whole.replace("\x03\x04", "é").replace("\x03", "\ufffd").replace("\x04", "\ufffd")


def live(controller: BudgetController, seen: list[Any]) -> Callable[..., torch.Tensor]:
    """The controller as a processor, told in float32 as ``generate`` does; notes what comes in and goes out."""

    def processor(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        guided = controller(ids, scores.float())
        seen.append((scores.float(), guided))
        return guided

    return processor


def found(toy: Any, controller: BudgetController, calibration: dict[float, float] | None = None) -> Any:
    artifact = None if calibration is None else SimpleNamespace(calibration=calibration)
    return SimpleNamespace(model=Reader(toy), tokenizer=Letters(), controller=controller, artifact=artifact)


LIMITS: dict[str, dict[str, Any]] = {
    "efforts": {"effort": ["low", "high", "auto"], "thinking_budget": [None, 8, None]},
    "budgets": {"thinking_budget": [0, 3, 12]},
    "max": {"effort": "max"},
    "idle": {},
    "minimum": {"thinking_budget": 9, "min_thinking_tokens": 4},
    "target": {"thinking_target": 6},
    "extension": {"thinking_budget": 14, "extension": Extension((5, 6), 1), "min_thinking_tokens": 7},
    "lines": {"thinking_budget": 10, "guided_steps": "line"},
}


@pytest.mark.parametrize("limits", list(LIMITS))
@pytest.mark.parametrize("case", ["opened by the template", "opened by the model", "spelled by three tokens"])
def test_replay_equals_what_was_live(
    case: str,
    limits: str,
    toy: Any,
    markers: Any,
    forecast: Any,
    boundaries: Any,
    prompts_of: Any,
    write: Any,
    count: Any,
) -> None:
    """Every row of a padded batch on its own, against the distributions recorded in the batch."""
    marks, rows, temperature = markers[case], 3, 1.3
    prompts = prompts_of(marks, rows)
    width = prompts.shape[1]
    controller = BudgetController(
        marks,
        forecast=forecast,
        boundaries=boundaries,
        prompt_length=width,
        max_new_tokens=STEPS,
        temperature=temperature,
        **LIMITS[limits],
    )
    seen: list[Any] = []
    ids = write(toy, prompts, [live(controller, seen), SeededSampler(range(rows), width, temperature)], STEPS)
    budgets, _, _ = controller.account(ids, width)
    noted = len(controller.close_log._steps)
    several = len(controller.limits.minimum) > 1
    for row in range(rows):
        traces = replay(found(toy, controller), ids[row], width, request=row if several else 0, chunk_size=11)
        new = ids[row, width:].tolist()
        assert [t.token_id for t in traces] == new[: new.index(1) + 1 if 1 in new else len(new)]
        for step, trace in enumerate(traces):
            before, after = (x[row].double().div(temperature).softmax(0) for x in seen[step])
            token = trace.token_id
            assert trace.probability == pytest.approx(float(before[token]), rel=1e-4)
            assert trace.guided_probability == pytest.approx(float(after[token]), rel=1e-4)
            assert trace.push == pytest.approx(math.log(after[token] / before[token]), abs=1e-4)
            assert trace.kl == pytest.approx(rel_entr(after.numpy(), before.numpy()).sum(), abs=1e-5)
            assert trace.forced == (int((after > 0).sum()) == 1)
            lost = float((before - after).max())
            assert trace.loser_probability - trace.loser_guided == pytest.approx(max(lost, 0.0), abs=1e-5)
            assert (trace.loser is None) == (lost <= 0)
            counted = count(ids[row, : width + step].tolist(), width, marks)
            assert trace.thinking == counted.open
            assert trace.used - counted.used in range(len(marks.forced_end_ids))
            assert trace.budget == (None if budgets[row] >= NO_CAP else budgets[row])
            assert (trace.remaining is None) == (not trace.thinking)
    assert len(controller.close_log._steps) == noted


def test_what_is_left(toy: Any, markers: Any, forecast: Any, boundaries: Any, prompts_of: Any) -> None:
    """By hand: a budget of 7, room for 5 tokens before the close, and a close in the middle."""
    marks = markers["opened by the template"]
    prompt = prompts_of(marks, 1)
    width = prompt.shape[1]
    ids = torch.cat([prompt, torch.tensor([[5, 2, 5, 6, 11, 4, 1, 0, 0]])], 1)[0]

    def told(name: str, **options: Any) -> list[Any]:
        controller = BudgetController(marks, boundaries=boundaries, **options)
        return [getattr(t, name) for t in replay(found(toy, controller), ids, width)]

    assert told("used", thinking_budget=7) == [0, 1, 2, 3, 4, 4, 4]
    assert told("left", thinking_budget=7)[:5] == [7, 6, 5, 4, 3]
    reserve: dict[str, Any] = {"max_new_tokens": 9, "answer_reserve": 3}
    assert told("left", thinking_budget=7, **reserve)[:5] == [5, 4, 3, 2, 1]
    assert told("left", effort="max", **reserve)[:5] == [5, 4, 3, 2, 1]
    assert told("left", max_new_tokens=9) == [None] * 7
    assert told("budget", effort="max", **reserve) == [None] * 7
    assert told("closes", thinking_budget=7) == [False] * 4 + [True] + [False] * 2
    assert told("boundary", thinking_budget=7)[:5] == [False, False, True, False, False]
    assert told("window", thinking_budget=4) == [False, False, False, True, True, False, False]
    assert told("forced", thinking_budget=4)[4] is True
    assert told("position", thinking_budget=4) == list(range(7))


@pytest.mark.parametrize("calibration", [None, {0.5: 0.4, 0.8: 0.7, 0.9: 0.95}])
def test_forecast_quantiles(
    calibration: dict[float, float] | None, toy: Any, markers: Any, forecast: Any, prompts_of: Any
) -> None:
    """Of the state's Gamma distribution, at calibrated levels where there are any; the close is not counted."""
    marks = markers["opened by the template"]
    prompt = prompts_of(marks, 1)
    ids = torch.cat([prompt, torch.tensor([[5, 6, 5, 11]])], 1)
    controller = BudgetController(marks, thinking_budget=5, forecast=forecast)
    traces = replay(found(toy, controller, calibration), ids[0], prompt.shape[1])
    levels = COVERAGES if calibration is None else (0.08, 0.4, 0.95)
    for step, trace in enumerate(traces):
        outlook = forecast.outlook(toy.read(ids[:, : prompt.shape[1] + step]))
        expected = [float(forecast.predictor.quantile(*outlook.parameters, level)) - 1 for level in levels]
        assert trace.remaining == pytest.approx(expected, rel=1e-4)
        assert list(trace.remaining) == sorted(trace.remaining)


def test_without_a_forecast(toy: Any, markers: Any, prompts_of: Any) -> None:
    marks = markers["opened by the template"]
    prompt = prompts_of(marks, 1)
    ids = torch.cat([prompt, torch.tensor([[5, 6, 11, 4]])], 1)[0]
    traces = replay(found(toy, BudgetController(marks, thinking_budget=2)), ids, prompt.shape[1])
    assert [t.remaining for t in traces] == [None] * 4
    assert [t.forced for t in traces] == [False, False, True, False]
    assert not any(t.window or t.boundary for t in traces)
    # A forced step says how unlikely the token was.
    assert traces[2].kl == pytest.approx(-math.log(traces[2].probability))


@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_pieces_of_any_size(chunk_size: int, toy: Any, markers: Any, forecast: Any, prompts_of: Any) -> None:
    marks = markers["opened by the template"]
    prompt = prompts_of(marks, 1)
    width = prompt.shape[1]
    ids = torch.cat([prompt, torch.tensor([[5, 6, 5, 2, 5, 11, 4, 1, 0, 0]])], 1)[0]
    controller = BudgetController(marks, effort="medium", forecast=forecast)
    whole = replay(found(toy, controller), ids, width)
    installation = found(toy, controller)
    for one, other in zip(replay(installation, ids, width, chunk_size=chunk_size), whole, strict=True):
        for name, value in asdict(one).items():
            expected = getattr(other, name)
            close = isinstance(value, float | tuple)
            assert value == (pytest.approx(expected, rel=1e-6, abs=1e-9) if close else expected), name
    pieces = installation.model.read
    assert sum(pieces) == width + 7  # the end of sequence is followed by nothing
    assert max(pieces) <= chunk_size


def test_text_of_each_token(toy: Any, markers: Any, prompts_of: Any) -> None:
    """A character of two tokens stands at its second; half a character at the end is shown as it is."""
    marks = markers["opened by the model"]
    prompt = prompts_of(marks, 1)

    def texts(new: list[int]) -> list[str]:
        ids = torch.cat([prompt, torch.tensor([new])], 1)[0]
        traces = replay(found(toy, BudgetController(marks, thinking_budget=2)), ids, prompt.shape[1])
        return [t.token for t in traces]

    assert texts([5, 3, 4, 6]) == ["f", "", "é", "g"]
    assert texts([3, 4, 3, 4]) == ["", "é", "", "é"]
    assert texts([5, 3]) == ["f", "\ufffd"]


def test_json_values(toy: Any, markers: Any, prompts_of: Any) -> None:
    """What a distribution rules out is None: the controller forbids the end of sequence in a limited thought."""
    marks = markers["opened by the template"]
    prompt = prompts_of(marks, 1)
    ids = torch.cat([prompt, torch.tensor([[5, 1]])], 1)[0]
    traces = replay(found(toy, BudgetController(marks, thinking_budget=9)), ids, prompt.shape[1])
    assert traces[1].guided_probability == 0
    assert traces[1].push == -math.inf
    told = json.loads(json.dumps(traces[1].as_dict(), allow_nan=False))
    assert told["push"] is None
    assert told["token"] == "b"
    assert set(told) == set(StepTrace.__dataclass_fields__)


def test_padding(toy: Any, markers: Any, prompts_of: Any) -> None:
    """Padding changes nothing, and may be told where its token also begins a prompt."""
    marks = markers["opened by the template"]
    prompt = torch.tensor([[0, *prompts_of(marks, 1)[0].tolist()]])
    ids = torch.cat([prompt, torch.tensor([[5, 6, 11]])], 1)[0]
    installation = found(toy, BudgetController(marks, thinking_budget=5))
    width = prompt.shape[1]
    alone = replay(installation, ids[1:], width - 1)
    assert replay(installation, ids, width) == alone
    reader = installation.model
    reader.read.clear()
    assert replay(installation, ids, width, padding=0) == alone
    assert reader.read == [width + 2]


def test_refusals(toy: Any, markers: Any, prompts_of: Any) -> None:
    marks = markers["opened by the template"]
    prompt = prompts_of(marks, 1)[0]
    width = len(prompt)
    controller = BudgetController(marks, thinking_budget=[3, 4])
    installation = found(toy, controller)
    for request in (-1, 2):
        with pytest.raises(BudgetError, match="with 2 requests: expected 0 to 1"):
            replay(installation, prompt, width, request=request)
    for length in (0, width, width + 1):
        with pytest.raises(BudgetError, match="tokens after it"):
            replay(installation, prompt, length)
    installation.controller = None
    with pytest.raises(BudgetError, match="nothing to replay"):
        replay(installation, prompt, width)
    assert installation.model.read == []
