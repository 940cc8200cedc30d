"""A tiny Qwen3 and Llama with random weights, prompts of different lengths, and generation by both caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from budgetctl.kv import BudgetCache
from tests.conftest import pad_left

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 32,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def lively(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that the text varies and attention is far from uniform."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(10 if "lm_head" in name or "embed" in name else 60)
                if "q_proj" in name or "k_proj" in name:
                    weight.div_(8)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, max_new_tokens=40)
    return model.eval()


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """float64."""
    torch.manual_seed(0)
    if request.param == "qwen3":
        return lively(Qwen3ForCausalLM(Qwen3Config(**SIZES)).double())
    return lively(LlamaForCausalLM(LlamaConfig(**SIZES)).double())


@pytest.fixture(scope="session")
def qwen() -> PreTrainedModel:
    """float64."""
    torch.manual_seed(0)
    return lively(Qwen3ForCausalLM(Qwen3Config(**SIZES)).double())


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 50, (n,), generator=generator).tolist() for n in (9, 21, 4, 30)]


Generate = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def generate() -> Generate:
    """Tokens of a left-padded batch after its prompts; by a full cache and SDPA where ``capacity`` is None."""

    def run(
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        capacity: Any = None,
        cache_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        ids = pad_left(prompts)
        if capacity is not None:
            options["past_key_values"] = BudgetCache(model.config, capacity, **(cache_options or {}))
        model.set_attn_implementation("sdpa" if capacity is None else "budget_kv")
        mask = (ids != 0).long()
        found = model.generate(input_ids=ids, attention_mask=mask, **options)
        return found[:, ids.shape[1] :]

    return run
