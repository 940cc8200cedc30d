"""Slots shared out: the total is exact, floors hold, and what needs more gets more."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import PreTrainedModel

from budgetctl.errors import CacheError
from budgetctl.kv import BudgetCache
from budgetctl.kv.allocators import by_head, by_layer_and_head, by_sensitivity, uniform
from budgetctl.kv.profiles import importance, key_alignment

SHARE = st.floats(0, 1)


@given(
    st.integers(1, 4096),
    st.lists(st.floats(-1, 1), min_size=1, max_size=64),
    st.floats(0, 3),
    SHARE,
)
def test_sensitive_layers_get_more(capacity: int, alignment: list[float], power: float, floor: float) -> None:
    found = by_sensitivity(capacity, alignment, power=power, floor=floor)
    assert sum(found) == capacity * len(alignment)
    assert min(found) >= max(1, math.floor(capacity * floor))
    order = sorted(range(len(found)), key=lambda i: alignment[i])
    assert all(found[a] >= found[b] - 1 for a, b in pairwise(order))


@given(
    st.integers(1, 30),
    hnp.arrays(
        float,
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40)),
        elements=st.floats(0, 1),
        unique=True,
    ),
    SHARE,
)
def test_heads_with_the_best_keys_get_more(capacity: int, scores: Any, floor: float) -> None:
    layers, heads, keys = scores.shape
    found = by_layer_and_head(capacity, list(torch.from_numpy(scores)), floor=floor)
    flat = [slots for layer in found for slots in layer]
    assert [len(layer) for layer in found] == [heads] * layers
    assert sum(flat) == capacity * layers * heads
    least = max(1, math.floor(capacity * floor))
    assert min(flat) >= least
    # The floors aside, what is kept is at least as good as what is not.
    if capacity <= keys:
        ordered = [sorted(row, reverse=True) for row in scores.reshape(layers * heads, keys).tolist()]
        last_kept = [row[n - 1] for row, n in zip(ordered, flat, strict=True) if n > least and n <= keys]
        first_left = [row[n] for row, n in zip(ordered, flat, strict=True) if n < keys]
        if last_kept and first_left:
            assert min(last_kept) >= max(first_left)


def test_one_layer_is_the_same_by_itself() -> None:
    scores = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
    scores[2] *= 3
    found = by_head(10, scores)
    assert found == by_layer_and_head(10, [scores])[0]
    assert sum(found) == 40
    assert found[2] == max(found) > 15
    assert min(found) >= 2


def test_uniform() -> None:
    assert uniform(7, 3) == [7, 7, 7]


def test_what_cannot_be_shared_out_is_told() -> None:
    with pytest.raises(CacheError, match="no layers"):
        by_sensitivity(8, [])
    with pytest.raises(CacheError, match="a share from 0 to 1"):
        by_sensitivity(8, [0.5, 0.6], floor=1.5)
    with pytest.raises(CacheError, match=r"expected \[heads, keys\]"):
        by_head(8, torch.zeros(3))


def test_profiles_of_a_model_make_a_cache(qwen: PreTrainedModel) -> None:
    ids = torch.randint(1, 50, (2, 60), generator=torch.Generator().manual_seed(0))
    qwen.set_attn_implementation("sdpa")
    scores = importance(qwen, ids)
    assert [tuple(s.shape) for s in scores] == [(2, 60)] * 2
    assert qwen.config._attn_implementation == "sdpa"
    capacity = by_layer_and_head(30, scores)
    alignment = key_alignment(qwen, ids, block=16, sinks=4)
    # The keys of the first layer come from the tokens alone.
    assert alignment[0] == pytest.approx(1.0)
    assert alignment[1] < 0.99
    assert by_sensitivity(30, alignment)[1] > 30
    assert key_alignment(qwen, ids, block=200)[1] == pytest.approx(1.0)
    cache = BudgetCache(qwen.config, capacity, prompt_share=0, sinks=1, recent=1)
    qwen.set_attn_implementation("budget_kv")
    qwen.generate(input_ids=ids, past_key_values=cache, max_new_tokens=5)
    assert cache.capacities == [tuple(layer) for layer in capacity]
    slots = [layer.state.keys.shape[1] for layer in cache.layers if layer.state is not None]
    assert sum(slots) == 30 * 4


@torch.no_grad()
def test_importance_is_the_worst_case_attention(qwen: PreTrainedModel) -> None:
    """Against the attention weights of eager attention: the largest of the group, fading by 0.97 a query."""
    ids = torch.randint(1, 50, (1, 20), generator=torch.Generator().manual_seed(0))
    found = importance(qwen, ids)
    qwen.set_attn_implementation("eager")
    weights = qwen(ids, output_attentions=True).attentions
    fading = 0.97 ** torch.arange(19, -1, -1.0, dtype=torch.float64)
    for layer, layer_weights in zip(found, weights, strict=True):
        mass = layer_weights[0].unflatten(0, (2, 2)).amax(1)
        torch.testing.assert_close(layer, (mass * fading[:, None]).amax(1))
