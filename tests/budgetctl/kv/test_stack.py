"""Layers side by side in memory: who shares it, who leaves it, and that nothing else differs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from budgetctl.kv import BudgetCache, layer, stack
from budgetctl.kv.cache import Capacity
from tests.budgetctl.kv.test_roomy import check_same, decode


def stacks(cache: BudgetCache) -> list[stack.Stack | None]:
    return [each.stack for each in cache.layers]


def test_slots_lie_side_by_side(qwen: PreTrainedModel) -> None:
    cache, _ = decode(qwen, 20, capacity=24, recent=4)
    first, second = stacks(cache)
    assert first is second is not None
    for i, each in enumerate(cache.layers):
        assert each.state is first.parts[i]
        assert each.state.keys.data_ptr() == first.state.keys[2 * i :].data_ptr()
    assert cache.bytes_allocated == first.state.bytes


@pytest.mark.parametrize("most", [0, 2 * 48, 2 * 48 * 2 - 1])
def test_more_slots_than_are_allowed_together_lie_apart(
    qwen: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    expected, logits = decode(qwen, 60, capacity=24, recent=4, evicted=True)
    monkeypatch.setattr(stack, "MOST_SLOTS", most)
    found, others = decode(qwen, 60, capacity=24, recent=4, evicted=True)
    assert stacks(found) == [None, None]
    check_same(found, expected)
    assert torch.equal(logits, others)


@pytest.mark.parametrize("capacity", [[24, 30], [[24, 30], [30, 24]]], ids=["by layer", "by head"])
def test_unlike_layers_lie_apart(qwen: PreTrainedModel, capacity: Capacity) -> None:
    cache, _ = decode(qwen, 40, capacity=capacity, recent=4)
    assert stacks(cache) == [None, None]


def test_rows_that_are_selected_leave_the_memory(qwen: PreTrainedModel) -> None:
    cache, _ = decode(qwen, 41, capacity=24, recent=4)
    apart = copy.deepcopy(cache)
    assert stacks(apart)[0] is stacks(apart)[1] is not stacks(cache)[0]
    cache.batch_select_indices(torch.tensor([1]))
    assert stacks(cache) == [None, None]
    assert all(each.late.steps is None for each in cache.layers)
    token = torch.tensor([[7]])
    with torch.inference_mode():
        for _ in range(30):
            qwen(token, past_key_values=cache)
            qwen(token.expand(2, 1), past_key_values=apart)
    apart.batch_select_indices(torch.tensor([1]))
    check_same(cache, apart)


def test_a_copy_goes_on_by_itself(qwen: PreTrainedModel) -> None:
    """Amid a queue: what is behind is done in the copy as in the original, which stays as it was."""
    cache, _ = decode(qwen, 42, capacity=24, recent=4)
    with torch.inference_mode():
        qwen(torch.tensor([[3], [4]]), past_key_values=cache)
        again, positions = copy.deepcopy(cache), cache.positions(1).clone()
        for _ in range(10):
            qwen(torch.tensor([[5], [6]]), past_key_values=again)
        assert torch.equal(cache.positions(1), positions)
        for _ in range(10):
            qwen(torch.tensor([[5], [6]]), past_key_values=cache)
    check_same(cache, again)


def test_what_comes_after_steps_is_no_prompt(qwen: PreTrainedModel) -> None:
    cache, _ = decode(qwen, 41, prompt=25, capacity=24, recent=4)
    with torch.inference_mode():
        qwen(torch.full((2, 7), 3), past_key_values=cache)
    for each in cache.layers:
        assert each.state is not None
        assert each.state.prompts.tolist() == [[25, 25], [25, 25]]


def test_full_and_padded_rows_take_no_plain_steps(
    qwen: PreTrainedModel, prompts: Any, generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(*args: Any, **options: Any) -> None:
        raise AssertionError("a plain step")

    monkeypatch.setattr(layer, "decode_step", plain)
    for policy in ("diverse-max", "decayed-max", "snapkv", "tova"):
        generate(qwen, prompts, 24, {"recent": 4, "policy": policy}, max_new_tokens=50)
        decode(qwen, 50, capacity=24, recent=4, policy=policy)
    with pytest.raises(AssertionError, match="a plain step"):
        decode(qwen, 50, capacity=[[24, 30]] * 2, recent=4)
