"""Rows with capacities of their own: each as if alone, in memory of just their slots; and other capacities in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from budgetctl.errors import CacheError
from budgetctl.kernels.kv_reference import protected
from budgetctl.kv import POLICIES, BudgetCache
from tests.conftest import pad_left

CAPACITIES = (24, 33, 24, 47)


def run(model: PreTrainedModel, prompts: list[list[int]], cache: BudgetCache, **options: Any) -> torch.Tensor:
    model.set_attn_implementation("budget_kv")
    ids = pad_left(prompts)
    found = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), past_key_values=cache, **options)
    return found[:, ids.shape[1] :]


def go_on(model: PreTrainedModel, token: torch.Tensor, cache: BudgetCache) -> None:
    for _ in range(100):
        model(token, past_key_values=cache)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "tova"])
def test_each_row_is_as_if_alone(qwen: PreTrainedModel, prompts: Any, policy: str) -> None:
    options = {"policy": policy, "recent": 6}
    together = BudgetCache.by_row(qwen.config, CAPACITIES, **options)
    found = run(qwen, prompts, together, max_new_tokens=60)
    assert together.row_capacities == list(CAPACITIES)
    for row, (prompt, capacity) in enumerate(zip(prompts, CAPACITIES, strict=True)):
        # A policy's interval follows the smallest capacity.
        alone = BudgetCache(qwen.config, capacity, together.policy, recent=6)
        assert torch.equal(found[row], run(qwen, [prompt], alone, max_new_tokens=60)[0])
        for layer in range(2):
            held = together.positions(layer)[row].sort(1).values
            expected = alone.positions(layer)[0].sort(1).values
            assert torch.equal(held[:, -capacity:], expected)


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}], ids=["at once", "in blocks"])
def test_what_fits_is_as_with_a_full_cache(
    qwen: PreTrainedModel, prompts: Any, generate: Any, options: dict[str, Any]
) -> None:
    lengths = [len(prompt) + 40 for prompt in prompts]
    cache = BudgetCache.by_row(qwen.config, lengths)
    assert torch.equal(run(qwen, prompts, cache, **options), generate(qwen, prompts, **options))


def test_memory_is_that_of_the_slots(qwen: PreTrainedModel, prompts: Any) -> None:
    caches = [
        BudgetCache.by_row(qwen.config, CAPACITIES, recent=6),
        BudgetCache(qwen.config, 32, BudgetCache.by_row(qwen.config, CAPACITIES).policy, recent=6),
    ]
    for cache in caches:
        assert cache.bytes_allocated == 0
        run(qwen, prompts, cache, max_new_tokens=2)
    assert sum(CAPACITIES) == 4 * 32
    assert caches[0].bytes_allocated == caches[1].bytes_allocated == caches[1].peak_bytes


def test_answers_begin_by_row(qwen: PreTrainedModel, prompts: Any) -> None:
    cache = BudgetCache.by_row(qwen.config, CAPACITIES, recent=6)
    run(qwen, prompts, cache, max_new_tokens=50)
    assert not cache.in_answer().any()
    rows = torch.tensor([False, True, False, True])
    before = [cache.positions(layer) for layer in range(2)]
    cache.begin_answer(rows, 5, torch.tensor([0, 3, 0, 1]))
    assert cache.in_answer().tolist() == rows.tolist()
    for layer in range(2):
        freed = ((before[layer] >= 0) & (cache.positions(layer) < 0)).sum(2)
        assert freed.tolist() == [[0, 0], [5, 5], [0, 0], [5, 5]]
        state = cache.layers[layer].state
        assert state is not None
        starts = cache.layers[layer].by_row(state.answers)
        lengths = cache.layers[layer].by_row(state.lengths)
        assert (lengths - starts)[rows].tolist() == [[3, 3], [1, 1]]


@pytest.mark.parametrize("later", [(80, 80, 80, 80), (70, 90, 75, 81)])
def test_slots_that_are_added_in_time_lose_nothing(
    qwen: PreTrainedModel, prompts: Any, generate: Any, later: tuple[int, ...]
) -> None:
    """In the middle of a generation, before anything had to go."""
    expected = generate(qwen, prompts)
    cache = BudgetCache.by_row(qwen.config, (50, 52, 50, 60))

    def grow(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == 30 + 15:
            cache.resize(later)
        return scores

    assert torch.equal(run(qwen, prompts, cache, logits_processor=[grow]), expected)
    assert cache.row_capacities == list(later)
    last = cache.layers[1].state
    assert last is not None
    assert cache.bytes_allocated < cache.peak_bytes <= cache.bytes_allocated + last.bytes


@torch.no_grad()
def test_slots_that_are_taken_away_leave_the_policys_best(qwen: PreTrainedModel, prompts: Any) -> None:
    cache = BudgetCache.by_row(qwen.config, (60, 60, 60, 60), recent=5)
    run(qwen, prompts, cache, max_new_tokens=45)
    fewer = (26, 60, 31, 70)
    expected: list[list[set[int]]] = []
    for layer in cache.layers:
        assert layer.state is not None
        scores, positions = layer.policy.scores(layer.state)[0], layer.state.head_positions()[0]
        kept_anyway = protected(layer.state, layer.protection)[0]
        expected.append([])
        for head, slots in enumerate(size for size in fewer for _ in range(2)):
            ranking = sorted(
                (bool(kept_anyway[head, c]), float(scores[head, c]), int(positions[head, c]))
                for c in range(positions.shape[1])
                if positions[head, c] >= 0
            )
            expected[-1].append({position for *_, position in ranking[-slots:]})
    cache.resize(fewer)
    for index, sets in enumerate(expected):
        held = cache.positions(index).flatten(0, 1).tolist()
        assert [{p for p in head if p >= 0} for head in held] == sets
    # It goes on, and the row that lost nothing and has the slots that it had goes on alike.
    token = torch.tensor([[5], [6], [7], [8]])
    assert qwen(token, past_key_values=cache).logits.isfinite().all()
    assert all(len({p for p in head if p >= 0}) == 26 for head in cache.positions(0)[0].tolist())


def test_what_rows_of_their_own_cannot_do(qwen: PreTrainedModel, prompts: Any) -> None:
    cache = BudgetCache.by_row(qwen.config, CAPACITIES)
    with pytest.raises(CacheError, match="2 rows: expected 4"):
        run(qwen, prompts[:2], cache, max_new_tokens=2)
    cache = BudgetCache.by_row(qwen.config, CAPACITIES)
    run(qwen, prompts, cache, max_new_tokens=2)
    for change, argument in (
        ("reorder_cache", torch.tensor([1, 0, 2, 3])),
        ("batch_select_indices", torch.tensor([0])),
        ("batch_repeat_interleave", 2),
    ):
        with pytest.raises(
            CacheError, match=r"cannot be (reordered|selected|repeated): expected one capacity"
        ):
            getattr(cache, change)(argument)
    with pytest.raises(CacheError, match="3 capacities for 4 rows"):
        cache.resize((40, 40, 40))
    with pytest.raises(CacheError, match="a capacity of 5 slots: expected at least"):
        cache.resize((40, 5, 40, 40))
    with pytest.raises(CacheError, match="4 capacities for no rows"):
        BudgetCache(qwen.config, 40).resize((40, 40, 40, 40))
    with pytest.raises(CacheError, match="Tova with capacities by row"):
        BudgetCache.by_row(qwen.config, CAPACITIES, "tova")
    with pytest.raises(CacheError, match="no account of evicted tokens"):
        cache.evicted_mass()
    with pytest.raises(CacheError, match="answer_overflow='drop': expected 'raise' or 'evict'"):
        BudgetCache(qwen.config, 40, answer_overflow="drop")


@torch.no_grad()
def test_an_answer_that_outgrows_its_slots_gives_up_its_own_first_tokens(qwen: PreTrainedModel) -> None:
    qwen.set_attn_implementation("budget_kv")
    prompt = torch.randint(1, 50, (1, 10), generator=torch.Generator().manual_seed(0))
    cache = BudgetCache(qwen.config, 40, recent=6, answer_overflow="evict", prompt_share=0.5)
    token = qwen(prompt, past_key_values=cache).logits[:, -1:].argmax(2)
    cache.begin_answer()
    for step in range(150):
        token = qwen(token, past_key_values=cache).logits[:, -1:].argmax(2)
        held = {p for head in cache.positions(0)[0].tolist() for p in head}
        assert {*range(10), *range(max(step + 5, 10), step + 11)} <= held
        if step < 22:
            assert set(range(step + 11)) <= held
    strict = BudgetCache(qwen.config, 40, recent=6)
    qwen(prompt, past_key_values=strict)
    strict.begin_answer()
    for _ in range(24):
        qwen(token, past_key_values=strict)
    with pytest.raises(CacheError, match="the answer of row 0 has filled the cache"):
        go_on(qwen, token, strict)


def test_evicted_mass_is_that_of_the_heads(qwen: PreTrainedModel, prompts: Any) -> None:
    cache = BudgetCache.by_row(qwen.config, (24, 33, 24, 90), recent=6, evicted=True)
    run(qwen, prompts, cache, max_new_tokens=50)
    mass = cache.evicted_mass()
    assert mass.shape == (4,)
    assert mass[3] == 0
    assert (mass[:3] > 0.5).all()
    for row, capacity in ((0, 24), (1, 33)):
        alone = BudgetCache(qwen.config, capacity, cache.policy, recent=6, evicted=True)
        run(qwen, prompts[row : row + 1], alone, max_new_tokens=50)
        torch.testing.assert_close(alone.evicted_mass(), mass[row : row + 1])
