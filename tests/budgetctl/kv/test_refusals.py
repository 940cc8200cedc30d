"""What a BudgetCache cannot do is told in one line: what came, what was expected, what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GptOssConfig, MistralConfig, PreTrainedModel, Qwen3Config, T5Config

from budgetctl.errors import CacheError
from budgetctl.kv import BudgetCache

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def ready(qwen: PreTrainedModel) -> PreTrainedModel:
    qwen.set_attn_implementation("budget_kv")
    return qwen


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (MistralConfig(sliding_window=64), "sliding_attention"),
        (GptOssConfig(), "sliding_attention"),
        (Qwen3Config(use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding_attention"),
    ],
)
def test_models_that_do_not_attend_to_all(config: Any, what: str) -> None:
    with pytest.raises(CacheError, match=f"has layers with {what}: expected .*; use transformers' own cache"):
        BudgetCache(config, 64)


def test_encoder_decoders() -> None:
    with pytest.raises(CacheError, match="cross-attention"):
        BudgetCache(T5Config(), 64)


@pytest.mark.parametrize(
    ("capacity", "options", "message"),
    [
        ([40], {}, r"1 layers of \[2\] heads: expected 2 layers of 2 key-value heads"),
        ([[40, 40], [40]], {}, r"expected 2 layers of 2 key-value heads"),
        (0, {}, "a capacity of 0: expected at least 1"),
        (
            16,
            {"recent": 8, "policy": "snapkv", "prompt_share": 0.5},
            r"a capacity of 16 slots: expected at least 18 .* first 8 tokens, the 8 latest and 2 victims; raise it",
        ),
        (64, {"policy": "oldest"}, "unknown policy 'oldest'"),
        (64, {"recent": 0}, "at least 1 recent token"),
        (64, {"prompt_share": 1.0}, "a share from 0 to below 1"),
        ([[64, 32], [64, 64]], {"policy": "tova"}, "Tova with different capacities"),
    ],
)
def test_impossible_capacities(
    qwen: PreTrainedModel, capacity: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CacheError, match=message):
        BudgetCache(qwen.config, capacity, **options)


def test_another_attention_function(qwen: PreTrainedModel) -> None:
    qwen.set_attn_implementation("sdpa")
    cache = BudgetCache(qwen.config, 64)
    with pytest.raises(CacheError, match=r"expected attn_implementation='budget_kv'; call model.set_attn"):
        qwen.generate(input_ids=IDS, past_key_values=cache, attention_mask=IDS * 0 + 1)


def test_another_batch(ready: PreTrainedModel) -> None:
    cache = BudgetCache(ready.config, 64)
    ready(IDS, past_key_values=cache)
    with pytest.raises(CacheError, match="the batch has 2 rows: expected 1"):
        ready(IDS.repeat(2, 1), past_key_values=cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(
        ready(IDS, past_key_values=cache).logits,
        ready(IDS, past_key_values=BudgetCache(ready.config, 64)).logits,
    )


def test_another_model(ready: PreTrainedModel) -> None:
    other = Qwen3Config(**{**ready.config.to_dict(), "num_key_value_heads": 4})
    with pytest.raises(CacheError, match="2 key-value heads: expected 4"):
        ready(IDS, past_key_values=BudgetCache(other, 64))


def test_masks_of_another_kind(ready: PreTrainedModel) -> None:
    mask = torch.ones(1, 1, 4, 9, dtype=torch.bool)
    with pytest.raises(CacheError, match="expected the two-dimensional mask of padding"):
        ready(IDS, past_key_values=BudgetCache(ready.config, 64), attention_mask=mask)
    cache = BudgetCache(ready.config, 64)
    ready(IDS, past_key_values=cache)
    with pytest.raises(CacheError, match="mask with 1 columns: expected 5"):
        ready(IDS[:, :1], past_key_values=cache, attention_mask=torch.ones(1, 1, dtype=torch.long))


def test_gradients(ready: PreTrainedModel) -> None:
    with torch.enable_grad(), pytest.raises(CacheError, match=r"with gradients: .* under torch.no_grad"):
        ready(IDS, past_key_values=BudgetCache(ready.config, 64))


def test_a_crop_past_an_eviction(ready: PreTrainedModel) -> None:
    cache = BudgetCache(ready.config, 24)
    ready(IDS.repeat(1, 5), past_key_values=cache)
    with pytest.raises(CacheError, match="pass a negative number"):
        cache.crop(3)
    cache.crop(-2)
    assert cache.get_seq_length() == 18
    assert cache.positions(0).amax() == 17
    ready(IDS.repeat(1, 3), past_key_values=cache)
    cache.crop(0)
    with pytest.raises(CacheError, match=r"would go back to 29 tokens: expected at least 30"):
        cache.crop(-1)


def test_answers_and_positions_before_the_prompt(ready: PreTrainedModel) -> None:
    cache = BudgetCache(ready.config, 64)
    with pytest.raises(CacheError, match="before the prompt"):
        cache.begin_answer()
    with pytest.raises(CacheError, match="no positions yet"):
        cache.positions(0)
    ready(IDS, past_key_values=cache)
    with pytest.raises(CacheError, match=r"rows have shape \(2,\): expected \[1\]"):
        cache.begin_answer(torch.tensor([True, False]))
    with pytest.raises(CacheError, match="a reserve of -1"):
        cache.begin_answer(reserve=-1)


def test_offloading(ready: PreTrainedModel) -> None:
    with pytest.raises(CacheError, match="cannot be offloaded"):
        BudgetCache(ready.config, 64).offload(0)
