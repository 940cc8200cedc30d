"""From a KV budget to capacities: what is read, what fits, and who gets the slots of a pool."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, Qwen3Config

from budgetctl.errors import CacheError
from budgetctl.kv import BudgetCache
from budgetctl.kv.allocators import by_need
from budgetctl.kv.budget import KVBudget, RowNeed, SlotCost, plan_cache
from budgetctl.kv.policies import DecayedMax, DiverseMax, Window
from tests.budgetctl.kv.conftest import SIZES

CONFIG = Qwen3Config(**SIZES)
FLOAT = torch.float32


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (512, KVBudget(slots=512)),
        ("512", KVBudget(slots=512)),
        (0.25, KVBudget(share=0.25)),
        (1.0, KVBudget(share=1.0)),
        (".5", KVBudget(share=0.5)),
        ("25%", KVBudget(share=0.25)),
        ("12.5 %", KVBudget(share=0.125)),
        ("64MiB", KVBudget(bytes=64 * 2**20)),
        ("1.5 gb", KVBudget(bytes=1_500_000_000)),
        ("300KiB", KVBudget(bytes=300 * 1024)),
        ("77b", KVBudget(bytes=77)),
        (KVBudget(slots=3), KVBudget(slots=3)),
        (None, None),
    ],
)
def test_what_is_read(value: Any, expected: KVBudget | None) -> None:
    assert KVBudget.parse(value) == expected


@pytest.mark.parametrize(
    "value",
    [0, -5, 0.0, 1.5, True, "", "x", "0", "120%", "0%", "5 TiB", "-3", "1e3", [64], float("nan"), "0.2b"],
)
def test_what_is_not(value: Any) -> None:
    with pytest.raises(CacheError, match=r"expected slots .*, a share .*, or bytes such as '64MiB'"):
        KVBudget.parse(value)


@pytest.mark.parametrize("policy", [DecayedMax(interval=3), Window(interval=1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_cost_of_a_slot_is_what_is_allocated(policy: Any, dtype: torch.dtype, rows: int) -> None:
    cost = SlotCost.of(CONFIG, dtype, policy)
    cache = BudgetCache(CONFIG, 40, policy, evicted=True)
    for layer in cache.layers:
        layer.lazy_initialization(*(torch.zeros(rows, 2, 5, 16, dtype=dtype) for _ in range(2)))
    assert cache.bytes_allocated == rows * (cost.fixed + 40 * cost.slot)


def needs(*lengths: int, planned: float = 1.0, prompt: int = 10) -> list[RowNeed]:
    return [RowNeed(prompt, int(planned * length), length) for length in lengths]


@pytest.mark.parametrize(
    ("value", "lengths", "capacities"),
    [
        (500, (100, 200), [200]),  # no more than the longest row can fill
        (120, (100, 200), [120]),
        ("50%", (100, 200), [50, 100]),
        ("50%", (200, 200), [100]),
        (0.101, (1000, 999), [101]),
        ("1%", (100, 200), [32]),  # a share leaves a row enough to choose from
        ("100%", (100, 200), [100, 200]),
    ],
)
def test_slots_and_shares(value: Any, lengths: tuple[int, ...], capacities: list[int]) -> None:
    budget = KVBudget.parse(value)
    assert budget is not None
    cache, pool = plan_cache(CONFIG, budget, needs(*lengths), FLOAT)
    assert pool is None
    assert (cache.row_capacities or [cache.capacities[0][0]]) == capacities


def bytes_for(slots: int, rows: int) -> KVBudget:
    cost = SlotCost.of(CONFIG, FLOAT, DiverseMax(interval=4))
    return KVBudget(bytes=rows * cost.fixed + slots * cost.slot + cost.slot - 1)


def test_a_pool_is_shared_by_the_root_of_what_is_planned() -> None:
    cache, pool = plan_cache(CONFIG, bytes_for(600, 3), needs(200, 800, 1800, planned=0.5), FLOAT)
    assert pool is not None
    assert pool.slots == 600
    assert cache.row_capacities == [100, 200, 300]


def test_where_all_fit_nothing_is_ever_evicted() -> None:
    cache, pool = plan_cache(CONFIG, bytes_for(622, 3), needs(150, 50, 400, planned=0.1), FLOAT)
    assert pool is not None
    assert cache.row_capacities == [150, 72, 400]  # no row has less than it can choose from
    cache, pool = plan_cache(CONFIG, bytes_for(600, 3), needs(150, 50, 200), FLOAT)
    assert pool is None
    assert cache.capacities[0] == (200, 200)


def test_rows_that_move_have_one_capacity() -> None:
    cache, pool = plan_cache(CONFIG, bytes_for(600, 3), needs(200, 800, 1800), FLOAT, movable=True)
    assert (pool, cache.capacities[0]) == (None, (200, 200))
    cache, pool = plan_cache(CONFIG, bytes_for(600, 3), needs(200, 800, 1800), FLOAT, "tova")
    assert (pool, cache.row_capacities) == (None, None)
    cache, _ = plan_cache(CONFIG, KVBudget(share=0.5), needs(100, 200), FLOAT, movable=True)
    assert cache.capacities[0] == (100, 100)


def test_a_pool_that_is_too_small_says_what_would_do() -> None:
    with pytest.raises(
        CacheError, match=r"31 slots for each of 3 rows: expected at least 32, which is ([\d,]+)"
    ) as told:
        plan_cache(CONFIG, bytes_for(95, 3), needs(200, 800, 1800), FLOAT)
    enough = int(str(told.value).split("which is ")[1].split(" ")[0].replace(",", ""))
    cache, _ = plan_cache(CONFIG, KVBudget(bytes=enough), needs(200, 800, 1800), FLOAT)
    assert cache.row_capacities == [32, 32, 32]


@given(
    st.lists(st.tuples(st.integers(0, 600), st.integers(1, 40), st.floats(0.01, 50)), min_size=1, max_size=9),
    st.integers(0, 4000),
)
def test_shares_of_a_pool(rows: list[tuple[int, int, float]], more: int) -> None:
    needed, floors, weights = (list(column) for column in zip(*rows, strict=True))
    total = sum(floors) + more
    found = by_need(total, needed, floors, weights)
    tops = [max(n, f) for n, f in zip(needed, floors, strict=True)]
    assert sum(found) == min(total, sum(tops))
    assert all(f <= c <= t for f, c, t in zip(floors, found, tops, strict=True))
    # Rows that are free to choose have slots in one proportion to √(weight x need), but for rounding.
    free = [
        c / (w * max(n, 1)) ** 0.5
        for c, (n, f, w), t in zip(found, rows, tops, strict=True)
        if f + 1 < c < t - 1
    ]
    slack = [
        1.01 / (w * max(n, 1)) ** 0.5
        for c, (n, f, w), t in zip(found, rows, tops, strict=True)
        if f + 1 < c < t - 1
    ]
    for (a, x), (b, y) in itertools.combinations(zip(free, slack, strict=True), 2):
        assert abs(a - b) <= x + y
    turned = by_need(total, needed[::-1], floors[::-1], weights[::-1])[::-1]
    assert all(abs(a - b) <= 1 for a, b in zip(found, turned, strict=True))


def test_a_pool_is_shared_at_the_least_loss() -> None:
    """Σ w N / C against every way of sharing 40 slots among three rows."""
    needed, weights = [60, 30, 15], [1.0, 2.0, 0.7]

    def loss(shares: Any) -> float:
        return sum(w * n / c for w, n, c in zip(weights, needed, shares, strict=True))

    ways = [(a, b, 40 - a - b) for a in range(4, 41) for b in range(4, 41 - a) if 40 - a - b >= 4 and b <= 30]
    ways = [way for way in ways if way[2] <= 15]
    best = min(map(loss, ways))
    assert loss(by_need(40, needed, [4, 4, 4], weights)) <= best * 1.005


@pytest.mark.parametrize(
    ("total", "needed", "floors", "weights"),
    [(7, [9, 9], [4, 4], None), (20, [9, 9], [4], None), (20, [9, 9], [4, 4], [1.0, 0.0])],
)
def test_impossible_shares(total: int, needed: Any, floors: Any, weights: Any) -> None:
    with pytest.raises(CacheError, match="expected floors that fit into the total"):
        by_need(total, needed, floors, weights)


def test_a_plan_is_kept_by_a_model(qwen: PreTrainedModel) -> None:
    """What is allocated when tokens come is within the budget, to a slot."""
    cost = SlotCost.of(qwen.config, torch.float64, DiverseMax(interval=4))
    budget = KVBudget(bytes=90_000)
    cache, _ = plan_cache(qwen.config, budget, needs(60, 90), torch.float64)
    qwen.set_attn_implementation("budget_kv")
    with torch.no_grad():
        qwen(torch.ones(2, 10, dtype=torch.int64), past_key_values=cache)
    assert 90_000 - cost.slot < cache.bytes_allocated <= 90_000
