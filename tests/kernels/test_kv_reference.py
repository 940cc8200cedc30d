"""The decode step against float64 loops: attention, importance, victims, and what stays untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.errors import KernelError
from budgetctl.kernels.kv_reference import decode_step, first_to_go, order, pick_victims
from budgetctl.kernels.kv_state import NO_ANSWER, Protection, SlotState
from tests.kv_simulator import RowSimulator

#: Largest error of outputs of size 1, and of importance, by dtype of keys and queries.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2e-3, 3e-6),
    torch.bfloat16: (1.5e-2, 3e-6),
}
PROTECTION = Protection(sinks=2, recent=4, prompt_share=0.5)


def draw(
    generator: torch.Generator, batch: int, heads: int, groups: int, size: int, value: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal(batch, heads * groups, size), normal(batch, heads, size), normal(batch, heads, value)


def refill(state: SlotState, protection: Protection = PROTECTION, **options: Any) -> None:
    count = state.queue.shape[2]
    state.queue.copy_(pick_victims(state, None, protection, count=count, **options))
    state.cursor.zero_()


def wide(x: torch.Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = x.double().numpy()
    return found


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("groups", "size", "value"),
    [(1, 64, 64), (2, 128, 128), (3, 64, 64), (4, 256, 256), (7, 128, 128), (8, 64, 64), (5, 60, 36)],
)
@pytest.mark.parametrize(("rule", "group", "decay"), [("max", "max", 0.9), ("sum", "mean", 1.0)])
def test_step_equals_loops(
    dtype: torch.dtype, groups: int, size: int, value: int, rule: Any, group: Any, decay: float
) -> None:
    """Ragged capacities, 40 tokens into 9 to 17 slots: output, importance and kept tokens."""
    capacities, batch, scale = [17, 9, 12], 2, 2 * size**-0.5
    generator = torch.Generator().manual_seed(groups)
    state = SlotState.allocate(batch, capacities, size, value, dtype=dtype)
    rows = [RowSimulator(capacities, rule, decay, group, sinks=2, recent=4) for _ in range(batch)]
    heads = len(capacities)
    limit, limit_importance = TOLERANCE[dtype]
    for _ in range(40):
        query, key, val = draw(generator, batch, heads, groups, size, value, dtype)
        refill(state)
        found = decode_step(query, key, val, state, scale=scale, rule=rule, decay=decay, group=group)
        assert found.dtype == dtype
        for b, row in enumerate(rows):
            expected = row.step(
                wide(query[b]).reshape(heads, groups, size), wide(key[b]), wide(val[b]), scale
            )
            assert np.abs(wide(found[b]).reshape(expected.shape) - expected).max() < limit
            for h, held in enumerate(row.heads):
                positions = state.head_positions()[b, h].tolist()
                assert sorted(p for p in positions if p >= 0) == sorted(held)
                importance = state.heads(state.importance)[b, h].tolist()
                for p, entry in held.items():
                    assert importance[positions.index(p)] == pytest.approx(
                        entry.importance, abs=limit_importance, rel=limit_importance
                    )


@pytest.mark.parametrize("interval", [1, 5])
def test_kept_tokens_equal_the_simulator_for_300_steps(interval: int) -> None:
    capacities, groups, size, batch = [24, 24], 2, 16, 3
    generator = torch.Generator().manual_seed(1)
    state = SlotState.allocate(batch, capacities, size, size, interval=interval, dtype=torch.float64)
    rows = [RowSimulator(capacities, decay=0.97, interval=interval, sinks=2, recent=4) for _ in range(batch)]
    for step in range(300):
        query, key, value = draw(generator, batch, 2, groups, size, size, torch.float64)
        if step % interval == 0:
            refill(state)
        found = decode_step(query, key, value, state, scale=1.0, decay=0.97)
        for b, row in enumerate(rows):
            expected = row.step(wide(query[b]).reshape(2, groups, size), wide(key[b]), wide(value[b]), 1.0)
            np.testing.assert_allclose(wide(found[b]).reshape(expected.shape), expected, atol=1e-10)
            for h, held in enumerate(row.heads):
                assert {p for p in state.head_positions()[b, h].tolist() if p >= 0} == set(held)


def test_memory_stays_where_it_is_for_2000_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    state = SlotState.allocate(2, [32, 32], 8, 8, interval=4, value_norms=True)
    before = {name: (t.data_ptr(), t.shape, t.stride()) for name, t in state.tensors().items()}
    size = state.bytes
    for step in range(2000):
        if step % 4 == 0:
            refill(state)
        decode_step(*draw(generator, 2, 2, 2, 8, 8, torch.float32), state, scale=0.3, decay=0.97)
    assert {name: (t.data_ptr(), t.shape, t.stride()) for name, t in state.tensors().items()} == before
    assert state.bytes == size
    assert (state.lengths == 2000).all()
    assert state.positions.amax() == 1999


def test_protected_tokens_never_leave() -> None:
    """A prompt of ten tokens (of 32 slots), sinks, the latest four, and in one row an answer."""
    generator = torch.Generator().manual_seed(0)
    state = SlotState.allocate(2, [32], 8, 8)
    state.prompts.fill_(10)
    for step in range(150):
        if step == 130:
            state.answers[1] = 130
        refill(state)
        decode_step(*draw(generator, 2, 1, 2, 8, 8, torch.float32), state, scale=1.0, decay=0.9)
        for b in range(2):
            held = set(state.positions[b].tolist())
            assert set(range(min(step + 1, 10))) <= held
            assert set(range(max(step - 3, 0), step + 1)) <= held
            if b == 1 and step >= 130:
                assert set(range(130, step + 1)) <= held


def test_the_importance_of_what_is_overwritten_is_summed_up() -> None:
    generator = torch.Generator().manual_seed(0)
    state = SlotState.allocate(2, [12, 7], 8, 8, evicted=True)
    assert state.evicted is not None
    expected = torch.zeros(2, 2)
    for step in range(60):
        refill(state, Protection(0, 3))
        slot = state.queue[:, :, 0].long()
        for b in range(2):
            for h in range(2):
                if state.positions[b, slot[b, h]] >= 0:
                    expected[b, h] += state.importance[b, slot[b, h]]
        real = torch.tensor([True, step % 3 > 0])
        decode_step(*draw(generator, 2, 2, 2, 8, 8, torch.float32), state, scale=1.0, decay=0.9, real=real)
    assert (expected > 0.1).all()
    torch.testing.assert_close(state.evicted, expected)


def test_a_prompt_over_its_share_competes() -> None:
    state = SlotState.allocate(2, [16], 4, 4)
    state.positions.copy_(torch.arange(16))
    state.lengths.fill_(16)
    state.prompts.copy_(torch.tensor([[8], [9]]))
    victims = pick_victims(state, None, PROTECTION, count=3)
    assert victims.tolist() == [[[8, 9, 10]], [[2, 3, 4]]]


def test_empty_slots_first_then_lowest_then_oldest() -> None:
    state = SlotState.allocate(1, [8], 4, 4, dtype=torch.float64)
    state.positions.copy_(torch.tensor([[7, 6, -1, 5, 4, 3, 2, -1]]))
    state.importance.copy_(torch.tensor([[0.0, 0.1, 0.0, 0.2, 0.1, 0.1, torch.nan, 0.0]]))
    state.lengths.fill_(8)
    protection = Protection(sinks=0, recent=1)
    order = [2, 7, 5, 4, 1, 3, 6, 0]
    assert pick_victims(state, None, protection, count=8).tolist() == [[order]]
    assert pick_victims(state, None, protection, count=1).tolist() == [[order[:1]]]
    state.positions[0, [2, 7]] = torch.tensor([0, 1], dtype=torch.int32)
    state.importance[0, [2, 7]] = 0.5
    assert pick_victims(state, None, protection, count=1).tolist() == [[[5]]]


RANKS = st.sampled_from([-torch.inf, torch.inf, 0.0, -0.0, 1e-40, -1e-40, 0.3, 1.5, -2.0, -1e30])


@given(
    ranks=st.lists(RANKS, min_size=8, max_size=60), seed=st.integers(0, 99), share=st.sampled_from([1, 2, 8])
)
def test_the_first_to_go_are_those_of_the_whole_order(ranks: list[float], seed: int, share: int) -> None:
    age = torch.randperm(len(ranks), generator=torch.Generator().manual_seed(seed)).int()[None, None]
    ranked, count = torch.tensor([[ranks]]), len(ranks) // share
    assert torch.equal(first_to_go(ranked, age, count), order(ranked, age)[:, :, :count])
    assert torch.equal(first_to_go(ranked.double(), age, count), order(ranked.double(), age)[:, :, :count])


def test_padding_takes_no_slot() -> None:
    generator = torch.Generator().manual_seed(0)
    state = SlotState.allocate(2, [4, 4], 8, 8)
    real = torch.tensor([True, False])
    for _ in range(3):
        refill(state)
        output = decode_step(*draw(generator, 2, 2, 1, 8, 8, torch.float32), state, scale=1.0, real=real)
        assert output.isfinite().all()
    assert state.lengths.tolist() == [[3, 3], [0, 0]]
    assert (state.positions[1] == -1).all()


def test_only_the_width_is_read() -> None:
    generator = torch.Generator().manual_seed(0)
    states = [SlotState.allocate(1, [12, 12], 8, 8) for _ in range(2)]
    states[1].keys[:, 6:12] = torch.nan
    for step in range(5):
        inputs = draw(generator, 1, 2, 2, 8, 8, torch.float32)
        outputs = []
        for state, width in zip(states, [None, step + 1], strict=True):
            refill(state, width=None if width is None else width + 1)
            outputs.append(decode_step(*inputs, state, scale=1.0, width=width))
        torch.testing.assert_close(*outputs)


def test_rule_none_leaves_importance() -> None:
    generator = torch.Generator().manual_seed(0)
    state = SlotState.allocate(1, [4], 8, 8)
    refill(state)
    decode_step(*draw(generator, 1, 1, 2, 8, 8, torch.float32), state, scale=1.0, rule="none")
    assert (state.importance == 0).all()


def test_rows_can_be_reordered_and_selected() -> None:
    generator = torch.Generator().manual_seed(0)
    state = SlotState.allocate(3, [4, 2], 8, 8, value_norms=True)
    for _ in range(6):
        refill(state, Protection(0, 1))
        decode_step(*draw(generator, 3, 2, 1, 8, 8, torch.float32), state, scale=1.0)
    state.answers[1] = 5
    chosen = state.select(torch.tensor([2, 2, 1]))
    address = state.keys.data_ptr()
    state.reorder(torch.tensor([2, 2, 1]))
    assert state.keys.data_ptr() == address
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, chosen.tensors()[name])
    assert state.answers[:, 0].tolist() == [NO_ANSWER, NO_ANSWER, 5]
    assert torch.equal(state.select(torch.tensor([0])).keys, state.keys[:1])


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(KernelError, match="interval"):
        SlotState.allocate(1, [4, 2], 8, 8, interval=3)
    state = SlotState.allocate(2, [4, 4], 8, 8)
    query, key, value = draw(torch.Generator(), 2, 2, 2, 8, 8, torch.float32)
    with pytest.raises(KernelError, match="one token a row"):
        decode_step(query, key[:1], value, state, scale=1.0)
    with pytest.raises(KernelError, match="a multiple of 2"):
        decode_step(query[:, :3], key, value, state, scale=1.0)
