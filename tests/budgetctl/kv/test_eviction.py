"""Generation beyond the capacity: rows by themselves, protection, memory, beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from budgetctl.kv import POLICIES, BudgetCache
from budgetctl.kv import blocks as blocks_module
from budgetctl.reasoner.load import load_reasoner
from budgetctl.reasoner.tasks import take_questions
from tests.conftest import pad_left


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [24, [[24, 32], [40, 28]]], ids=["equal", "by head"])
def test_a_row_alone_equals_the_row_in_a_batch(
    qwen: PreTrainedModel, prompts: Any, generate: Any, policy: str, capacity: Any
) -> None:
    if policy == "tova" and capacity != 24:
        pytest.skip("this policy keeps the same tokens in all heads")
    options = {"policy": policy, "recent": 6}
    together = generate(qwen, prompts, capacity, options, max_new_tokens=60)
    assert not torch.equal(together, generate(qwen, prompts, max_new_tokens=60))
    for prompt, row in zip(prompts, together, strict=True):
        alone = generate(qwen, [prompt], capacity, options, max_new_tokens=60)
        assert torch.equal(alone[0], row)


@torch.no_grad()
def test_rows_follow_when_they_are_reordered_selected_and_repeated(
    qwen: PreTrainedModel, prompts: Any
) -> None:
    """Well beyond the capacity, down to the logits."""
    qwen.set_attn_implementation("budget_kv")
    ids = pad_left(prompts)
    tokens = torch.randint(1, 50, (4, 40), generator=torch.Generator().manual_seed(4))

    def start() -> tuple[BudgetCache, torch.Tensor]:
        cache = BudgetCache(qwen.config, 24, recent=6)
        mask = (ids != 0).long()
        places = (mask.cumsum(1) - 1).clamp(min=0)
        qwen(ids, attention_mask=mask, position_ids=places, past_key_values=cache)
        return cache, places[:, -1]

    def go_on(
        cache: BudgetCache, tokens: torch.Tensor, places: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        found = []
        for i, column in enumerate(tokens.T):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            found.append(
                qwen(
                    column[:, None],
                    attention_mask=mask,
                    position_ids=places[:, None] + 1 + i,
                    past_key_values=cache,
                ).logits
            )
        return torch.cat(found, 1)

    mask = (ids != 0).long()
    cache, places = start()
    go_on(cache, tokens[:, :20], places, mask)
    longer = torch.cat([mask, mask.new_ones(4, 20)], 1)
    expected = go_on(cache, tokens[:, 20:], places + 20, longer)
    for rows, change in (
        (torch.tensor([2, 0, 3, 1]), "reorder_cache"),
        (torch.tensor([1, 1, 3, 3]), "reorder_cache"),
        (torch.tensor([3, 1]), "batch_select_indices"),
        (torch.tensor([False, True, True, False]), "batch_select_indices"),
        (torch.arange(4).repeat_interleave(2), "batch_repeat_interleave"),
    ):
        cache, places = start()
        go_on(cache, tokens[:, :20], places, mask)
        getattr(cache, change)(2 if "repeat" in change else rows)
        found = go_on(cache, tokens[rows, 20:], places[rows] + 20, longer[rows])
        torch.testing.assert_close(found, expected[rows], rtol=0, atol=1e-9)


@pytest.mark.slow
@torch.no_grad()
def test_2000_tokens_in_the_same_bytes_and_protected_ones_never_leave(qwen: PreTrainedModel) -> None:
    qwen.set_attn_implementation("budget_kv")
    cache = BudgetCache(qwen.config, [40, [30, 24]], recent=5, sinks=3, prompt_share=0.5)
    token = torch.randint(1, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    size = addresses = None
    for step in range(2000):
        logits = qwen(token, past_key_values=cache).logits
        token = logits[:, -1:].argmax(2)
        tensors = [t.data_ptr() for layer in cache.layers for t in layer.state.tensors().values()]  # type: ignore[union-attr]
        addresses, size = addresses or tensors, size or cache.bytes_allocated
        assert (addresses, size) == (tensors, cache.bytes_allocated)
        assert cache.get_seq_length() == 12 + step
        kept = {*range(12), *range(7 + step, 12 + step)}
        for layer in range(2):
            for held in cache.positions(layer).flatten(0, 1).tolist():
                assert kept <= set(held)


@torch.no_grad()
def test_a_long_prompt_in_blocks_needs_capacity_and_block(
    qwen: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    widest = 0
    attend = blocks_module.sdpa_attention_forward

    def watched(module: Any, query: Any, key: Any, *rest: Any, **options: Any) -> Any:
        nonlocal widest
        widest = max(widest, key.shape[2])
        return attend(module, query, key, *rest, **options)

    monkeypatch.setattr(blocks_module, "sdpa_attention_forward", watched)
    qwen.set_attn_implementation("budget_kv")
    cache = BudgetCache(qwen.config, 32)
    ids = torch.randint(1, 50, (2, 500), generator=torch.Generator().manual_seed(0))
    found = qwen.generate(
        input_ids=ids,
        past_key_values=cache,
        prefill_chunk_size=16,
        max_new_tokens=5,
        attention_mask=ids * 0 + 1,
    )
    assert found.shape == (2, 505)
    assert widest == 32 + 16
    assert cache.get_seq_length() == 504
    assert {0, 1, 2, 3, 503} <= set(cache.positions(0)[0, 0].tolist())


def test_beams_beyond_the_capacity_are_reproducible(
    qwen: PreTrainedModel, prompts: Any, generate: Any
) -> None:
    """The beams of a prompt in a batch are those of the prompt alone."""
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 50}
    together = generate(qwen, prompts[:2], 24, {"recent": 6}, **options)
    alone = [generate(qwen, [prompt], 24, {"recent": 6}, **options) for prompt in prompts[:2]]
    assert torch.equal(together, torch.cat(alone))


def test_the_reasoner_answers_in_a_cache_shorter_than_its_thought() -> None:
    """Up to 120 tokens in 64 slots: every thought is closed, and an answer follows."""
    model, tokenizer = load_reasoner()
    tokenizer.padding_side = "left"
    questions = take_questions("test", 4, min_level=9)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q.prompt}], add_generation_prompt=True, tokenize=False
        )
        for q in questions
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    model.set_attn_implementation("budget_kv")
    cache = BudgetCache(model.config, 64, prompt_share=0.7, recent=8)
    found = model.generate(**inputs, max_new_tokens=300, do_sample=False, past_key_values=cache)
    assert cache.get_seq_length() > 1.5 * 64
    written = tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :])
    assert all("</think>" in text and "Answer:" in text for text in written)
