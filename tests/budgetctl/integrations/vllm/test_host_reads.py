"""A step of the second runner waits for no device: nothing is read back, and what is copied to it comes from pinned memory.

Shown without a device (:mod:`tests.device_waits`). The step after the first is checked, when constants have been made.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.budgetctl.integrations.vllm.fakes import States, context_of, processor_for, sampling
from tests.device_waits import DEVICE, listening, on_device, pin_nothing

ASKED: tuple[dict[str, Any], ...] = (
    {"thinking_budget": 6, "min_thinking_tokens": 2},
    {"effort": "low"},
    {},
    {"thinking_target": 5, "target_tolerance": 1},
)


@pytest.mark.parametrize("counted", [False, True], ids=["", "counted"])
@pytest.mark.parametrize("drafts", [[], [5, 6, 5]], ids=["one row a request", "drafts"])
def test_a_step_waits_for_nothing(
    drafts: list[int],
    counted: bool,
    markers: Any,
    boundaries: Any,
    forecast: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pin_nothing(monkeypatch)
    d = markers["spelled, template"]
    states = States(len(ASKED), 64, DEVICE.type)
    model, ends = on_device(forecast, boundaries)
    processor = processor_for(d, ends, model, states)
    processor._measured = True  # which reads the misfit of the first step
    if counted:
        tally = processor._controller.count((), DEVICE)
    prompt = [7, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    for slot, knobs in enumerate(ASKED):
        states.prompt_len.np[slot] = len(prompt)
        states.write(slot, prompt)
        processor.add_request(slot, sampling(20, **knobs))
        if counted:
            tally.begin(slot)
    processor.apply_staged_writes()
    for step in range(2):
        tokens = [[*prompt, *[5] * step] for _ in ASKED]
        context = context_of(states, [(slot, row, drafts) for slot, row in enumerate(tokens)])
        logits = torch.zeros(len(ASKED) * (1 + len(drafts)), 18, device=DEVICE)
        with listening() as waits:
            assert processor.apply(logits, context).shape == logits.shape
    assert waits == []
