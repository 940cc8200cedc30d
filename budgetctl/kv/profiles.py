"""What a model's layers and heads need, measured on sample prompts: input of the allocators."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from budgetctl.kv.attention import NAME
from budgetctl.kv.cache import BudgetCache
from budgetctl.kv.policies import DecayedMax, Policy, find_policy


@torch.no_grad()
def importance(model: Any, input_ids: torch.Tensor, policy: Policy | str | None = None) -> list[torch.Tensor]:
    """Score of every key of the prompts in every head, by a policy; the mean over prompts.

    Args:
        model: decoder-only; its attention is set to ``budget_kv`` for the while.
        input_ids: [B, n] int64, without padding.
        policy: by default the largest attention, fading, without the values.

    Returns:
        for each layer [H, n] float32 (float64 for such a model), in the order of the tokens.
    """
    policy = DecayedMax(prior=0) if policy is None else find_policy(policy)
    cache = BudgetCache(model.config, 2 * input_ids.shape[1] + 64, policy, recent=1)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        model(input_ids, past_key_values=cache)
    finally:
        model.set_attn_implementation(before)
    found = []
    for layer in cache.layers:
        assert layer.state is not None
        # The slots of a first block are filled in order.
        found.append(layer.policy.scores(layer.state, input_ids.shape[1]).mean(0))
    return found


@torch.no_grad()
def key_alignment(model: Any, input_ids: torch.Tensor, *, block: int = 4096, sinks: int = 128) -> list[float]:
    """Cosine of each layer's keys with all of the context and with the latest of it only (EpiCache, arXiv 2509.17396).

    A token of the second run sees the first ``sinks`` tokens, its half block and the one before.

    Args:
        model: decoder-only, with ``sdpa`` or ``eager`` attention.
        input_ids: [B, n] int64, without padding; n well above ``block``, or all cosines are 1.
        block: tokens.
        sinks: tokens.

    Returns:
        [L] mean over prompts, heads and tokens, for ``allocators.by_sensitivity``.
    """
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    half = max(block // 2, 1)
    first = (place // half - 1) * half
    seen = (place[None] <= place[:, None]) & ((place[None] >= first[:, None]) | (place[None] < sinks))
    whole, part = DynamicCache(), DynamicCache()
    model(input_ids, past_key_values=whole)
    model(
        input_ids,
        past_key_values=part,
        attention_mask=seen[None, None].expand(len(input_ids), 1, -1, -1),
        position_ids=place[None],
    )
    pairs = zip(whole.layers, part.layers, strict=True)
    return [float(torch.cosine_similarity(a.keys.float(), b.keys.float(), dim=3).mean()) for a, b in pairs]
