"""Each policy keeps what a slow float64 simulator of it keeps, row by row, over a padded prompt and 220 tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from budgetctl.errors import CacheError, KernelError
from budgetctl.kernels.kv_state import Protection, SlotState
from budgetctl.kv import POLICIES
from budgetctl.kv.layer import BudgetLayer
from budgetctl.kv.policies import RKV, DecayedMax, Defensive, HeavyHitters, KeyDiff, Policy, Snap, find_policy
from budgetctl.kv.scores import diverse
from tests.kv_simulator import Held, RowSimulator, by_importance

GROUPS, SIZE, SCALE = 2, 12, 0.5
PROMPTS = (40, 6, 19)


def unit(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x / np.linalg.norm(x)


def by_age(heads: list[Held]) -> list[dict[int, float]]:
    return [{p: float(p) for p in held} for held in heads]


def by_mean_of_heads(heads: list[Held]) -> list[dict[int, float]]:
    mean = {p: float(np.mean([held[p].importance for held in heads])) for p in heads[0]}
    return [mean for _ in heads]


def by_worst_case_and_value(heads: list[Held], share: float = 1.0) -> list[dict[int, float]]:
    found = []
    for held in heads:
        prior = share * np.mean([e.importance for e in held.values()])
        norms = {p: np.abs(e.value).sum() for p, e in held.items()}
        usual = np.mean(list(norms.values()))
        found.append({p: max(e.importance, prior) * norms[p] / usual for p, e in held.items()})
    return found


def neighbours(held: Held, size: int) -> dict[int, list[float]]:
    order = sorted(held)
    half = size // 2
    return {
        p: [held[q].importance for q in order[max(i - half, 0) : i + half + 1]] for i, p in enumerate(order)
    }


def by_pooled_mean(heads: list[Held]) -> list[dict[int, float]]:
    return [{p: sum(near) / 5 for p, near in neighbours(held, 5).items()} for held in heads]


def by_importance_and_redundancy(heads: list[Held], queries: int) -> list[dict[int, float]]:
    found = []
    for held in heads:
        worth = {p: max(near) / queries for p, near in neighbours(held, 7).items()}
        total = dict.fromkeys(held, 0.0)
        for i, entry in held.items():
            alike = {j: float(unit(entry.key) @ unit(e.key)) for j, e in held.items() if j != i}
            close = [j for j, cosine in alike.items() if cosine > 0.5]
            if close:
                alike[max(close)] = 0.0
            for j, cosine in alike.items():
                total[j] += cosine
        redundant = {p: np.exp(x / len(held)) for p, x in total.items()}
        whole = sum(redundant.values())
        found.append({p: 0.1 * worth[p] - 0.9 * redundant[p] / whole for p in held})
    return found


def by_difference(heads: list[Held]) -> list[dict[int, float]]:
    found = []
    for held in heads:
        mean = unit(np.mean([unit(e.key) for e in held.values()], axis=0))
        found.append({p: -float(unit(e.key) @ mean) for p, e in held.items()})
    return found


def by_importance_and_novelty(heads: list[Held]) -> list[dict[int, float]]:
    found = []
    for held, same in zip(heads, by_difference(heads), strict=True):
        norms = {p: np.abs(entry.value).sum() for p, entry in held.items()}
        novelty = {p: (1 + same[p]) * norm for p, norm in norms.items()}
        usual, apart = np.mean([e.importance for e in held.values()]), np.mean(list(novelty.values()))
        parked = np.mean([e.importance / norms[p] for p, e in held.items()]) * np.mean(list(norms.values()))
        kept = len(held) / (max(held) + 1)  # slots are full, and hold the latest token
        weight = kept * (1 + 40 / max(parked / usual, 1.0) ** 20)
        found.append({p: e.importance / usual + weight * novelty[p] / apart for p, e in held.items()})
    return found


#: Policy, and the simulator of it.
CASES: dict[str, tuple[Policy, dict[str, Any]]] = {
    "diverse-max": (find_policy(None), {"decay": 0.97, "score": by_importance_and_novelty}),
    "decayed-max": (
        find_policy("decayed-max"),
        {"decay": 0.97, "score": lambda heads: by_worst_case_and_value(heads, 0.1)},
    ),
    "attention alone, every 4": (DecayedMax(interval=4, prior=0), {"decay": 0.97, "interval": 4}),
    "window": (POLICIES["window"](), {"rule": "none", "score": by_age}),
    "h2o": (POLICIES["h2o"](), {"rule": "sum", "group": "mean"}),
    "moving average": (HeavyHitters(decay=0.9), {"rule": "sum", "group": "mean", "decay": 0.9}),
    "tova": (
        POLICIES["tova"](),
        {"decay": 0.0, "group": "mean", "observe": 1, "score": by_mean_of_heads},
    ),
    "defensive": (
        Defensive(interval=6, queries=5),
        {"interval": 6, "window": 5, "score": by_worst_case_and_value},
    ),
    "snapkv": (
        Snap(interval=6, queries=4),
        {"rule": "sum", "group": "mean", "interval": 6, "window": 4, "score": by_pooled_mean},
    ),
    "r-kv": (
        RKV(interval=5, queries=5),
        {
            "rule": "sum",
            "interval": 5,
            "window": 5,
            "score": lambda heads: by_importance_and_redundancy(heads, 5),
        },
    ),
    "keydiff": (KeyDiff(interval=3), {"rule": "none", "interval": 3, "score": by_difference}),
}


def wide(x: torch.Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = x.double().numpy()
    return found


class Driver:
    """A layer under random tokens, and a simulator of each row."""

    def __init__(
        self, capacities: tuple[int, ...], policy: Policy, rows: int = len(PROMPTS), **simulated: Any
    ) -> None:
        self.heads, self.count = len(capacities), rows
        self.layer = BudgetLayer(capacities, policy.fitted(8), Protection(2, 4, 0.5))
        options = {"score": by_importance, "sinks": 2, "recent": 4} | simulated
        self.rows = [RowSimulator(list(capacities), **options) for _ in range(rows)]
        self.generator = torch.Generator().manual_seed(7)
        self.module: Any = SimpleNamespace(num_key_value_groups=GROUPS, is_causal=True)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        def normal(heads: int) -> torch.Tensor:
            shape = (self.count, heads, count, SIZE)
            return torch.randn(shape, generator=self.generator, dtype=torch.float64)

        return normal(self.heads * GROUPS), normal(self.heads), normal(self.heads)

    def attend(self, inputs: tuple[torch.Tensor, ...], mask: torch.Tensor | None) -> torch.Tensor:
        query, key, value = inputs
        key, value = self.layer.update(key, value)
        return self.layer.attend(self.module, query, key, value, mask, SCALE)

    def prompt(self, lengths: tuple[int, ...]) -> None:
        width = max(lengths)
        inputs = self.draw(width)
        real = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
        mask = real[:, None, None] & torch.ones(width, width, dtype=torch.bool).tril()
        output = self.attend(inputs, mask)
        for b, (row, n) in enumerate(zip(self.rows, lengths, strict=True)):
            query, key, value = (wide(x[b, :, width - n :]) for x in inputs)
            expected = row.block(query.reshape(self.heads, GROUPS, n, SIZE), key, value, SCALE)
            self.compare(output[b, width - n :].transpose(0, 1), expected)

    def step(self) -> None:
        inputs = self.draw(1)
        output = self.attend(inputs, None)
        for b, row in enumerate(self.rows):
            query, key, value = (wide(x[b, :, 0]) for x in inputs)
            expected = row.step(query.reshape(self.heads, GROUPS, SIZE), key, value, SCALE)
            self.compare(output[b, 0], expected)

    def compare(self, found: torch.Tensor, expected: np.ndarray[Any, Any]) -> None:
        np.testing.assert_allclose(wide(found).reshape(expected.shape), expected, atol=1e-9)
        assert self.layer.state is not None

    def compare_kept(self) -> None:
        for b, row in enumerate(self.rows):
            for h, held in enumerate(row.heads):
                assert self.held(b, h) == set(held)

    def held(self, row: int, head: int) -> set[int]:
        assert self.layer.state is not None
        positions = self.layer.state.head_positions()[row, head].tolist()
        found = {p for p in positions if p >= 0}
        assert len(found) == sum(p >= 0 for p in positions)
        return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("capacities", [(18, 18), (18, 25)])
def test_kept_tokens_equal_the_simulator(name: str, capacities: tuple[int, ...]) -> None:
    policy, simulated = CASES[name]
    if policy.shared_heads and len(set(capacities)) > 1:
        pytest.skip("this policy keeps the same tokens in all heads")
    driver = Driver(capacities, policy, **simulated)
    driver.prompt(PROMPTS)
    driver.compare_kept()
    for _ in range(220):
        driver.step()
        driver.compare_kept()


def test_every_policy_has_a_simulator() -> None:
    assert {type(policy) for policy, _ in CASES.values()} == set(POLICIES.values())


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_in_blocks_equals_the_simulator(name: str) -> None:
    """Three blocks, together longer than the slots, then a few tokens."""
    policy, simulated = CASES[name]
    driver = Driver((24, 24), policy, rows=2, **simulated)
    for length in (20, 31, 9):
        driver.prompt((length, length))
        driver.compare_kept()
    assert driver.layer.get_seq_length() == 60
    for _ in range(40):
        driver.step()
        driver.compare_kept()


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize(
    ("begin", "reserve", "steps"),
    [((10, 10, 10), 28, 30), ((3, 12, 20), 28, 30), ((22, 37, 28), 2, 42)],
    ids=["together", "one by one", "in full slots"],
)
def test_room_for_the_answer_is_made_at_once(
    begin: tuple[int, ...], reserve: int, steps: int, interval: int
) -> None:
    """Each row at a step of its own; what the answer has no room reserved for takes more of the thought."""
    policy = DecayedMax(prior=0, interval=interval)
    driver = Driver((40, 50), policy, decay=0.97, interval=interval)
    driver.prompt((23, 6, 14))
    for step in range(steps):
        rows = torch.tensor([step == at for at in begin])
        if rows.any():
            driver.layer.begin_answer(rows, reserve)
        for b, (row, at) in enumerate(zip(driver.rows, begin, strict=True)):
            if step == at:
                row.begin_answer(reserve)
                # The third row's prompt is protected, and more than what is left.
                assert len(driver.held(b, 0)) == max((12, 12, 18)[b], 40 - reserve)
        driver.compare_kept()
        driver.step()
        driver.compare_kept()
        for b, row in enumerate(driver.rows):
            if row.answer is not None:
                assert driver.held(b, 0) >= set(range(row.answer, row.length))


def test_an_answer_that_leaves_nothing_to_give_up_is_told() -> None:
    driver = Driver((24, 30), DecayedMax(prior=0), decay=0.97)
    driver.prompt((12, 3, 5))
    driver.layer.begin_answer(torch.tensor([True, False, False]), 4)
    for _ in range(12):
        driver.step()
        assert driver.held(0, 0) >= set(range(12))
    with pytest.raises(CacheError, match=r"answer of row 0 has filled the cache: .*; give a larger capacity"):
        driver.step()


def test_unknown_names_and_impossible_settings_are_told() -> None:
    with pytest.raises(CacheError, match=r"unknown policy 'lru': expected one of diverse-max, decayed-max"):
        find_policy("lru")
    with pytest.raises(CacheError, match="at least 1 token"):
        KeyDiff(interval=0)
    with pytest.raises(CacheError, match="between 0 and 1"):
        HeavyHitters(decay=1.5)
    with pytest.raises(CacheError, match="prior=-1: expected"):
        DecayedMax(prior=-1)
    with pytest.raises(CacheError, match="fewer queries"):
        Snap(interval=4, queries=5)


def test_novelty_counts_most_in_heads_that_park_no_attention_on_small_values() -> None:
    """Two heads of the same keys and values; one attends to large values, the other to the smallest too."""
    state = SlotState.allocate(1, (4, 4), 2, 1, value_norms=True, dtype=torch.float64)
    assert state.value_norms is not None
    state.keys.copy_(torch.tensor([[1, 0.1], [1, -0.1], [1, 0], [0, 1]]).repeat(2, 1))
    state.positions.copy_(torch.arange(4).repeat(2))
    state.lengths.fill_(8)
    norms, attended = [0.2, 1.2, 1.3, 1.3], [0.0, 0.3, 0.3, 0.4, 0.3, 0.2, 0.2, 0.3]
    state.value_norms.copy_(torch.tensor(norms, dtype=torch.float64).repeat(2))
    state.importance.copy_(torch.tensor(attended, dtype=torch.float64))
    added = diverse(state, 40.0) - diverse(state, 0.0)
    # Half of the tokens are kept, and the mean of the values' norms is 1.
    parked = 0.3 / 0.2 + 0.2 / 1.2 + 0.5 / 1.3
    expected = torch.tensor([[20.5, 0.5 + 20.0 * parked**-20]], dtype=torch.float64)
    torch.testing.assert_close(added.mean(2), expected, rtol=1e-8, atol=0.0)
    state.importance.zero_()  # nothing was looked at yet
    assert diverse(state, 40.0).isfinite().all()
    state.value_norms[:, 0] = 0.0
    state.importance[:, 0] = 1.0
    assert diverse(state, 40.0).isfinite().all()
    state.value_norms = None
    with pytest.raises(KernelError, match="without norms of values"):
        diverse(state, 40.0)
