"""A step of the second runner reads nothing back from the device.

Shown without a device: the code is told that it may not look at values, and every operator is listened to. The step
after the first is checked, when constants have been made.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from budgetctl.integrations.vllm.memory import SlotReader
from budgetctl.prefix_reader import PrefixReader, read_rows
from tests.budgetctl.integrations.vllm.fakes import States, context_of, processor_for, sampling

#: Operators whose result is a value on the host, or has a shape that depends on values.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.", "is_nonzero")


class Listener(TorchDispatchMode):
    """Notes the operators that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(read in name for read in READS):
            self.reads.append(name)
        if "aten.index" in name and len(args) > 1 and isinstance(args[1], list | tuple):
            masks = [a for a in args[1] if isinstance(a, torch.Tensor) and a.dtype == torch.bool]
            self.reads += [f"{name} by a mask" for _ in masks]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("budgetctl.") and hasattr(module, "may_look"):
            monkeypatch.setattr(module, "may_look", lambda device: False)
    monkeypatch.setattr(
        PrefixReader,
        "read",
        lambda self, ids, prompt, spans: read_rows(ids, self._delimiters, prompt, spans),
    )


@pytest.mark.parametrize("drafts", [[], [5, 6, 5]], ids=["one row a request", "drafts"])
def test_a_step_reads_nothing_back(
    drafts: list[int], markers: Any, boundaries: Any, forecast: Any, as_on_a_device: None
) -> None:
    d = markers["spelled, template"]
    states = States(4, 64)
    processor = processor_for(d, boundaries, forecast, states)
    prompt = [7, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    asked: list[dict[str, Any]] = [
        {"thinking_budget": 6, "min_thinking_tokens": 2},
        {"effort": "low"},
        {},
        {"thinking_target": 5, "target_tolerance": 1},
    ]
    for slot, knobs in enumerate(asked):
        states.prompt_len.np[slot] = len(prompt)
        states.write(slot, prompt)
        processor.add_request(slot, sampling(20, **knobs))
    processor.apply_staged_writes()
    rows = len(asked) * (1 + len(drafts))
    torch.manual_seed(0)
    heard: list[str] = []
    for step in range(4):
        tokens = [
            [*prompt, *[5] * step, *([] if slot != 3 else d.forced_end_ids[:step])] for slot in range(4)
        ]
        for slot, row in enumerate(tokens):
            states.write(slot, row)
        context = context_of(states, [(slot, row, drafts) for slot, row in enumerate(tokens)])
        logits = torch.randn(rows, 18, dtype=torch.float64)
        with Listener() as listener:
            scores = processor.apply(logits.clone(), context)
        assert not torch.equal(scores, logits)
        if step:
            heard += listener.reads
    assert heard == []


def test_the_listener_hears(markers: Any) -> None:
    """Or the test above would pass whatever is done."""
    values = torch.arange(4)
    with Listener() as listener:
        bool((values > 2).any())
        values[values > 2]
        values.nonzero()
        torch.equal(values, values)
    assert len(listener.reads) >= 4
    assert isinstance(SlotReader(markers["implicit"]), PrefixReader)
