"""HBPO against its formulas (arXiv 2507.15844, equations 1-3 and Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.training.hbpo import HBPO, HBPOArguments, budget_reward, budget_value, intra_advantages

L = 4096
OPEN, CLOSE = 3, 4
MARKERS = ThinkingDelimiters((OPEN,), ((CLOSE,),), (CLOSE,), eos_ids=(2,))


def reward(n: int, b: int, correct: bool = True) -> float:
    tensors = torch.tensor([correct]), torch.tensor([n]), torch.tensor([b])
    return float(budget_reward(*tensors, L)[0])


@given(n=st.integers(0, 5000), b=st.integers(1, 4095))
def test_reward_is_equation_1(n: int, b: int) -> None:
    if n > L:
        expected = 0.0
    elif n <= b:
        expected = 4 * math.cos(math.pi * b / 8192)
    else:
        expected = 4 * math.cos(math.pi * n / 8192) - (n - b) / 4096
    assert reward(n, b) == pytest.approx(expected, abs=1e-5)
    assert reward(n, b, correct=False) == 0


def test_reward_is_continuous_at_the_budget_and_falls_beyond_it() -> None:
    assert reward(1024, 1024) == pytest.approx(reward(1025, 1024), abs=2e-3)
    values = [reward(n, 1024) for n in range(1024, 4097, 64)]
    assert values == sorted(values, reverse=True)
    assert len({reward(n, 1024) for n in range(0, 1025, 64)}) == 1


def test_short_budgets_pay_for_short_answers_and_long_ones_for_long_answers() -> None:
    assert reward(400, 512) > reward(400, 2560) == reward(2500, 2560) > reward(2500, 512)


def test_intra_advantage_is_the_subgroups_mean_against_its_budget() -> None:
    rewards = torch.tensor([1.0, 3.0, 0.0, 4.0, 2.0, 2.0, 0.0, 0.0])
    budgets = torch.tensor([512, 512, 1024, 1024] * 2)
    got = intra_advantages(rewards, budget_value(budgets, L), 2)
    value = {b: 4 * math.cos(math.pi * b / 8192) for b in (512, 1024)}
    means = [2.0, 2.0, 2.0, 0.0]
    expected = [m - value[b] for m, b in zip(means, (512, 1024, 512, 1024), strict=True) for _ in range(2)]
    torch.testing.assert_close(got, torch.tensor(expected))


def method(*budgets: int, **options: float) -> HBPO:
    openings = tuple((90 + i,) for i in range(len(budgets)))
    return HBPO(MARKERS, L, budgets, openings, **options)


def test_advantage_is_inter_plus_intra() -> None:
    torch.manual_seed(0)
    rewards, budgets = torch.rand(16) * 4, torch.tensor([512] * 4 + [2560] * 4).repeat(2)
    groups = rewards.view(2, 8)
    inter = ((groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True)).flatten()
    got = method(512, 2560).advantages(inter, rewards, {"budget": budgets}, 8)
    for row in range(16):
        mean = rewards[row // 4 * 4 : row // 4 * 4 + 4].mean()
        expected = inter[row] + mean - 4 * math.cos(math.pi * int(budgets[row]) / 8192)
        assert float(got[row]) == pytest.approx(float(expected), abs=1e-5)
    none = method(512, 2560, intra_weight=0.0).advantages(inter, rewards, {"budget": budgets}, 8)
    torch.testing.assert_close(none, inter)


def test_one_subgroup_is_grpo() -> None:
    torch.manual_seed(1)
    relative, rewards = torch.randn(12), torch.rand(12)
    got = method(1536).advantages(relative, rewards, {"budget": torch.full((12,), 1536)}, 6)
    assert torch.equal(got, relative)


def test_each_subgroup_gets_an_equal_run_of_the_group_and_its_opening() -> None:
    prompts = [(7, OPEN)] * 16
    opened, budgets = method(512, 1024).open_prompts(prompts, [i % 8 for i in range(16)], 8)
    assert budgets == ([512] * 4 + [1024] * 4) * 2
    assert opened == ([(7, OPEN, 90)] * 4 + [(7, OPEN, 91)] * 4) * 2
    closed, _ = replace(method(512)).open_prompts([(7,)], [0], 8)
    assert closed == [(7, OPEN, 90)]


def test_defaults_are_the_papers() -> None:
    arguments = HBPOArguments()
    assert arguments.budgets == [512, 1024, 2048, 2560]
    assert arguments.opening.format(budget=512).strip() == "I will answer the question within 512 tokens."
