"""Steps that leave some for later against the reference's, over queues, empty slots, dtypes and shapes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.kernels.kv_decode_cpu import QueuedSteps, StepScratch, entries_of, is_full, settle
from budgetctl.kernels.kv_reference import decode_step, pick_victims
from budgetctl.kernels.kv_state import Protection, SlotState

PROTECTION = Protection(sinks=1, recent=2, prompt_share=0.2)
HEADS, SIZE, VALUE = 2, 6, 5


def allocate(batch: int, capacity: int, interval: int, dtype: torch.dtype = torch.float64) -> SlotState:
    """Slots of which some held a token before, so that what empty ones have in them matters if it is read."""
    options: dict[str, Any] = {"interval": interval, "value_norms": True, "evicted": True, "dtype": dtype}
    state = SlotState.allocate(batch, [capacity] * HEADS, SIZE, VALUE, **options)
    state.importance.fill_(7.0)
    state.keys.fill_(3.0)
    return state


def refill(state: SlotState) -> None:
    state.queue.copy_(pick_victims(state, None, PROTECTION, count=state.queue.shape[2]))
    state.cursor.zero_()


def check_same(found: SlotState, expected: SlotState, tolerance: float = 1e-12) -> None:
    empty = expected.positions < 0
    for name, tensor in found.tensors().items():
        other = expected.tensors()[name]
        if name in ("importance", "value_norms"):
            tensor, other = tensor.masked_fill(empty, 0.0), other.masked_fill(empty, 0.0)
        torch.testing.assert_close(tensor, other, rtol=tolerance, atol=tolerance, msg=f"{name} differs")


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 8),
    capacity=st.integers(8, 30),
    interval=st.integers(1, 5),
    tokens=st.integers(1, 60),
    looks=st.sets(st.integers(0, 60), max_size=3),
    emptied=st.booleans(),
    rule=st.sampled_from(
        [("max", "max", 0.9), ("sum", "mean", 1.0), ("max", "mean", 0.0), ("none", "max", 0.5)]
    ),
)
def test_steps_are_those_of_the_reference(
    batch: int,
    groups: int,
    capacity: int,
    interval: int,
    tokens: int,
    looks: set[int],
    emptied: bool,
    rule: Any,
) -> None:
    """From the first token on; ``looks`` are steps before which the state is looked at, amid a queue."""
    generator = torch.Generator().manual_seed(tokens)
    state = allocate(batch, capacity, interval)
    expected = copy.deepcopy(state)
    steps = QueuedSteps(state, groups, StepScratch())
    options: dict[str, Any] = {"scale": 0.7, "rule": rule[0], "group": rule[1], "decay": rule[2]}

    def take(taken: int, left: int, seen: int) -> None:
        full = is_full(state)
        assert full == bool((state.positions >= 0).all())
        (entries,) = entries_of(state, 1, taken=taken, width=seen + left, full=full)
        steps.take(entries, taken=taken, width=seen + left)

    for token in range(tokens):
        at = token % interval
        if at == 0 or token in looks:
            settle(state, taken=steps.taken, done=steps.done)
            check_same(state, expected)
            if at == 0:
                if emptied and token == 2 * interval:
                    for each in (state, expected):
                        each.positions[0, 2:5] = -1
                refill(state)
                refill(expected)
            take(at, interval - at, capacity if emptied else token)

        def normal(heads: int, size: int) -> torch.Tensor:
            return torch.randn(batch, heads, size, generator=generator, dtype=torch.float64)

        query, key, value = normal(HEADS * groups, SIZE), normal(HEADS, SIZE), normal(HEADS, VALUE)
        found = steps.step(query, key, value, **options).view(batch, HEADS * groups, VALUE)
        plain = decode_step(query, key, value, expected, **options)
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    settle(state, taken=steps.taken, done=steps.done)
    check_same(state, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    """Keys and values that are narrower than importance, as queries are."""
    generator = torch.Generator().manual_seed(0)
    state = allocate(2, 12, 4, dtype)
    expected = copy.deepcopy(state)
    steps = QueuedSteps(state, 3, StepScratch())
    for _ in range(8):
        refill(state)
        refill(expected)
        (entries,) = entries_of(state, 1, taken=0, width=12, full=is_full(state))
        steps.take(entries, taken=0, width=12)
        for _ in range(4):
            query, key, value = (
                torch.randn(2, heads, size, generator=generator).to(dtype)
                for heads, size in ((6, SIZE), (2, SIZE), (2, VALUE))
            )
            found = steps.step(query, key, value, scale=0.5, rule="max", decay=0.97, group="max")
            assert found.dtype == dtype
            plain = decode_step(query, key, value, expected, scale=0.5, decay=0.97)
            torch.testing.assert_close(found.view(2, 6, VALUE), plain)
        settle(state, taken=0, done=4)
        check_same(state, expected, 1e-5)


def test_layers_that_share_memory_are_settled_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = allocate(6, 9, 3)
    parts = [whole.of_rows(2 * i, 2 * i + 2) for i in range(3)]
    expected = copy.deepcopy(parts)
    assert parts[1].keys.data_ptr() == whole.keys[2:].data_ptr()
    scratch = StepScratch()
    steps = [QueuedSteps(part, 2, scratch) for part in parts]
    for round_ in range(6):
        refill(whole)
        entries = entries_of(whole, 3, taken=0, width=9, full=is_full(whole))
        for each, own in zip(steps, entries, strict=True):
            each.take(own, taken=0, width=9)
        for each in expected:
            refill(each)
        for _ in range(3):
            for each, plain in zip(steps, expected, strict=True):
                query, key, value = (
                    torch.randn(2, heads, size, generator=generator, dtype=torch.float64)
                    for heads, size in ((4, SIZE), (2, SIZE), (2, VALUE))
                )
                found = each.step(query, key, value, scale=1.0, rule="max", decay=0.9, group="max")
                theirs = decode_step(query, key, value, plain, scale=1.0, decay=0.9)
                torch.testing.assert_close(found.view(2, 4, VALUE), theirs, rtol=1e-12, atol=1e-12)
        settle(whole, taken=0, done=3)
        assert is_full(whole) == (round_ >= 2)
        for part, plain in zip(parts, expected, strict=True):
            check_same(part, plain)
