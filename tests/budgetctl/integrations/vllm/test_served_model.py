"""What is read of a model that vLLM serves, against what ``install`` finds in transformers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from budgetctl.errors import PredictorError
from budgetctl.integrations.transformers import install
from budgetctl.integrations.vllm.served_model import (
    misfit,
    output_embedding,
    read_served_model,
    rounding_error,
)
from budgetctl.predictors.hidden_state import LogitsHiddenState
from budgetctl.reasoner.load import PREDICTOR, WEIGHTS, load_reasoner

CPU = torch.device("cpu")


def vllm_config(dtype: torch.dtype = torch.float32) -> Any:
    """As far as it is read."""
    text = AutoConfig.from_pretrained(WEIGHTS)
    model = SimpleNamespace(
        model=str(WEIGHTS),
        revision=None,
        tokenizer=str(WEIGHTS),
        tokenizer_revision=None,
        trust_remote_code=False,
        dtype=dtype,
        max_model_len=1024,
        hf_text_config=text,
        get_vocab_size=lambda: text.vocab_size,
        try_get_generation_config=lambda: {"eos_token_id": 2},
    )
    return SimpleNamespace(model_config=model)


def test_the_embedded_reasoner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDGETCTL_PREDICTOR", str(PREDICTOR))
    served = read_served_model(vllm_config(), CPU)
    model, tokenizer = load_reasoner()
    installed = install(model, tokenizer, PREDICTOR)
    assert served.delimiters == installed.delimiters
    assert torch.equal(served.boundaries.line, installed.boundaries.line)
    assert served.forecast is not None
    assert installed.forecast is not None
    with torch.no_grad():
        logits = model(torch.tensor([[1, 287, 203, 3, 203], [1, 287, 3, 203, 40]])).logits[:, -1]
    for own, other in ((served.forecast, installed.forecast), (installed.forecast, served.forecast)):
        assert own.natural_level == other.natural_level
        assert own.guidance_strength == other.guidance_strength
    found, wanted = served.forecast.outlook(logits), installed.forecast.outlook(logits)
    torch.testing.assert_close(found.parameters, wanted.parameters)
    assert served.rounding_error is not None
    assert served.rounding_error < 1e-4


def test_logits_that_are_too_coarse_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reasoner has 384 logits for 256 numbers of a hidden state: too few for their noise to average out."""
    monkeypatch.setenv("BUDGETCTL_PREDICTOR", str(PREDICTOR))
    with pytest.raises(PredictorError, match="serve with --dtype float32"):
        read_served_model(vllm_config(torch.bfloat16), CPU)


def test_half_precision_costs_little_where_there_are_many_more_logits_than_hidden_states() -> None:
    weight = torch.randn(8192, 64, generator=torch.Generator().manual_seed(0))
    assert rounding_error(LogitsHiddenState(weight), weight, torch.bfloat16) < 0.005


def test_without_a_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUDGETCTL_PREDICTOR", raising=False)
    served = read_served_model(vllm_config(), CPU)
    assert served.forecast is served.rounding_error is None


def test_markers_that_the_tokenizer_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUDGETCTL_PREDICTOR", raising=False)
    monkeypatch.setenv("BUDGETCTL_OPEN_TEXT", "[")
    monkeypatch.setenv("BUDGETCTL_CLOSE_TEXT", "]")
    served = read_served_model(vllm_config(), CPU)
    assert (served.delimiters.open_text, served.delimiters.close_text) == ("[", "]")


@pytest.mark.parametrize(
    ("tied", "names", "chosen"),
    [
        (True, ["model.embed_tokens.weight", "model.norm.weight"], "model.embed_tokens.weight"),
        (False, ["model.embed_tokens.weight", "lm_head.weight"], "lm_head.weight"),
        (True, ["transformer.wte.weight", "lm_head.weight"], "transformer.wte.weight"),
        (False, ["gpt_neox.embed_in.weight", "embed_out.weight"], "embed_out.weight"),
    ],
)
def test_the_output_embedding_of_a_checkpoint_in_parts(
    tied: bool, names: list[str], chosen: str, tmp_path: Path
) -> None:
    tensors = {name: torch.full((3, 2), float(at)) for at, name in enumerate(names)}
    for at, (name, tensor) in enumerate(tensors.items()):
        save_file({name: tensor}, tmp_path / f"model-{at}.safetensors")
    found = output_embedding(tmp_path, SimpleNamespace(tie_word_embeddings=tied))
    assert torch.equal(found, tensors[chosen])


def test_a_checkpoint_without_an_output_embedding_or_with_a_quantised_one(tmp_path: Path) -> None:
    text = SimpleNamespace(tie_word_embeddings=False)
    with pytest.raises(PredictorError, match="no output embedding in safetensors"):
        output_embedding(tmp_path, text)
    save_file({"lm_head.weight": torch.zeros(3, 2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(PredictorError, match="expected 16 bits or more"):
        output_embedding(tmp_path, text)


@pytest.mark.parametrize("softcap", [None, 20.0])
def test_logits_that_no_hidden_state_explains(softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(400, 16, generator=generator)
    source = LogitsHiddenState(weight, softcap=softcap, dtype=torch.float64)
    logits = torch.randn(5, 16, generator=generator) @ weight.T
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    assert misfit(source, logits).max() < 1e-4
    banned = logits.clone()
    banned[:, [3, 70]] = -torch.inf
    assert misfit(source, banned).max() < 1e-4
    penalised = torch.where(
        torch.arange(400) < 80, torch.where(logits > 0, logits / 1.3, logits * 1.3), logits
    )
    assert misfit(source, penalised).min() > 0.02
    assert rounding_error(source, weight, torch.float32) < 1e-4
    assert rounding_error(source, weight, torch.bfloat16) > 1e-4
