"""A step gives a device few operators: each costs the host some twenty microseconds, whatever is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from budgetctl.kernels import gamma_guidance, reference
from budgetctl.prefix_reader import read_rows
from tests.budgetctl.integrations.vllm.fakes import States, context_of, processor_for, sampling
from tests.budgetctl.test_device_waits import ROWS, WIDTH, controller_of, with_spans
from tests.conftest import LINE, MARKERS, STOP, VOCAB, ToyModel, make_boundaries, make_forecast
from tests.device_operations import Operators, operators_of
from tests.device_waits import DEVICE, on_device, pin_nothing

TEMPLATE = "opened by the template"
#: Options, whether with a forecast, and the most operators of a step, without those of the guidance, which is one
#: launch on CUDA.
STEPS: tuple[tuple[dict[str, Any], bool, int], ...] = (
    ({"thinking_budget": 8}, False, 205),
    ({"thinking_budget": 8}, True, 270),
    ({"effort": "low"}, True, 286),
    ({"thinking_budget": 8, "min_thinking_tokens": 2}, False, 247),
    ({"thinking_budget": 8, "min_thinking_tokens": 2}, True, 313),
)
#: Of a reading, for markers of one token and of several.
READINGS = {TEMPLATE: 85, "spelled, template": 121}
#: Of vLLM's second runner, with its own making of the rows.
ENGINE = 355


def one_launch(logits: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """In the place of the guidance kernel."""
    return torch.empty_like(logits), logits.new_empty(len(logits), dtype=torch.float32)


def step_operators(options: dict[str, Any], predicts: bool) -> int:
    forecast, ends = on_device(make_forecast(ToyModel()), with_spans(make_boundaries()))
    controller = controller_of(TEMPLATE, forecast if predicts else None, ends, **options)
    controller.first = True
    return operators_of(controller, ROWS, WIDTH + 20, VOCAB)


def controller_on_host(options: dict[str, Any], predicts: bool, compiled: bool) -> Any:
    forecast = make_forecast(ToyModel()) if predicts else None
    found = controller_of(TEMPLATE, forecast, with_spans(make_boundaries()), compiled=compiled, **options)
    found.first = True
    if not compiled:  # as on a device, where all is read
        found._reader.read = lambda ids, prompt, spans: read_rows(ids, MARKERS[TEMPLATE], prompt, spans)
    return found


def named(options: dict[str, Any], predicts: bool) -> str:
    shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{shown}, {'with' if predicts else 'no'} forecast"


def reading_operators(case: str) -> int:
    spans = with_spans(make_boundaries()).to(DEVICE).spans
    for width in (WIDTH + 20, WIDTH + 21):
        ids = torch.zeros(ROWS, width, dtype=torch.int64, device=DEVICE)
        with Operators() as operators:
            read_rows(ids, MARKERS[case], WIDTH, spans)
    return operators.count


def engine_operators() -> int:
    markers, states = MARKERS[TEMPLATE], States(ROWS, 64, DEVICE.type)
    processor = processor_for(
        markers, *reversed(on_device(make_forecast(ToyModel()), make_boundaries())), states
    )
    processor._measured = True  # which reads the misfit of the first step
    prompt = [7, *markers.turn_start_ids, *markers.open_ids, *markers.lead_ids]
    for slot in range(ROWS):
        states.prompt_len.np[slot] = len(prompt)
        states.write(slot, prompt)
        processor.add_request(slot, sampling(20, effort="low"))
    processor.apply_staged_writes()
    for step in range(2):
        rows = [(slot, [*prompt, *[STOP, LINE][:step]], []) for slot in range(ROWS)]
        logits = torch.zeros(ROWS, VOCAB, device=DEVICE)
        context = context_of(states, rows)
        with Operators() as operators:
            processor.apply(logits, context)
    return operators.count


def table() -> dict[str, int]:
    """Counts by name, the guidance as the reference computes it and as one launch."""
    found = {f"reading of the rows, {case}": reading_operators(case) for case in READINGS}
    with pytest.MonkeyPatch.context() as patch:
        pin_nothing(patch)
        for way in ("guidance by the reference", "guidance as one launch"):
            for options, predicts, _ in STEPS:
                found[f"{named(options, predicts)}, {way}"] = step_operators(options, predicts)
            found[f"vLLM's second runner, effort='low', {way}"] = engine_operators()
            patch.setattr(reference, "gamma_guidance", one_launch)
    assert gamma_guidance.reference is reference
    return found


@pytest.mark.parametrize(("options", "predicts", "most"), STEPS)
def test_a_step(options: dict[str, Any], predicts: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "gamma_guidance", one_launch)
    assert 100 < step_operators(options, predicts) <= most


@pytest.mark.parametrize("case", READINGS)
def test_a_reading(case: str) -> None:
    assert 50 < reading_operators(case) <= READINGS[case]


def test_a_step_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "gamma_guidance", one_launch)
    pin_nothing(monkeypatch)
    assert 100 < engine_operators() <= ENGINE
