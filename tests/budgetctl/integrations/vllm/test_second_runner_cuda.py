"""The second runner's path on a CUDA device: the scores of the CPU, and no step waits for the device."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from budgetctl.forecast import LengthForecast
from budgetctl.predictors.hidden_state import LogitsHiddenState
from tests.budgetctl.integrations.vllm.fakes import States, context_of, processor_for, sampling
from tests.triton_process import needs_cuda

ASKED: list[dict[str, Any]] = [
    {"thinking_budget": 6, "min_thinking_tokens": 2},
    {"effort": "low"},
    {},
    {"thinking_target": 5, "target_tolerance": 1},
    {"thinking_budget": 3, "effort": 0.5},
]
STEPS = 9


def forecast_on(device: str, forecast: LengthForecast, head: torch.Tensor) -> LengthForecast:
    """The same numbers on another device, in float32, as a server has them."""
    embedding = head.float().to(device)
    source = LogitsHiddenState(embedding, anchors=torch.arange(len(head), device=device), dtype=torch.float32)
    predictor = deepcopy(forecast.predictor).float()
    return LengthForecast(predictor, source, embedding, forecast.guidance_strength, torch.float32)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("drafts", [[], [5, 6, 5]], ids=["one row a request", "drafts"])
@pytest.mark.parametrize("case", ["opened by the template", "spelled, template"])
def test_scores_of_the_cpu_without_waiting(
    case: str, drafts: list[int], markers: Any, boundaries: Any, forecast: Any, toy: Any
) -> None:
    d = markers[case]
    prompt = [7, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    found: dict[str, list[torch.Tensor]] = {}
    for device in ("cpu", "cuda"):
        states = States(len(ASKED), 64, device)
        model = forecast_on(device, forecast, toy.head)
        processor = processor_for(d, boundaries.to(torch.device(device)), model, states)
        for slot, knobs in enumerate(ASKED):
            states.prompt_len.np[slot] = len(prompt)
            states.prompt_len.gpu[slot] = len(prompt)
            states.write(slot, prompt)
            processor.add_request(slot, sampling(20, **knobs))
        processor.apply_staged_writes()
        generator = torch.Generator().manual_seed(0)
        found[device] = []
        for step in range(STEPS):
            tokens = [[*prompt, *[5] * step] for _ in ASKED]
            for slot, row in enumerate(tokens):
                states.write(slot, row)
            context = context_of(states, [(slot, row, drafts) for slot, row in enumerate(tokens)])
            rows = len(ASKED) * (1 + len(drafts))
            # Logits that a hidden state explains.
            hidden = torch.randn(rows, toy.head.shape[1], generator=generator, dtype=torch.float64)
            logits = (hidden @ toy.head.T).float().to(device)
            if device == "cuda" and step:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            try:
                scores = processor.apply(logits.clone(), context)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            found[device].append(scores.cpu())
            assert torch.equal(scores[2 * (1 + len(drafts))], logits[2 * (1 + len(drafts))])
    for cpu, cuda in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-4, atol=1e-3)
    assert any(scores.isneginf().any() for scores in found["cuda"])
