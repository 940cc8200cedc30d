"""The vLLM engine on a fake of vLLM: it asks for what it should, and tells of a thought what transformers' engine tells."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from budgetctl.errors import EvalError
from budgetctl.evals.harness.transformers_engine import TransformersEngine
from budgetctl.evals.harness.vllm_engine import VLLMEngine, seed_after
from budgetctl.evals.harness.vllm_opening import check_vllm
from budgetctl.evals.load import load_model
from budgetctl.evals.methods.registry import METHODS, NEEDS_TRANSFORMERS, check_engine, method_named
from budgetctl.integrations.vllm.served_model import ServedModel
from budgetctl.reasoner.tasks import take_questions
from tests.evals.harness.fake_vllm import FakeLLM, SamplingParams

SEEDS = list(range(4))
NEW = 80


@pytest.fixture(scope="module")
def plain() -> TransformersEngine:
    return TransformersEngine(load_model(with_predictor=True), temperature=0.9)


@pytest.fixture
def fake(plain: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SamplingParams))  # type: ignore[arg-type]
    return FakeLLM(plain)


@pytest.fixture
def engine(fake: FakeLLM, plain: TransformersEngine) -> VLLMEngine:
    loaded = plain.loaded
    served = ServedModel(loaded.delimiters, loaded.boundaries, loaded.forecast, None, 512)
    return VLLMEngine(fake, served, temperature=plain.temperature)


@pytest.fixture(scope="module")
def prompts(plain: TransformersEngine) -> list[list[int]]:
    return [plain.prompt(question.prompt) for question in take_questions("test", len(SEEDS))]


@pytest.mark.parametrize("seeds", [None, SEEDS])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"hard_cut": 0},
        {"hard_cut": 12},
        {"knobs": {"thinking_budget": 12}},
        {"knobs": {"effort": "low"}},
        {"knobs": [{"thinking_budget": 9 + row} if row % 2 else {"effort": "auto"} for row in SEEDS]},
    ],
)
def test_it_tells_what_the_transformers_engine_tells(
    engine: VLLMEngine, plain: TransformersEngine, prompts: Any, arguments: dict[str, Any], seeds: Any
) -> None:
    """Closes, limits and forecasts, found from log probabilities after the end."""
    found = engine.generate(prompts, seeds=seeds, max_new_tokens=NEW, **arguments)
    expected = plain.generate(prompts, seeds=seeds, max_new_tokens=NEW, **arguments)
    for one, other in zip(found, expected, strict=True):
        assert one.predicted_tokens == pytest.approx(other.predicted_tokens, rel=1e-3)
        assert (one.predicted_cdf is None) == (other.predicted_cdf is None)
        if one.predicted_cdf is not None:
            assert one.predicted_cdf == pytest.approx(other.predicted_cdf, abs=1e-3)
        same = {"predicted_tokens": None, "predicted_cdf": None, "seconds": 0.0, "kv_bytes": None}
        assert replace(one, **same) == replace(other, **same)


def test_all_kinds_of_closes_were_among_them(engine: VLLMEngine, prompts: Any) -> None:
    closes = {
        one.close
        for knobs in ({"thinking_budget": 12}, {"effort": "low"})
        for one in engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW, knobs=knobs)
    }
    assert closes >= {"natural", "forced"}


def test_what_is_asked_of_vllm(engine: VLLMEngine, fake: FakeLLM, prompts: Any) -> None:
    engine.generate(prompts[:1], seeds=[7], max_new_tokens=20, hard_cut=5)
    engine.generate(prompts[:1], seeds=None, max_new_tokens=20, knobs={"thinking_budget": 5, "effort": None})
    cut, knobs = (one for one in fake.asked if one.logprobs is None)
    lead = len(engine.delimiters.lead_ids)
    assert (cut.thinking_token_budget, cut.seed, cut.temperature) == (5 + lead, 7, 0.9)
    assert (knobs.extra_args, knobs.seed, knobs.temperature) == ({"thinking_budget": 5}, None, 0.0)
    assert lead > 0


def test_a_call_that_goes_on_has_other_noise_and_ends_at_its_stops(engine: VLLMEngine, prompts: Any) -> None:
    assert seed_after(3, 0) == 3
    later = {seed_after(seed, offset) for seed in range(50) for offset in range(1, 50)}
    assert len(later) == 50 * 49
    assert all(0 <= seed < 2**63 for seed in later)
    whole = engine.generate(prompts[:1], seeds=None, max_new_tokens=NEW)[0]
    stop = whole.new_ids[2:4]
    (ended,) = engine.generate(prompts[:1], seeds=None, max_new_tokens=NEW, stop_ids=[stop])
    assert ended.new_ids == whole.new_ids[: len(ended.new_ids)]
    assert ended.new_ids[-2:] == stop
    assert len(ended.new_ids) <= 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"knobs": {"kv_budget": 64}}, "kv_budget on vLLM"),
        ({"knobs": {"kv": 64}}, "unknown knob 'kv'"),
        ({"knobs": [{}]}, "knobs of 1 rows for 4 prompts"),
        ({"offsets": [0]}, "1 offsets for 4 prompts"),
        ({"knobs": {"thinking_budget": 3}, "hard_cut": 3}, "hard_cut=3 beside thinking_budget"),
    ],
)
def test_what_cannot_be_asked(engine: VLLMEngine, prompts: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(EvalError, match=said):
        engine.generate(prompts, **({"seeds": SEEDS, "max_new_tokens": NEW} | arguments))


def test_no_hard_cut_where_vllm_would_not_count(engine: VLLMEngine, prompts: Any) -> None:
    engine.delimiters = replace(engine.delimiters, implicit=True)
    with pytest.raises(EvalError, match="opens no thought"):
        engine.generate(prompts, seeds=SEEDS, max_new_tokens=NEW, hard_cut=3)


def test_methods_that_vllm_can_do_run_on_it(engine: VLLMEngine) -> None:
    from budgetctl.evals.harness.method import Item, Setting

    question = take_questions("test", 1)[0]
    item = Item("embedded", "0", question.prompt, question.answer, 1.0, f"embedded/{question.family}")
    for name in METHODS:
        method = method_named(name)
        setting = Setting(
            budget=12 if method.takes == "budget" else None,
            effort="low" if method.takes == "effort" else None,
        )
        if name in NEEDS_TRANSFORMERS:
            with pytest.raises(EvalError, match=f"'{name}' on vllm needs"):
                check_engine([method], "vllm")
            continue
        check_engine([method], "vllm")
        (answer,) = method.answer(engine, [item], setting, [1], NEW)
        assert answer.method == name
        if name in ("budgetctl", "hard-cut"):
            assert answer.thinking_tokens <= 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("[1]", None, 1), "expected a JSON object"),
        (("{", None, 1), "expected a JSON object"),
        (('{"model": "x"}', None, 1), "with model"),
        ((None, "cuda", 1), "--device cuda with --engine vllm"),
        ((None, None, 2), "in 2 processes"),
        ((None, None, 1), "vLLM is not installed here"),
    ],
)
def test_what_is_refused_before_vllm_is_imported(
    arguments: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvalError, match=said):
        check_vllm(*arguments)


def test_options_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert check_vllm('{"max_model_len": 512}', None, 1) == {"max_model_len": 512}
    assert check_vllm(None, None, 1) == {}
