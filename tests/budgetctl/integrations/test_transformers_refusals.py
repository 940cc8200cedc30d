"""What ``install`` and ``generate`` refuse, and that they refuse it before the model runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from budgetctl.checks import shown
from budgetctl.errors import BudgetctlError, BudgetError, DelimiterError, PredictorError
from budgetctl.integrations import batching_support
from budgetctl.integrations import transformers as integration
from budgetctl.integrations.transformers import install


@pytest.fixture
def forwards(model: Qwen3ForCausalLM) -> Iterator[list[int]]:
    """Grows with every forward pass of the model."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, arguments: seen.append(1))
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"effort": "low"}, "needs a length predictor and none is installed: pass predictor"),
        ({"effort": ["auto", 0.5]}, "needs a length predictor"),
        ({"effort": "most"}, "unknown effort 'most'"),
        ({"effort": 1.5}, "out of range"),
        ({"effort": True}, "out of range"),
        ({"thinking_budget": -1}, "negative"),
        ({"thinking_budget": 1.5}, "whole number"),
        ({"thinking_budget": True}, "whole number"),
        ({"effort": "none", "thinking_budget": 4}, "contradicts"),
        ({"effort": "max", "thinking_budget": 4}, "contradicts"),
        ({"thinking_budget": [1, 2, 3]}, "3 budgets for 2 prompts"),
        ({"effort": ["max", "none"], "thinking_budget": [None] * 3}, "3"),
        ({"thinking_budget": []}, "expected one value"),
        ({"thinking_budget": 4, "answer_reserve": 24}, "answer_reserve=24 plus 1 tokens"),
        ({"answer_reserve": -2}, "negative"),
        ({"thinking_budget": 4, "min_thinking_tokens": 5}, "min_thinking_tokens=5 is more"),
        ({"min_thinking_tokens": -5}, "negative"),
        ({"guidance_strength": -1.0}, "guidance_strength"),
        ({"guidance_strength": float("nan")}, "guidance_strength"),
        ({"guided_steps": "some"}, "guided_steps"),
        ({"thinking_budget": 2**63}, "thinking_budget=9223372036854775808 is out of range"),
        ({"min_thinking_tokens": [3, 10**30]}, "min_thinking_tokens=1000000000000000000000000000000 is"),
        ({"thinking_target": 10**400}, "thinking_target=10+[.]{3} is out of range"),
        ({"thinking_target": 9, "target_tolerance": 10**5000}, "target_tolerance=int of thousands of digits"),
        ({"answer_reserve": 10**30}, "answer_reserve"),
        ({"max_extensions": 10**30}, "max_extensions"),
        ({"guidance_strength": 10**400}, "guidance_strength"),
        ({"effort": 10**400}, "out of range"),
        ({"thinking_budget": 4, "temperature": 1e-40}, "temperature=1e-40: expected a number > 0"),
        ({"early_exit": {"every": 10**30}}, "early_exit every"),
        ({"early_exit": {"answer_prompt": "x</think>"}}, "early_exit answer_prompt=.* holds a marker"),
        ({"early_exit": {"turn": "<|im_end|>"}}, "early_exit turn=.* holds an end-of-sequence token"),
        ({"max_extensions": 1, "extension_phrase": "</think>"}, "extension_phrase=.* holds a marker"),
        ({"max_extensions": 1, "extension_phrase": "<think>"}, "extension_phrase=.* holds a marker"),
        ({"max_extensions": 1, "extension_phrase": "<|im_end|>"}, "extension_phrase=.* end-of-sequence"),
        ({"max_extensions": 1, "extension_phrase": 5}, "extension_phrase=5 is no text"),
        ({"extension_phrase": "Hm"}, "extension_phrase='Hm' is never written"),
    ],
    ids=shown,
)
def test_refused_before_the_model_runs(
    model: Any, tokenizer: Any, inputs: Any, forwards: list[int], knobs: dict[str, object], words: str
) -> None:
    install(model, tokenizer)
    with pytest.raises(BudgetError, match=words) as error:
        model.generate(**inputs, **knobs)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)
    assert not forwards
    model.generate(**inputs, thinking_budget=1, max_new_tokens=4)
    assert forwards


@pytest.mark.parametrize("phrase", ["</think>", "x<think>", "Done.<|im_end|>", " ", 5, ["a"]], ids=repr)
def test_a_transition_that_is_no_phrase(
    model: Any, tokenizer: Any, inputs: Any, forwards: list[int], phrase: Any
) -> None:
    install(model, tokenizer)
    with pytest.raises(DelimiterError, match=r"^transition_phrase="):
        model.generate(**inputs, thinking_budget=4, transition_phrase=phrase)
    assert not forwards


def test_an_end_of_sequence_of_the_call_counts(
    model: Any, tokenizer: Any, inputs: Any, forwards: list[int]
) -> None:
    """The markers were found when the model had another."""
    install(model, tokenizer)
    end = tokenizer.encode("!", add_special_tokens=False)
    model.generate(**inputs, thinking_budget=4, max_extensions=1, extension_phrase="Hm!", max_new_tokens=2)
    del forwards[:]
    with pytest.raises(BudgetError, match="extension_phrase='Hm!' holds an end-of-sequence token"):
        model.generate(
            **inputs, thinking_budget=4, max_extensions=1, extension_phrase="Hm!", eos_token_id=end
        )
    assert not forwards


def test_continuous_batching_of_an_early_transformers(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching_support.transformers, "__version__", "5.11.0")
    install(model, tokenizer)
    assert "generate_batch" not in vars(model)
    config = copy.deepcopy(model.generation_config)
    assert model._get_logits_processor(config) is not None
    for name, value in {"effort": "low", "thinking_budget": 0, "min_thinking_tokens": 3}.items():
        asked = copy.deepcopy(config)
        setattr(asked, name, value)
        with pytest.raises(BudgetError, match=f"{name}=.*before transformers 5.12: expected {name} unset"):
            model._get_logits_processor(asked)


def test_encoder_decoder(tokenizer: Any) -> None:
    config = T5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(BudgetctlError, match="encoder-decoder model: expected a decoder-only"):
        install(T5ForConditionalGeneration(config), tokenizer)


def test_predictor_of_another_model(model: Any, tokenizer: Any, artifact: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    with pytest.raises(PredictorError, match="fitted for 'tiny', this is another model"):
        install(model, tokenizer, artifact)
    assert "_get_logits_processor" not in vars(model)
    assert not hasattr(model.generation_config, "effort")


def test_predictor_of_other_markers(model: Any, tokenizer: Any, artifact: Any) -> None:
    other = replace(artifact, metadata=replace(artifact.metadata, open_ids=(9,)))
    with pytest.raises(PredictorError, match="markers"):
        install(model, tokenizer, other)


def test_logits_that_hide_the_state(
    model: Any, tokenizer: Any, artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = model.lm_head.register_forward_hook(lambda module, arguments, logits: logits.square())
    with pytest.raises(PredictorError, match=r"off by .*: expected at most 5%.*install without predictor"):
        install(model, tokenizer, artifact)
    install(model, tokenizer)
    handle.remove()
    monkeypatch.setattr(integration, "MAX_RECOVERY_ERROR", -1.0)
    with pytest.raises(PredictorError, match="is off by"):
        install(model, tokenizer, artifact)
