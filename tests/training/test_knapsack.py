"""Rollouts by value: exact against dynamic programming, summing to the total, and the same batches for every reader."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.errors import TrainingError
from budgetctl.training.knapsack import allocate, information_gain, marginal_value, rollout_value
from budgetctl.training.knapsack_sampler import KnapsackSampler, PassRates, group_advantages
from budgetctl.training.rewards.columns import consecutive_groups

RATES = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5])), min_size=1, max_size=6)


def best_sum(rates: list[float], total: int, low: int, high: int) -> float:
    """The greatest sum of values, by dynamic programming over the prompts."""
    best = {0: 0.0}
    for rate in rates:
        reached: dict[int, float] = {}
        for spent, value in best.items():
            for count in range(low, high + 1):
                key, candidate = spent + count, value + rollout_value(count, rate)
                reached[key] = max(reached.get(key, -1.0), candidate)
        best = reached
    return best[total]


@settings(deadline=None)
@given(RATES, st.integers(1, 4), st.integers(0, 12), st.data())
def test_allocation_equals_dynamic_programming(rates: list[float], low: int, room: int, data) -> None:
    high = low + room
    total = data.draw(st.integers(len(rates) * low, len(rates) * high))
    counts = allocate(rates, total, low, high)
    assert sum(counts) == total
    assert all(low <= count <= high for count in counts)
    reached = sum(rollout_value(count, rate) for count, rate in zip(counts, rates, strict=True))
    assert reached == pytest.approx(best_sum(rates, total, low, high), abs=1e-12)


def test_allocation_equals_brute_force() -> None:
    rng = random.Random(0)
    for _ in range(30):
        rates = [rng.random() for _ in range(3)]
        total = rng.randrange(6, 25)
        every = [
            counts for counts in itertools.product(range(2, 13), repeat=3) if sum(counts) == min(total, 24)
        ]
        best = max(sum(rollout_value(n, p) for n, p in zip(c, rates, strict=True)) for c in every)
        counts = allocate(rates, min(total, 24), 2, 12)
        assert sum(rollout_value(n, p) for n, p in zip(counts, rates, strict=True)) == pytest.approx(best)


@given(st.floats(0, 1), st.integers(1, 60))
def test_value_is_concave_from_one_rollout_on(rate: float, count: int) -> None:
    gain = marginal_value(count, rate)
    assert gain == pytest.approx(rollout_value(count + 1, rate) - rollout_value(count, rate), abs=1e-12)
    assert gain >= marginal_value(count + 1, rate) >= 0
    assert information_gain(rate) <= information_gain(1 / 3) + 1e-12


def test_values_of_the_formula() -> None:
    found = [round(rollout_value(n, 0.05), 4) for n in (2, 8, 32, 128)]
    assert found == [0.0043, 0.0152, 0.0364, 0.0451]
    assert rollout_value(1, 0.3) == pytest.approx(0)


def test_hard_prompts_get_more_and_unsolved_ones_the_rest() -> None:
    counts = allocate([0.05, 0.5, 0.95], 48, 2, 40)
    assert counts[0] > counts[1] > counts[2]
    # Nothing is to be gained: what is left goes to the unsolved ones, evenly.
    assert allocate([0.0, 1.0, 0.0], 16, 2, 40) == [7, 2, 7]
    assert allocate([1.0, 1.0], 7, 2, 5) == [4, 3]


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=6), st.data())
def test_unknown_prompts_get_the_equal_share(rates: list[float | None], data) -> None:
    low, high = 2, 9
    total = data.draw(st.integers(len(rates) * low, len(rates) * high))
    counts = allocate(rates, total, low, high)
    assert sum(counts) == total
    assert all(low <= count <= high for count in counts)
    unknown = [count for count, rate in zip(counts, rates, strict=True) if rate is None]
    if unknown:
        assert max(unknown) - min(unknown) <= 1
        assert min(unknown) >= total // len(rates)
        room = high * (len(rates) - len(unknown))
        if total - sum(unknown) < room:
            assert set(unknown) == {total // len(rates)} or len(unknown) == len(rates)


@pytest.mark.parametrize(
    ("rates", "total", "low", "high", "message"),
    [
        ([0.5, 0.5], 3, 2, 8, "expected 4 to 16"),
        ([0.5, 0.5], 17, 2, 8, "expected 4 to 16"),
        ([0.5], 4, 0, 8, "bounds of at least 1"),
        ([1.5], 4, 2, 8, "expected 0 to 1"),
    ],
)
def test_impossible_allocations_are_named(rates, total, low, high, message) -> None:
    with pytest.raises(TrainingError, match=message):
        allocate(rates, total, low, high)


def sampler(rates: PassRates, **options) -> KnapsackSampler:
    settings_ = {"prompts": 3, "rollouts": 18, "repeats": 2, "high": 14, "seed": 5} | options
    return KnapsackSampler([f"q{i}" for i in range(8)], rates, **settings_)


def test_batches_are_of_one_size_and_repeated() -> None:
    rates = PassRates()
    rates.record(
        -2, [f"q{i}" for i in range(8) for _ in range(10)], [n < i for i in range(8) for n in range(10)]
    )
    drawn = list(sampler(rates))
    assert len(drawn) == len(sampler(rates)) == 2 * 2 * 18
    assert drawn[:18] == drawn[18:36]
    assert drawn[36:54] == drawn[54:]
    for batch in (drawn[:18], drawn[36:54]):
        counts = Counter(batch)
        assert len(consecutive_groups(batch)) == 3
        assert sorted(counts.values()) != [6, 6, 6]
        expected = allocate([row / 10 for row in counts], 18, 2, 14)
        assert list(counts.values()) == expected
    assert len(set(drawn[:36]) | set(drawn[36:])) == 6


def test_epochs_differ_and_repeat() -> None:
    one = sampler(PassRates())
    first = list(one)
    second = list(one)
    assert second != first
    one.set_epoch(1)
    assert list(one) == second
    one.set_epoch(0)
    assert list(one) == first
    assert list(sampler(PassRates(), shuffle=False, repeats=1))[:18] == [0] * 6 + [1] * 6 + [2] * 6


def test_a_loader_that_reads_ahead_gets_the_same_batches() -> None:
    """Results of a batch count from the second batch after it on, read before or after they are known."""

    def run(ahead: bool, stop: int | None = None, state: str | None = None) -> tuple[list[list[int]], str]:
        rates = PassRates(memory=20)
        questions = [f"q{i}" for i in range(12)]
        if state is not None:
            rates.load_state_dict(json.loads(state))
        stream = iter(KnapsackSampler(questions, rates, prompts=2, rollouts=10, high=8, shuffle=False))
        batches: list[list[int]] = []
        read = [next(stream) for _ in range(10)] if ahead else []
        skipped = 0 if state is None else 3
        for number in range(6):
            if ahead:
                batch, read = read, list(itertools.islice(stream, 10))
            else:
                batch = list(itertools.islice(stream, 10))
            batches.append(batch)
            if number < skipped:
                continue
            rng = random.Random(number)
            names = [questions[row % 4] for row in range(10)] + [questions[row] for row in batch]
            rates.record(number, names, [rng.random() < 0.4 for _ in names])
            if stop == number + 1:
                break
        return batches, json.dumps(rates.state_dict())

    whole, end = run(ahead=False)
    early, _ = run(ahead=True)
    assert whole == early
    _, state = run(ahead=True, stop=3)
    resumed, resumed_end = run(ahead=False, state=state)
    assert resumed[3:] == whole[3:]
    assert json.loads(resumed_end)["means"] == json.loads(end)["means"]


def test_a_data_set_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(TrainingError, match="8 rows for batches of 9 prompts"):
        sampler(PassRates(), prompts=9, rollouts=27)
    with pytest.raises(TrainingError, match="expected 6 to 42"):
        sampler(PassRates(), rollouts=60)


def test_advantages_of_equal_groups_are_those_of_grpo() -> None:
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = consecutive_groups([row // 4 for row in range(12)])
    table = rewards.view(3, 4)
    centred = table - table.mean(1, keepdim=True)
    torch.testing.assert_close(group_advantages(rewards, groups, "none"), centred.flatten())
    expected = centred / (table.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, groups), expected.flatten())
    torch.testing.assert_close(
        group_advantages(rewards, groups, "batch"), (centred / (rewards.std() + 1e-4)).flatten()
    )


def test_rows_without_a_score_get_no_advantage_and_do_not_count() -> None:
    rewards = torch.tensor([1.0, 0.0, torch.nan, 5.0, torch.nan, torch.nan])
    groups = [range(3), range(3, 4), range(4, 6)]
    found = group_advantages(rewards, groups, "none")
    assert found.tolist() == [0.5, -0.5, 0, 0, 0, 0]
    assert group_advantages(rewards, groups).isfinite().all()
