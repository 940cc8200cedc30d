"""``install``: the knobs in ``generate`` and in the generation config, and what they do to the thoughts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen3ForCausalLM,
)

from budgetctl.errors import BudgetError, PredictorError
from budgetctl.integrations.transformers import KNOBS, Installation, install
from budgetctl.predictors.artifact import save_predictor


def lengths(found: Installation, sequences: torch.Tensor) -> list[int]:
    return [report.thinking_tokens for report in found.reports(sequences)]


def budgets(found: Installation, sequences: torch.Tensor) -> list[int | None]:
    return [report.thinking_budget for report in found.reports(sequences)]


def test_one_budget_for_all(model: Any, tokenizer: Any, inputs: Any) -> None:
    found = install(model, tokenizer)
    sequences = model.generate(**inputs, thinking_budget=5)
    assert max(lengths(found, sequences)) <= 5
    assert budgets(found, sequences) == [5, 5]
    assert all(report.close != "none" for report in found.reports(sequences))


def test_a_budget_a_prompt(model: Any, tokenizer: Any, inputs: Any) -> None:
    found = install(model, tokenizer)
    for caps in ([0, 6], torch.tensor([0, 6])):
        sequences = model.generate(**inputs, thinking_budget=caps)
        assert budgets(found, sequences) == [0, 6]
        first, second = lengths(found, sequences)
        assert first == 0
        assert second <= 6


def test_samples_share_their_prompts_budget(model: Any, tokenizer: Any, inputs: Any) -> None:
    found = install(model, tokenizer)
    sequences = model.generate(**inputs, thinking_budget=[2, 6], num_return_sequences=3)
    assert budgets(found, sequences) == [2, 2, 2, 6, 6, 6]
    assert all(n <= cap for n, cap in zip(lengths(found, sequences), [2] * 3 + [6] * 3, strict=True))


def test_efforts_with_a_predictor(model: Any, tokenizer: Any, inputs: Any, artifact: Any) -> None:
    found = install(model, tokenizer, artifact)
    assert found.recovery_error is not None
    assert found.recovery_error < 0.01
    sequences = model.generate(**inputs, effort=["low", "high"], thinking_budget=12)
    for report, share in zip(found.reports(sequences), (0.25, 1.0), strict=True):
        assert report.predicted_tokens is not None
        assert report.thinking_budget == min(12, max(1, round(share * report.predicted_tokens)))
        assert report.thinking_tokens <= report.thinking_budget
    sequences = model.generate(**inputs, effort=0.5)
    assert all(r.thinking_tokens <= r.thinking_budget for r in found.reports(sequences))


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_are_compiled_where_that_was_asked_for(
    model: Any, tokenizer: Any, inputs: Any, compiled: bool
) -> None:
    """Also without a predictor; on the CPU there is nothing to compile then."""
    found = install(model, tokenizer, compiled=compiled)
    model.generate(**inputs, thinking_budget=5, max_new_tokens=1)
    assert found.controller is not None
    assert found.controller.compiled is compiled
    assert found.controller.steering.compiled is None


def test_knobs_persist_and_arguments_override(
    model: Any, tokenizer: Any, inputs: Any, artifact: Any, tmp_path: Path
) -> None:
    install(model, tokenizer, artifact)
    model.generation_config.effort = "low"
    model.generation_config.thinking_budget = 3
    model.generation_config.answer_reserve = 4
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).effort == "low"

    again = Qwen3ForCausalLM.from_pretrained(tmp_path).eval()
    found = install(again, tokenizer, artifact)
    knobs = {name: getattr(again.generation_config, name) for name in KNOBS}
    assert knobs == {**KNOBS, "effort": "low", "thinking_budget": 3, "answer_reserve": 4}
    sequences = again.generate(**inputs)
    assert max(lengths(found, sequences)) <= 3
    assert found.controller is not None
    assert found.controller.limits.reserved.all()
    sequences = again.generate(**inputs, effort="auto", thinking_budget=7)
    assert budgets(found, sequences) == [7, 7]
    assert again.generation_config.thinking_budget == 3


def test_install_adds_each_knob_once(model: Any, tokenizer: Any) -> None:
    model.generation_config.thinking_budget = 9
    install(model, tokenizer)
    install(model, tokenizer)
    assert {name: getattr(model.generation_config, name) for name in KNOBS} == {**KNOBS, "thinking_budget": 9}


def test_without_knobs_nothing_changes(model: Any, tokenizer: Any, inputs: Any, artifact: Any) -> None:
    def sample() -> Any:
        torch.manual_seed(3)
        return model.generate(**inputs, output_logits=True, output_scores=True, return_dict_in_generate=True)

    before = sample()
    found = install(model, tokenizer, artifact)
    after = sample()
    found.uninstall()
    last = sample()
    assert torch.equal(before.sequences, after.sequences)
    assert torch.equal(before.sequences, last.sequences)
    assert all(torch.equal(a, b) for a, b in zip(before.scores, after.scores, strict=True))


def test_uninstalled_model_knows_no_budget(model: Any, tokenizer: Any, inputs: Any) -> None:
    found = install(model, tokenizer)
    found.uninstall()
    assert "_get_logits_processor" not in vars(model)
    model.generation_config.thinking_budget = -1
    model.generate(**inputs, max_new_tokens=2)
    assert found.controller is None
    found.uninstall()


def test_predictor_on_disk(model: Any, tokenizer: Any, inputs: Any, artifact: Any, tmp_path: Path) -> None:
    path = tmp_path / "predictor"
    save_predictor(artifact.predictor, path, artifact.metadata)
    found = install(model, tokenizer, path)
    torch.manual_seed(0)
    one = model.generate(**inputs, effort="medium")
    assert found.artifact is not None
    found.uninstall()
    install(model, tokenizer, artifact)
    torch.manual_seed(0)
    assert torch.equal(one, model.generate(**inputs, effort="medium"))

    weights = path / "predictor.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(PredictorError, match="cannot be read"):
        install(model, tokenizer, path)
    with pytest.raises(PredictorError, match="no length predictor at"):
        install(model, tokenizer, tmp_path / "nothing")


class Spy(LogitsProcessor):
    """Keeps the scores it is given, and bans token 40."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(scores.clone())
        return scores.index_fill(1, torch.tensor([40]), -torch.inf)


def test_processors_of_the_user_run_after_ours(model: Any, tokenizer: Any, inputs: Any) -> None:
    install(model, tokenizer)
    spy = Spy()
    model.generate(**inputs, thinking_budget=0, logits_processor=LogitsProcessorList([spy]), max_new_tokens=4)
    close = tokenizer.convert_tokens_to_ids("</think>")
    assert spy.seen[0].isfinite().nonzero().tolist() == [[0, close], [1, close]]
    assert len(spy.seen) == 4


def test_report_before_and_after(model: Any, tokenizer: Any, inputs: Any) -> None:
    found = install(model, tokenizer)
    with pytest.raises(BudgetError, match="no report yet"):
        found.reports(torch.zeros(1, 1, dtype=torch.int64))
    sequences = model.generate(**inputs, thinking_budget=0, max_new_tokens=6, eos_token_id=[])
    for report, row in zip(found.reports(sequences), sequences, strict=True):
        assert report.close == "forced"
        assert report.predicted_tokens is None
        assert report.as_dict()["thinking_tokens"] == 0
        assert report.answer_tokens <= len(row) - inputs["input_ids"].shape[1] - 1


def test_an_end_of_sequence_of_the_call_ends_no_thought(model: Any, tokenizer: Any, inputs: Any) -> None:
    """An id given to ``generate`` alone ends sequences too: inside a limited thought it becomes the close."""
    found = install(model, tokenizer)
    width = inputs["input_ids"].shape[1]
    free = model.generate(**inputs, do_sample=False, max_new_tokens=1)
    ends = sorted(set(free[:, width].tolist()))
    sequences = model.generate(
        **inputs, do_sample=False, thinking_budget=4, max_new_tokens=8, answer_reserve=2, eos_token_id=ends
    )
    assert not set(sequences[:, width].tolist()) & set(ends)
    assert all(report.close != "none" for report in found.reports(sequences))


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_a_peft_model(model: Any, tokenizer: Any, inputs: Any, artifact: Any, wrapped_first: bool) -> None:
    """``install`` on a PEFT model is an install on the model inside it, which generates."""
    adapter = LoraConfig(target_modules=["q_proj", "v_proj"])  # begins as no change
    found = None if wrapped_first else install(model, tokenizer, artifact)
    peft = get_peft_model(model, adapter)
    found = found or install(peft, tokenizer, artifact)
    assert found.model is model
    assert max(lengths(found, peft.generate(**inputs, thinking_budget=5))) <= 5
    assert budgets(found, peft.generate(**inputs, thinking_budget=[2, None])) == [2, None]
    with pytest.raises(BudgetError, match="thinking_budget"):
        peft.generate(**inputs, thinking_budget=-3)
    found.uninstall()
    peft.generate(**inputs)
    assert "_get_logits_processor" not in vars(model)


class Only(LogitsProcessor):
    """Bans all tokens but one."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert (scores > -torch.inf).any(1).all()
        kept = torch.arange(scores.shape[1]) == self.token
        return scores.masked_fill(~kept, -torch.inf)


@pytest.mark.parametrize("knobs", [{"min_thinking_tokens": 6}, {"thinking_budget": 3}], ids=str)
@pytest.mark.parametrize("text", ["</think>", "<|im_end|>", "<think>", "a"])
@pytest.mark.parametrize("before", [True, False])
def test_a_processor_that_leaves_one_token(
    model: Any, tokenizer: Any, inputs: Any, before: bool, text: str, knobs: dict[str, int]
) -> None:
    """Sampling from a row without a token would end the call with an error."""
    installation = install(model, tokenizer)
    (token,) = tokenizer.encode(text, add_special_tokens=False)
    asked: dict[str, Any] = {"logits_processor": [Only(token)]}
    if before:  # transformers puts its own processors first
        asked = {"prefix_allowed_tokens_fn": lambda row, ids: [token]}
    sequences = model.generate(**inputs, **knobs, **asked, max_new_tokens=12)
    reports = installation.reports(sequences)
    assert all(report.thinking_tokens <= knobs.get("thinking_budget", 12) for report in reports)
