"""Victims of all layers in one call are those of one layer after the other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from budgetctl.kv import POLICIES, BudgetCache
from budgetctl.kv.shared import refill_layers
from tests.conftest import pad_left


@torch.no_grad()
def cache_with_empty_queues(model: PreTrainedModel, prompts: list[list[int]], **options: Any) -> BudgetCache:
    """After as many steps as end with no victim left in any layer."""
    model.set_attn_implementation("budget_kv")
    cache = BudgetCache(model.config, [[24, 31], [40, 19]], recent=4, sinks=2, **options)
    ids = pad_left(prompts)
    out = model(ids, attention_mask=(ids != 0).long(), past_key_values=cache, use_cache=True)
    mask = (ids != 0).long()
    for _ in range(8 * cache.policy.interval):
        mask = torch.cat((mask, torch.ones(len(prompts), 1, dtype=torch.long)), 1)
        token = out.logits[:, -1:].argmax(2)
        out = model(token, attention_mask=mask, past_key_values=cache, use_cache=True)
    assert all(layer.queued == 0 for layer in cache.layers)
    return cache


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "tova"])
def test_together_is_one_after_the_other(qwen: PreTrainedModel, prompts: Any, policy: str) -> None:
    cache = cache_with_empty_queues(qwen, prompts, policy=policy)
    apart = copy.deepcopy(cache)
    refill_layers(cache.layers)
    for layer, alone in zip(cache.layers, apart.layers, strict=True):
        refill_layers([alone])
        assert alone.queued == layer.queued == layer.interval
        assert torch.equal(layer.state.queue, alone.state.queue)
        assert torch.equal(layer.state.cursor, alone.state.cursor)
    assert not torch.equal(cache.layers[0].state.queue, cache.layers[1].state.queue)
