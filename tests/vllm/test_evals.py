"""``budgetctl eval --engine vllm`` in a real engine: its greedy answers are those of the transformers engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: run `make test-vllm`, which has an environment of its own")

from budgetctl.evals.harness.transformers_engine import TransformersEngine
from budgetctl.evals.harness.vllm_engine import VLLMEngine
from budgetctl.evals.harness.vllm_opening import open_vllm
from budgetctl.evals.load import load_model
from budgetctl.reasoner.tasks import take_questions

QUESTIONS, NEW = 16, 128
ASKED: list[dict[str, Any]] = [
    {},
    {"hard_cut": 0},
    {"hard_cut": 12},
    {"knobs": {"thinking_budget": 12}},
    {"knobs": {"effort": "low"}},
]


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMEngine]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}.items():
            patch.setenv(name, value)
        yield open_vllm(None, None, {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16})


@pytest.fixture(scope="module")
def plain() -> TransformersEngine:
    return TransformersEngine(load_model(with_predictor=True))


@pytest.fixture(scope="module")
def prompts(plain: TransformersEngine) -> list[list[int]]:
    return [plain.prompt(question.prompt) for question in take_questions("test", QUESTIONS, min_level=5)]


@pytest.mark.parametrize("asked", ASKED)
def test_greedy_answers_and_all_that_is_told_of_them(
    asked: Mapping[str, Any], engine: VLLMEngine, plain: TransformersEngine, prompts: Any
) -> None:
    found = engine.generate(prompts, seeds=None, max_new_tokens=NEW, **asked)
    expected = plain.generate(prompts, seeds=None, max_new_tokens=NEW, **asked)
    for one, other in zip(found, expected, strict=True):
        assert one.predicted_tokens == pytest.approx(other.predicted_tokens, rel=1e-3)
        assert (one.predicted_cdf is None) == (other.predicted_cdf is None)
        same = {"predicted_tokens": None, "predicted_cdf": None, "seconds": 0.0, "kv_bytes": None}
        assert replace(one, **same) == replace(other, **same)


def test_noise_is_that_of_the_seed_and_of_nothing_else(engine: VLLMEngine, prompts: Any) -> None:
    """The same alone and in a batch, and for a method that changes nothing before its cut."""
    seeds = list(range(QUESTIONS))
    free = engine.generate(prompts, seeds=seeds, max_new_tokens=NEW)
    again = engine.generate(prompts[3:4], seeds=seeds[3:4], max_new_tokens=NEW)
    assert again[0].new_ids == free[3].new_ids
    cut = engine.generate(prompts, seeds=seeds, max_new_tokens=NEW, hard_cut=9)
    for one, whole in zip(cut, free, strict=True):
        assert one.thought == whole.thought[:9]
        assert one.close == ("natural" if len(whole.thought) < 9 else "forced") or len(whole.thought) == 9
    assert "forced" in {one.close for one in cut}
    limited = engine.generate(prompts, seeds=seeds, max_new_tokens=NEW, knobs={"thinking_budget": 9})
    assert all(len(one.thought) <= 9 and one.close != "none" for one in limited)
    assert {one.close for one in limited} >= {"forced"}


def surprise(plain: TransformersEngine, prompt: Sequence[int], new: Sequence[int], temperature: float) -> Any:
    """[T, 2] float64: log probability of each new token less its expectation under the model, and its variance."""
    ids = torch.tensor([[*prompt, *new]])
    with torch.inference_mode():
        logits = plain.model(ids).logits[0, len(prompt) - 1 : -1].double()
    log = (logits / temperature).log_softmax(1)
    mean = (log.exp() * log).sum(1, keepdim=True)
    variance = (log.exp() * (log - mean).square()).sum(1)
    return torch.stack([log.gather(1, ids[0, len(prompt) :, None])[:, 0] - mean[:, 0], variance], dim=1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_are_of_the_models_distribution(
    temperature: float, engine: VLLMEngine, plain: TransformersEngine, prompts: Any
) -> None:
    """Their tokens are as likely as the model says that its samples are, within four standard deviations. The sum over
    tokens is a martingale, so its variance is the sum of theirs. A top-p of 0.9 is nine of them away at temperature 2,
    where unlikely tokens are many, and a top-k of 20 six."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "temperature", temperature)
        seeds = range(4 * len(prompts))
        written = engine.generate(prompts * 4, seeds=list(seeds), max_new_tokens=NEW)

    def deviations(temperature: float) -> float:
        parts = [
            surprise(plain, prompt, one.new_ids, temperature)
            for prompt, one in zip(prompts * 4, written, strict=True)
        ]
        total, variance = torch.cat(parts).sum(0).tolist()
        return float(total / variance**0.5)

    assert abs(deviations(temperature)) < 4
    # What is measured can tell: of a cooler model these would not be samples.
    assert deviations(0.7 * temperature) < -4
