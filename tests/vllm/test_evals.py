"""``budgetctl eval --engine vllm`` in a real engine: its greedy answers are those of the transformers engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

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
