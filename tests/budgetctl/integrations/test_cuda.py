"""``generate`` of an installed model on a CUDA device: the kernels, the controller and the cache together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import budgetctl
from budgetctl.controller import BudgetController
from budgetctl.integrations.transformers import Installation
from budgetctl.kernels import kv_decode
from budgetctl.kv import POLICIES, BudgetCache
from budgetctl.reasoner.load import PREDICTOR, load_reasoner
from budgetctl.reasoner.tasks import take_questions
from tests.triton_process import needs_cuda

pytestmark = [pytest.mark.gpu, needs_cuda]
ROWS = 6


@pytest.fixture(scope="module")
def reasoner() -> Iterator[tuple[Any, Any, Installation]]:
    model, tokenizer = load_reasoner("cuda")
    tokenizer.padding_side = "left"
    installation = budgetctl.install(model, tokenizer, PREDICTOR)
    yield model, tokenizer, installation
    installation.uninstall()


@pytest.fixture(scope="module")
def inputs(reasoner: Any) -> Any:
    _, tokenizer, _ = reasoner
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question.prompt}], add_generation_prompt=True, tokenize=False
        )
        for question in take_questions("test", ROWS, min_level=7)
    ]
    return tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to("cuda")


@pytest.mark.parametrize("budget", [0, 1, 8, 24])
@pytest.mark.parametrize("sampled", [False, True])
def test_no_thought_is_over_its_budget(reasoner: Any, inputs: Any, budget: int, sampled: bool) -> None:
    model, _, installation = reasoner
    found = model.generate(**inputs, thinking_budget=budget, do_sample=sampled, max_new_tokens=120)
    used = [report.thinking_tokens for report in installation.reports(found)]
    assert max(used) <= budget
    assert max(used) >= budget // 2


def test_an_effort_gives_the_thoughts_of_the_cpu(reasoner: Any, inputs: Any) -> None:
    """Rounding may change a token here and there, not all rows."""
    model, tokenizer, _ = reasoner
    options = {"effort": "low", "do_sample": False, "max_new_tokens": 120}
    found = model.generate(**inputs, **options).cpu()
    other, _ = load_reasoner("cpu")
    installed = budgetctl.install(other, tokenizer, PREDICTOR)
    expected = other.generate(**inputs.to("cpu"), **options)
    installed.uninstall()
    inputs.to("cuda")
    width = min(found.shape[1], expected.shape[1])
    same = (found[:, :width] == expected[:, :width]).all(1)
    assert same.sum() >= ROWS - 1


def test_a_step_of_the_controller_waits_for_nothing(
    reasoner: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [0]
    call = BudgetController.__call__

    def watched(self: BudgetController, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        steps[0] += 1
        torch.cuda.synchronize()
        if steps[0] > 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            return call(self, input_ids, scores)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(BudgetController, "__call__", watched)
    model, _, _ = reasoner
    model.generate(**inputs, thinking_budget=20, effort="medium", do_sample=True, max_new_tokens=60)
    assert steps[0] > 20


@pytest.mark.parametrize("options", [{}, {"effort": "medium"}, {"num_beams": 2}], ids=str)
def test_what_fits_is_answered_as_without_a_kv_budget(
    reasoner: Any, inputs: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[int] = []
    launch = kv_decode._launch

    def counted(*arguments: Any, **named: Any) -> Any:
        launches.append(1)
        return launch(*arguments, **named)

    monkeypatch.setattr(kv_decode, "_launch", counted)
    model, _, _ = reasoner
    options = {**options, "max_new_tokens": 160, "do_sample": False}
    expected = model.generate(**inputs, **options)
    found = model.generate(**inputs, kv_budget=400, **options)
    assert launches
    width = min(found.shape[1], expected.shape[1])
    assert (found[:, :width] == expected[:, :width]).all(1).sum() >= ROWS - 1


@pytest.mark.parametrize("policy", POLICIES)
def test_ten_times_the_slots_in_constant_memory(reasoner: Any, inputs: Any, policy: str) -> None:
    """By the kernels; every kept token is finite and each head holds distinct positions, sinks and the latest among them."""
    model, _, _ = reasoner
    model.set_attn_implementation("budget_kv")
    cache = BudgetCache(model.config, 64, policy)
    held = []
    ids = inputs["input_ids"][:, -8:]
    try:
        with torch.no_grad():
            for step in range(640):
                logits = model(
                    ids,
                    position_ids=torch.tensor([[step + 7]]).to("cuda") if step else None,
                    past_key_values=cache,
                ).logits[:, -1]
                ids = logits.argmax(1, keepdim=True)
                held.append(cache.bytes_allocated)
    finally:
        model.set_attn_implementation("sdpa")
    assert len(set(held)) == 1
    assert logits.isfinite().all()
    length = cache.get_seq_length()
    for layer in range(model.config.num_hidden_layers):
        positions = cache.positions(layer).sort(2).values
        assert (positions.diff(dim=2) > 0).all()
        assert (positions[..., :4].cpu() == torch.arange(4)).all()
        assert (positions[..., -1] == length - 1).all()
