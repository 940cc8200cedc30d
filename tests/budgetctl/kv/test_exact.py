"""While everything fits, a BudgetCache gives the tokens of a full cache with SDPA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from budgetctl.kv import POLICIES, BudgetCache
from budgetctl.reasoner.load import load_reasoner
from budgetctl.reasoner.tasks import take_questions
from tests.conftest import pad_left

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "beams returned": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
    "in blocks": {"prefill_chunk_size": 7},
    "in blocks of one": {"prefill_chunk_size": 1},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 4])
def test_tokens_equal_a_full_cache(
    model: PreTrainedModel, prompts: list[list[int]], generate: Any, mode: str, rows: int
) -> None:
    found = []
    for capacity in (None, 80):
        torch.manual_seed(1)
        found.append(generate(model, prompts[:rows], capacity, **MODES[mode]))
    assert found[0].unique().numel() > 6
    assert torch.equal(*found)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_leaves_what_fits(
    qwen: PreTrainedModel, prompts: Any, generate: Any, policy: str
) -> None:
    options = {"policy": policy}
    assert torch.equal(generate(qwen, prompts), generate(qwen, prompts, 70, options))


def test_float32_and_capacities_by_layer_and_head(prompts: Any, generate: Any, qwen: PreTrainedModel) -> None:
    single = type(qwen)(qwen.config).eval()
    single.load_state_dict(qwen.state_dict())
    single.generation_config = qwen.generation_config
    expected = generate(single, prompts)
    for capacity in (70, [75, 90], [[71, 80], [99, 70]]):
        assert torch.equal(generate(single, prompts, capacity), expected)


def test_prompt_lookup_crops_what_it_drafted(qwen: PreTrainedModel, generate: Any) -> None:
    prompt = [[5, 6, 7, 8, 9, 5, 6, 7]]
    for drafted in (3, 6):
        options = {"prompt_lookup_num_tokens": drafted, "max_new_tokens": 60}
        assert torch.equal(
            generate(qwen, prompt, max_new_tokens=60), generate(qwen, prompt, 80, None, **options)
        )


@pytest.mark.parametrize("continued", ["all tokens", "new tokens"])
def test_a_conversation_goes_on(qwen: PreTrainedModel, prompts: Any, continued: str) -> None:
    """The cache of the first turn serves the second, in a left-padded batch."""
    ids = pad_left(prompts)
    turn = torch.randint(1, 50, (4, 6), generator=torch.Generator().manual_seed(8))
    results = []
    for cache, name in ((DynamicCache(), "sdpa"), (BudgetCache(qwen.config, 120), "budget_kv")):
        qwen.set_attn_implementation(name)
        first = qwen.generate(
            input_ids=ids, attention_mask=(ids != 0).long(), past_key_values=cache, max_new_tokens=20
        )
        whole = torch.cat([first, turn], 1)
        mask = torch.cat([(ids != 0).long(), torch.ones(4, 26, dtype=torch.long)], 1)
        given = whole if continued == "all tokens" else whole[:, cache.get_seq_length() :]
        second = qwen.generate(input_ids=given, attention_mask=mask, past_key_values=cache, max_new_tokens=20)
        results.append(second[:, -20:])
        assert cache.get_seq_length() == ids.shape[1] + 20 + 6 + 19
    assert torch.equal(*results)


@torch.no_grad()
def test_forward_without_positions_or_mask(qwen: PreTrainedModel, prompts: Any) -> None:
    """get_seq_length places the tokens; whole, in blocks, and one by one, down to the logits."""
    ids = torch.tensor(prompts[3:])
    qwen.set_attn_implementation("sdpa")
    expected = qwen(ids).logits
    qwen.set_attn_implementation("budget_kv")
    for sizes in ([30], [10, 1, 1, 18], [1] * 30, [29, 1]):
        cache = BudgetCache(qwen.config, 48)
        logits = torch.cat([qwen(part, past_key_values=cache).logits for part in ids.split(sizes, 1)], 1)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_what_is_cropped_is_forgotten(qwen: PreTrainedModel, prompts: Any) -> None:
    """Drafts of several tokens and single ones; what was a draft is no prompt."""
    ids = torch.tensor(prompts[3:])
    wrong = torch.full((1, 5), 7)
    qwen.set_attn_implementation("sdpa")
    expected = qwen(ids).logits
    qwen.set_attn_implementation("budget_kv")
    cache = BudgetCache(qwen.config, 48)
    qwen(ids[:, :10], past_key_values=cache)
    qwen(torch.cat([ids[:, 10:12], wrong], 1), past_key_values=cache)
    cache.crop(-5)
    assert all(bool((layer.state.prompts == 10).all()) for layer in cache.layers if layer.state)
    at = 12
    for single in (2, 3, 1):
        for token in wrong[0, :single]:
            qwen(token[None, None], past_key_values=cache)
        cache.crop(-single)
        for _ in range(5):
            logits = qwen(ids[:, at : at + 1], past_key_values=cache).logits
            torch.testing.assert_close(logits[0, 0], expected[0, at], rtol=0, atol=1e-9)
            at += 1


@torch.no_grad()
def test_without_a_budget_cache_it_is_sdpa(qwen: PreTrainedModel, prompts: Any) -> None:
    ids = pad_left(prompts)
    found = []
    for name in ("sdpa", "budget_kv"):
        qwen.set_attn_implementation(name)
        found.append(qwen.generate(input_ids=ids, attention_mask=(ids != 0).long()))
        found.append(qwen(ids, attention_mask=(ids != 0).long()).logits[:, -1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_the_reasoner_thinks_the_same() -> None:
    """Greedy and beam, a left-padded batch of eight questions; beams of two questions."""
    model, tokenizer = load_reasoner()
    tokenizer.padding_side = "left"
    questions = [question.prompt for question in take_questions("test", 8)]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], add_generation_prompt=True, tokenize=False
        )
        for q in questions
    ]
    for count, options in ((8, {}), (2, {"num_beams": 3})):
        inputs = tokenizer(texts[:count], return_tensors="pt", padding=True, add_special_tokens=False)
        found = []
        for name in ("sdpa", "budget_kv"):
            model.set_attn_implementation(name)
            cache = None if name == "sdpa" else BudgetCache(model.config, 400)
            found.append(
                model.generate(
                    **inputs, max_new_tokens=200, do_sample=False, past_key_values=cache, **options
                )
            )
        assert torch.equal(*found)
