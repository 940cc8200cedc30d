"""Steps of a layer with room leave the state that plain steps leave, whenever it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from budgetctl.kv import POLICIES, BudgetCache, late, roomy
from budgetctl.kv.policies import DecayedMax

#: Policies without a window of queries.
STEADY = ("diverse-max", "decayed-max", "window", "h2o", "tova", "keydiff")
Act = Callable[[BudgetCache], object]


def decode(
    model: PreTrainedModel,
    steps: int,
    *,
    rows: int = 2,
    prompt: int = 9,
    acts: dict[int, Act] | None = None,
    **options: Any,
) -> tuple[BudgetCache, torch.Tensor]:
    """The cache and the logits after a prompt and some steps of given tokens; ``acts`` are done before their step."""
    ids = torch.randint(1, 50, (rows, prompt + steps), generator=torch.Generator().manual_seed(0))
    model.set_attn_implementation("budget_kv")
    cache = BudgetCache(model.config, **options)
    found = []
    with torch.inference_mode():
        model(ids[:, :prompt], past_key_values=cache)
        for step in range(steps):
            if acts and step in acts:
                acts[step](cache)
            at = prompt + step
            found.append(model(ids[:, at : at + 1], past_key_values=cache).logits)
    return cache, torch.cat(found, 1)


def check_same(found: BudgetCache, expected: BudgetCache) -> None:
    for here, there in zip(found.layers, expected.layers, strict=True):
        assert here.state is not None
        assert there.state is not None
        assert here.queued == there.queued
        empty = here.state.positions < 0
        for name, tensor in here.state.tensors().items():
            other = there.state.tensors()[name]
            if name == "queue":  # what is left of it
                tensor, other = (t[:, :, t.shape[2] - here.queued :] for t in (tensor, other))
            if name in ("importance", "value_norms"):
                tensor, other = tensor.masked_fill(empty, 0.0), other.masked_fill(empty, 0.0)
            torch.testing.assert_close(tensor, other, atol=1e-12, rtol=1e-10, msg=f"{name} differs")


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[BudgetCache, torch.Tensor]]:
    """:func:`decode` by plain steps alone."""

    def run(*args: Any, **options: Any) -> tuple[BudgetCache, torch.Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(late, "may_look", lambda device: False)
            patch.setattr(roomy, "step", None)
            return decode(*args, **options)

    return run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Columns of the steps with room, and how many steps were made up for at a time."""
    seen: dict[str, list[int]] = {"steps": [], "behind": []}
    step, catch_up = roomy.step, roomy.catch_up

    def noted(*args: Any, column: int, **options: Any) -> torch.Tensor:
        seen["steps"].append(column)
        return step(*args, column=column, **options)

    def noted_too(state: Any, queries: Any, *args: Any, **options: Any) -> None:
        seen["behind"].append(len(queries))
        catch_up(state, queries, *args, **options)

    monkeypatch.setattr(roomy, "step", noted)
    monkeypatch.setattr(roomy, "catch_up", noted_too)
    return seen


@pytest.mark.parametrize("policy", STEADY)
@pytest.mark.parametrize("steps", [1, 5, 16, 17, 40])
def test_state_is_that_of_plain_steps(
    qwen: PreTrainedModel, plainly: Any, counted: dict[str, list[int]], policy: str, steps: int
) -> None:
    options: dict[str, Any] = {"capacity": 80, "policy": policy, "evicted": True}
    found, logits = decode(qwen, steps, **options)
    assert not counted["behind"] or max(counted["behind"]) == roomy.MOST_BEHIND
    expected, others = plainly(qwen, steps, **options)
    check_same(found, expected)
    torch.testing.assert_close(logits, others, atol=1e-9, rtol=1e-9)
    assert counted["steps"] == [9 + i for i in range(steps) for _ in found.layers]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_evicted_later_is_the_same(qwen: PreTrainedModel, plainly: Any, policy: str) -> None:
    options: dict[str, Any] = {"capacity": 40, "policy": policy, "evicted": True, "recent": 6}
    found, logits = decode(qwen, 90, **options)
    expected, others = plainly(qwen, 90, **options)
    check_same(found, expected)
    torch.testing.assert_close(logits, others, atol=1e-9, rtol=1e-9)


ACTS: dict[str, Act] = {
    "looked at": lambda cache: cache.positions(0),
    "answer": lambda cache: cache.begin_answer(torch.tensor([True, False]), 3),
    "cropped": lambda cache: cache.crop(-2),
    "reordered": lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("at", [3, 18])
def test_acts_between_steps(qwen: PreTrainedModel, plainly: Any, act: str, at: int) -> None:
    options: dict[str, Any] = {"capacity": 60, "acts": {at: ACTS[act], at + 1: ACTS["looked at"]}}
    found, logits = decode(qwen, 30, **options)
    expected, others = plainly(qwen, 30, **options)
    check_same(found, expected)
    torch.testing.assert_close(logits, others, atol=1e-9, rtol=1e-9)


def test_padding_and_answers_and_full_slots_are_plain_steps(
    qwen: PreTrainedModel, prompts: list[list[int]], generate: Any, counted: dict[str, list[int]]
) -> None:
    generate(qwen, prompts, 80)
    decode(qwen, 10, capacity=60, acts={0: ACTS["answer"]})
    decode(qwen, 10, capacity=[[30, 40]] * 2)
    decode(qwen, 10, capacity=60, policy="snapkv")
    assert counted["steps"] == []
    decode(qwen, 30, capacity=24, recent=4, policy=DecayedMax(interval=4))
    assert sorted(set(counted["steps"])) == list(range(9, 21))


def test_outside_of_inference_mode(qwen: PreTrainedModel) -> None:
    """Where the state was made in it."""
    cache, _ = decode(qwen, 5, capacity=60)
    assert torch.is_inference_mode_enabled() is False
    assert cache.positions(1).amax().item() == 13


def test_logits_are_held_a_few_at_a_time(
    qwen: PreTrainedModel, plainly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roomy, "MOST_LOGITS", 3 * 2 * 4 * 25)
    check_same(decode(qwen, 16, capacity=60)[0], plainly(qwen, 16, capacity=60)[0])
