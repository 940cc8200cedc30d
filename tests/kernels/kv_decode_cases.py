"""The decode kernel against the reference in float64, on CUDA or in Triton's interpreter; run by ``test_kv_decode.py``.

Not collected by itself: Triton decides at import whether it interprets (``TRITON_INTERPRET=1``), so that these run in a
process of their own.
"""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.errors import KernelError
from budgetctl.kernels import kv_reference
from budgetctl.kernels.kv_decode import KVScratch, _launch, launch_options
from budgetctl.kernels.kv_state import Protection, SlotState

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

#: Largest error of outputs of size 1, and of importance. Weights are rounded to the values' dtype before the product.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (4e-3, 1e-5), torch.bfloat16: (2e-2, 1e-5)}
RULES = [
    ("max", "max", 0.9),
    ("sum", "mean", 1.0),
    ("max", "mean", 0.0),
    ("sum", "max", 0.97),
    ("none", "max", 1.0),
]
PROTECTION = Protection(2, 4)

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def draw(state: SlotState, groups: int, seed: int) -> Inputs:
    """One token a row for all heads."""
    generator = torch.Generator().manual_seed(seed)
    (batch, _, size), heads, value = state.keys.shape, len(state.capacities), state.values.shape[2]
    shapes = ((batch, heads * groups, size), (batch, heads, size), (batch, heads, value))
    query, key, val = (normal(generator, *shape).to(DEVICE, state.keys.dtype) for shape in shapes)
    return query, key, val


def fill(
    batch: int,
    capacities: list[int],
    size: int,
    value: int,
    dtype: torch.dtype = torch.float32,
    *,
    interval: int = 1,
    occupied: float = 0.9,
    seed: int = 0,
    norms: bool = True,
) -> SlotState:
    """A state whose slots hold that share of tokens, in any order."""
    generator = torch.Generator().manual_seed(seed)
    state = SlotState.allocate(
        batch,
        capacities,
        size,
        value,
        interval=interval,
        value_norms=norms,
        evicted=norms,
        dtype=dtype,
        device=DEVICE,
    )
    for tensor in (state.keys, state.values, state.importance):
        tensor.copy_(normal(generator, *tensor.shape))
    state.importance.abs_()
    seen = 2 * max(capacities)
    for b in range(batch):
        for start, count in zip(state.offsets, state.capacities, strict=False):
            positions = torch.randperm(seen, generator=generator)[:count].int()
            positions[torch.rand(count, generator=generator) >= occupied] = -1
            state.positions[b, start : start + count] = positions.to(DEVICE)
    state.lengths.fill_(seen)
    return state


def in_double(state: SlotState) -> SlotState:
    """A copy, whose reference computes in float64."""
    changed: dict[str, Any] = {}
    for field in fields(state):
        tensor = getattr(state, field.name)
        if isinstance(tensor, torch.Tensor):
            changed[field.name] = tensor.double() if tensor.is_floating_point() else tensor.clone()
    return replace(state, **changed)


def refill(*states: SlotState, width: int | None = None) -> None:
    """The same victims in all, those of the first."""
    count = states[0].queue.shape[2]
    victims = kv_reference.pick_victims(states[0], None, PROTECTION, count=count, width=width)
    for state in states:
        state.queue.copy_(victims)
        state.cursor.zero_()


def launch(
    inputs: Inputs, state: SlotState, *, parts: int | None = 1, fused: bool = True, **options: Any
) -> torch.Tensor:
    known = {"scale": state.keys.shape[2] ** -0.5, "rule": "max", "decay": 1.0, "group": "max"}
    known |= {"real": None, "width": None, "scratch": None} | options
    return _launch(*inputs, state, **known, parts=parts, fused=fused)


def check(found: torch.Tensor, expected: torch.Tensor, state: SlotState, exact: SlotState) -> None:
    """Output and state after a step are those of the reference."""
    limit, limit_importance = TOLERANCE[state.keys.dtype]
    assert found.dtype == state.keys.dtype
    assert found.isfinite().all()
    known = (state.head_positions() >= 0).any(2)  # the output of a head without tokens has no meaning
    error = (found.double() - expected).abs().unflatten(1, (len(state.capacities), -1))[known]
    assert error.numel() == 0 or error.max() < limit
    empty = state.positions < 0
    for name, tensor in state.tensors().items():
        other = exact.tensors()[name]
        if name == "importance":  # of no meaning in empty slots
            tensor, other = tensor.masked_fill(empty, 0.0), other.masked_fill(empty, 0.0)
        if name in ("importance", "value_norms", "evicted"):
            torch.testing.assert_close(tensor.double(), other, atol=limit_importance, rtol=limit_importance)
        else:
            assert torch.equal(tensor.to(other.dtype), other), name


def step(
    state: SlotState,
    exact: SlotState,
    groups: int,
    seed: int,
    *,
    parts: int | None = 1,
    fused: bool = True,
    scratch: KVScratch | None = None,
    scale: float = 0.5,
    **options: Any,
) -> None:
    """One step of both, and the comparison."""
    inputs = draw(state, groups, seed)
    query, key, value = (t.double() for t in inputs)
    expected = kv_reference.decode_step(query, key, value, exact, scale=scale, **options)
    found = launch(inputs, state, parts=parts, fused=fused, scratch=scratch, scale=scale, **options)
    check(found, expected, state, exact)


SHAPES = [
    (1, 64, 64, 1),
    (2, 128, 128, 4),
    (3, 64, 64, 2),
    (4, 256, 256, 2),
    (5, 60, 36, 8),
    (6, 32, 80, 4),
    (7, 128, 128, 2),
    (8, 64, 64, 8),
    (17, 16, 16, 2),
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("groups", "size", "value", "parts"), SHAPES)
def test_steps_are_those_of_the_reference(
    dtype: torch.dtype, groups: int, size: int, value: int, parts: int
) -> None:
    """Ragged heads and gaps, three tokens that take the place of others, one and two launches."""
    state = fill(2, [150, 37], size, value, dtype, interval=3, seed=groups)
    exact = in_double(state)
    refill(exact, state)
    rule, group, decay = RULES[groups % 4]
    for i in range(3):
        step(
            state,
            exact,
            groups,
            i,
            parts=parts,
            fused=i != 1,
            rule=rule,
            group=group,
            decay=decay,
            scale=size**-0.5,
        )
    assert (state.cursor == 3).all()


def test_empty_slots_are_left_alone() -> None:
    state = fill(2, [150, 37], 16, 16, occupied=0.6)
    refill(state)
    before = state.importance.clone()
    launch(draw(state, 2, 0), state, parts=2, decay=0.5)
    empty = state.positions < 0
    assert torch.equal(state.importance[empty], before[empty])
    assert (state.importance[~empty] != before[~empty]).all()


@pytest.mark.parametrize(("rule", "group", "decay"), RULES)
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("fused", [True, False])
def test_importance_follows_every_rule(rule: str, group: str, decay: float, parts: int, fused: bool) -> None:
    state = fill(1, [90, 61], 32, 32, seed=1, norms=False)
    exact = in_double(state)
    refill(exact, state)
    step(state, exact, 3, 0, parts=parts, fused=fused, rule=rule, group=group, decay=decay)


def test_from_the_first_token_on_and_through_many_evictions() -> None:
    """70 tokens into 20 and 9 slots, two of them padding here and there, the norms and sums of evicted ones too."""
    state = SlotState.allocate(2, [20, 9], 16, 16, interval=2, value_norms=True, evicted=True, device=DEVICE)
    exact = in_double(state)
    scratch = KVScratch.allocate([state], 2, 2)
    for i in range(70):
        if i % 2 == 0:
            refill(exact, state)
        real = torch.tensor([i > 4, i % 9 != 3], device=DEVICE)
        step(
            state,
            exact,
            2,
            i,
            parts=2,
            scratch=scratch,
            real=real,
            decay=0.97,
            width=min(i + 1, 20),
        )
    assert exact.evicted is not None
    assert (exact.evicted > 0.1).all()


@pytest.mark.parametrize("by_head", [False, True])
def test_a_row_of_padding_alone_is_finite(by_head: bool) -> None:
    state = fill(2, [20, 9], 16, 16, occupied=0.0)
    for fused in (True, False):
        for parts in (1, 4):
            refill(state)
            real = torch.tensor([[False, False], [False, True]] if by_head else [False, True], device=DEVICE)
            before = state.lengths.clone()
            found = launch(draw(state, 2, 0), state, parts=parts, fused=fused, real=real)
            assert found.isfinite().all()
            assert (state.positions[0] == -1).all()
            assert (state.lengths - before).tolist() == [[0, 0], [int(not by_head), 1]]


@pytest.mark.parametrize("parts", [1, 2])
def test_only_the_width_is_read(parts: int) -> None:
    """What lies beyond is NaN, and stays as it is."""
    state = fill(1, [100, 40], 32, 32, occupied=0.8)
    width = 50
    for tensor in (state.keys, state.values):
        state.heads(tensor)[:, :, width:]
        tensor[:, width:100] = torch.nan
    state.positions[:, width:100] = -1
    state.importance[:, width:100] = 7.0
    exact = in_double(state)
    exact.keys.nan_to_num_()
    exact.values.nan_to_num_()
    refill(exact, state, width=width)
    inputs = draw(state, 2, 0)
    query, key, value = (t.double() for t in inputs)
    expected = kv_reference.decode_step(query, key, value, exact, scale=0.5, width=width)
    found = launch(inputs, state, parts=parts, scale=0.5, width=width)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state.importance.double(), exact.importance, atol=1e-5, rtol=1e-5)
    assert state.keys[:, width:100].isnan().all()


def test_what_the_new_token_replaces_is_not_read() -> None:
    state = fill(1, [60, 60], 32, 32)
    exact = in_double(state)
    refill(exact, state)
    victims = state.queue[0, :, 0].long()
    for tensor in (state.keys, state.values):
        tensor[0, victims] = torch.nan
    step(state, exact, 2, 0, parts=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_splits_change_rounding_only_and_launches_nothing(dtype: torch.dtype) -> None:
    first = fill(2, [300, 70], 64, 64, dtype, interval=2, seed=3)
    refill(first)
    results = {}
    for parts in (1, 2, 4, 8):
        for fused in (True, False):
            state = first.select(torch.arange(2))
            out = [launch(draw(state, 4, i), state, parts=parts, fused=fused, decay=0.9) for i in range(2)]
            results[parts, fused] = (torch.stack(out), state.tensors())
    once, tensors = results[1, True]
    for (parts, _), (found, changed) in results.items():
        same, unchanged = results[parts, True]
        assert torch.equal(found, same)
        assert all(torch.equal(changed[name], unchanged[name]) for name in changed)
        assert (found.double() - once.double()).abs().max() <= TOLERANCE[dtype][0]
        torch.testing.assert_close(changed["importance"], tensors["importance"], atol=1e-6, rtol=1e-5)
        for name in changed.keys() - {"importance"}:
            assert torch.equal(changed[name], tensors[name])


def test_inputs_may_have_strides() -> None:
    """The layout of transformers, heads before tokens; and one whose last dimension is not the innermost."""
    state = fill(2, [60, 40], 32, 32)
    refill(state)
    inputs = draw(state, 3, 0)
    views = [
        [torch.stack([t, t + 1], 2)[:, :, 0] for t in inputs],
        [torch.cat([t, t + 1], 2)[:, :, :32] for t in inputs],
        [t.mT.contiguous().mT for t in inputs],
    ]
    other = state.select(torch.arange(2))
    expected = launch(inputs, other, parts=2)
    real = torch.ones(4, dtype=torch.bool, device=DEVICE)
    for query, key, value in views:
        assert not query.is_contiguous()
        here = state.select(torch.arange(2))
        found = launch((query, key, value), here, parts=2, real=real[::2])
        assert torch.equal(found, expected)
        for name, tensor in here.tensors().items():
            assert torch.equal(tensor, other.tensors()[name])


def test_scratch_is_reused_whatever_is_in_it() -> None:
    """By layers of unlike sizes; the counters are 0 after each launch."""
    states = [fill(2, [150, 37], 32, 32, seed=1), fill(2, [20, 90], 32, 48, seed=2)]
    scratch = KVScratch.allocate(states, 3, 4)
    for tensor in (scratch.partials, scratch.extremes, scratch.logits):
        tensor.fill_(torch.nan)
    for i in range(2):
        for state in states:
            exact = in_double(state)
            refill(exact, state)
            step(state, exact, 3, i, parts=4, scratch=scratch)
            assert (scratch.counters == 0).all()


@pytest.mark.parametrize("name", ["partials", "extremes", "logits", "counters"])
def test_scratch_that_is_too_small_is_refused(name: str) -> None:
    state = fill(2, [150, 37], 32, 32)
    refill(state)
    scratch = KVScratch.allocate([state], 3, 4)
    short = replace(scratch, **{name: getattr(scratch, name)[:-1]})
    with pytest.raises(
        KernelError, match=r"too small for 2 rows of 2 heads with 150 slots and 3 queries each"
    ):
        launch(draw(state, 3, 0), state, parts=4, scratch=short)
    assert (state.cursor == 0).all()


def test_a_spent_queue_gives_its_last_slot_again() -> None:
    state = fill(1, [20, 9], 16, 16, interval=2)
    refill(state)
    positions = state.positions.clone()
    for i in range(3):
        launch(draw(state, 2, i), state, parts=2)
    changed = (state.positions != positions).nonzero()[:, 1]
    assert changed.tolist() == sorted(state.queue.flatten().tolist())
    for head in range(2):
        assert state.positions[0, state.queue[0, head, 1]] == state.lengths[0, head] - 1


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    choose = data.draw
    heads, groups = choose(st.integers(1, 3)), choose(st.integers(1, 9))
    state = fill(
        choose(st.integers(1, 2)),
        choose(st.lists(st.integers(3, 90), min_size=heads, max_size=heads)),
        choose(st.integers(1, 70)),
        choose(st.integers(1, 70)),
        choose(st.sampled_from(list(TOLERANCE))),
        interval=choose(st.integers(1, 3)),
        occupied=choose(st.sampled_from([0.1, 0.7, 1.0])),
        seed=choose(st.integers(0, 99)),
        norms=choose(st.booleans()),
    )
    exact = in_double(state)
    refill(exact, state)
    rule, group, decay = choose(st.sampled_from(RULES))
    step(
        state,
        exact,
        groups,
        choose(st.integers(0, 99)),
        parts=choose(st.sampled_from([1, 2, 4, 8])),
        fused=choose(st.booleans()),
        rule=rule,
        group=group,
        decay=decay,
        scale=state.keys.shape[2] ** -0.5,
    )


def test_the_cases_reach_several_blocks() -> None:
    """What the names above promise: more than one block a split, splits without a block, and heads without padding."""
    state = fill(1, [150, 37], 128, 128)
    block = launch_options(state, 2, rule="max", group="max")["BLOCK_N"]
    assert 150 > 4 * block >= 37
    assert launch_options(fill(1, [150], 60, 36), 5, rule="max", group="max")["BLOCK_D"] == 64
