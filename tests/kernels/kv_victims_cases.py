"""The victims kernel against the reference, on CUDA or in Triton's interpreter; run by ``test_kv_victims.py``.

Not collected by itself: Triton decides at import whether it interprets (``TRITON_INTERPRET=1``), so that these run in a
process of their own.
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.kernels import kv_reference
from budgetctl.kernels.kv_state import NO_ANSWER, Protection, SlotState
from budgetctl.kernels.kv_victims import VictimTable, _launch, refill

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
needs_cuda = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")

CAPACITIES = [[40, 40, 40], [23, 40, 17], [130, 18, 64]]


def fill(
    batch: int,
    capacities: list[int],
    interval: int,
    seed: int,
    *,
    occupied: float = 1.0,
    levels: int | None = None,
    prompt: int = 0,
    answered: bool = False,
) -> SlotState:
    """A state whose slots hold that share of tokens, evicted at random; importance of ``levels`` values, or any."""
    generator = torch.Generator().manual_seed(seed)
    state = SlotState.allocate(batch, capacities, 4, 4, interval=interval, value_norms=True, device=DEVICE)
    assert state.value_norms is not None
    seen = 3 * max(capacities)
    for start, size in zip(state.offsets, state.capacities, strict=False):
        for b in range(batch):
            positions = torch.randperm(seen, generator=generator)[:size].int()
            positions[torch.rand(size, generator=generator) >= occupied] = -1
            state.positions[b, start : start + size] = positions.to(DEVICE)
    shape = state.importance.shape
    # Whole numbers add up alike in any order.
    mass = torch.rand(shape, generator=generator)
    state.importance.copy_(mass if levels is None else (mass * levels).floor())
    state.value_norms.copy_((torch.rand(shape, generator=generator) * 8).floor() + 1)
    state.lengths.fill_(seen)
    state.prompts.fill_(prompt)
    if answered:
        state.answers.copy_(torch.randint(seen // 2, seen, (batch, 1), generator=generator))
    state.queue.fill_(-7)
    return state


def check(states: list[SlotState], protection: Protection, count: int, **options: Any) -> None:
    """The kernel's queues are those of the reference."""
    block = options.pop("block", None)
    prior, scores, width = (options.get(name) for name in ("prior", "scores", "width"))
    _launch(states, protection, count, prior, scores, width, None, block=block)
    for i, state in enumerate(states):
        worth = kv_reference.guarded(state, width, prior) if prior is not None else scores and scores[i]
        expected = kv_reference.pick_victims(state, worth, protection, count=count, width=width)
        start = state.queue.shape[2] - count
        assert torch.equal(state.queue[:, :, start:], expected)
        assert (state.queue[:, :, :start] == -7).all()
        assert (state.cursor == start).all()


@pytest.mark.parametrize("interval", [1, 4, 17])
@pytest.mark.parametrize("occupied", [0.0, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("levels", [None, 3])
def test_queues_are_those_of_the_reference(interval: int, occupied: float, levels: int | None) -> None:
    """Three ragged layers; few levels make ties, which the oldest lose."""
    states = [
        fill(2, capacities, interval, seed, occupied=occupied, levels=levels, prompt=10, answered=seed == 1)
        for seed, capacities in enumerate(CAPACITIES)
    ]
    check(states, Protection(4, 8), interval)


@pytest.mark.parametrize("prior", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("occupied", [0.7, 1.0])
def test_the_guarded_score_is_that_of_the_reference(prior: float, occupied: float) -> None:
    """Exactly, as whole numbers add up alike in any order."""
    states = [
        fill(2, capacities, 4, seed, occupied=occupied, levels=50)
        for seed, capacities in enumerate(CAPACITIES)
    ]
    check(states, Protection(4, 8), 4, prior=prior)


def test_the_guarded_score_of_any_importance_up_to_rounding() -> None:
    state = fill(3, [300, 200], 17, 5)
    protection = Protection(4, 8)
    _launch([state], protection, 17, 0.3, None, None, None)
    scores = kv_reference.guarded(state, None, 0.3)
    best = kv_reference.pick_victims(state, scores, protection, count=17)
    flat = torch.full_like(state.importance, torch.nan)
    state.put_heads(flat, scores)
    found, expected = (flat.gather(1, q.flatten(1).long()) for q in (state.queue, best))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert (state.queue != best).sum() < 10


@pytest.mark.parametrize("width", [5, 17, 30, 1000])
def test_only_the_width_is_looked_at(width: int) -> None:
    states = [fill(2, capacities, 4, 9, occupied=0.9) for capacities in CAPACITIES]
    check(states, Protection(2, 3), 4, width=width)


@pytest.mark.parametrize("wide", [None, 20])
def test_scores_may_be_given(wide: int | None) -> None:
    """Of unlike widths, with strides, NaN, infinities and zeros of both signs."""
    states = [fill(2, capacities, 4, seed) for seed, capacities in enumerate(CAPACITIES)]
    special = torch.tensor(
        [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-40, -1e-40, 3.4028235e38, -3.4028235e38]
    )
    scores = []
    for seed, state in enumerate(states):
        generator = torch.Generator().manual_seed(seed)
        width = min(state.widest, wide or state.widest)
        drawn = torch.randint(0, len(special), (2, width, 3), generator=generator)
        scores.append(special[drawn].mT.to(DEVICE))
    for count in (1, 4):
        for state in states:
            state.queue.fill_(-7)
        check(states, Protection(0, 1), count, scores=scores, width=wide)
    # One tensor for all heads, as policies whose heads keep the same tokens have it.
    check(states[:1], Protection(0, 1), 4, scores=[scores[0][:, :1].expand(-1, 3, -1)], width=wide)


def test_importance_that_is_no_number() -> None:
    states = [fill(1, capacities, 17, 3, levels=2) for capacities in CAPACITIES]
    for state in states:
        assert state.value_norms is not None
        state.importance[:, ::3] = math.nan
        state.importance[:, 1::5] = math.inf
        state.importance[:, 2::7] = -0.0
    check(states, Protection(1, 2), 17)
    # One NaN makes the mean NaN, and with it every score of its head: the oldest go.
    check(states, Protection(1, 2), 17, prior=1.0)


def test_everything_protected_leaves_an_order() -> None:
    check([fill(2, [24, 20], 17, 4)], Protection(1000, 3), 17)
    check([fill(2, [24, 20], 17, 4, occupied=0.3)], Protection(1000, 3), 17)


@pytest.mark.parametrize(("prompt", "whole"), [(8, True), (9, False)])
def test_a_prompt_over_its_share_competes(prompt: int, whole: bool) -> None:
    state = fill(1, [40], 4, 0)
    state.positions.copy_(torch.arange(40))
    state.lengths.fill_(40)
    state.prompts.fill_(prompt)
    state.importance.copy_(torch.arange(40))
    check([state], Protection(2, 4), 4)
    assert state.queue.tolist() == [[[8, 9, 10, 11] if whole else [2, 3, 4, 5]]]


def test_an_answer_is_protected() -> None:
    state = fill(2, [16], 3, 0)
    state.positions.copy_(torch.arange(16).flip(0))
    state.lengths.fill_(16)
    state.importance.copy_(torch.arange(16))  # the latest are worth least
    state.answers.copy_(torch.tensor([[9], [NO_ANSWER]]))
    check([state], Protection(2, 2), 3)
    assert state.queue.tolist() == [[[7, 8, 9]], [[2, 3, 4]]]


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("prior", [None, 1.0])
def test_heads_wider_than_a_block(block: int, prior: float | None) -> None:
    """Ranks made anew for every victim are those kept in registers."""
    states = [
        fill(2, capacities, 17, seed, occupied=0.8, levels=4) for seed, capacities in enumerate(CAPACITIES)
    ]
    check(states, Protection(4, 8), 17, prior=prior, block=block)


def test_fewer_victims_than_the_queue_has_entries() -> None:
    check([fill(2, [24, 20], 6, 4)], Protection(4, 3), 2)


def test_many_layers_in_one_launch_touch_nothing_else() -> None:
    states = [fill(3, [8 + layer, 20], 2, layer, levels=5) for layer in range(40)]
    before = [{name: t.clone() for name, t in state.tensors().items()} for state in states]
    check(states, Protection(2, 2), 2)
    for state, kept in zip(states, before, strict=True):
        for name in kept.keys() - {"queue", "cursor"}:
            assert torch.equal(state.tensors()[name], kept[name])


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_states(data: st.DataObject) -> None:
    draw = data.draw
    heads, batch = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    interval = draw(st.integers(1, 6))
    layers = draw(st.integers(1, 4))
    size = st.integers(interval, 70)
    states = [
        fill(
            batch,
            draw(st.lists(size, min_size=heads, max_size=heads)),
            interval,
            draw(st.integers(0, 99)),
            occupied=draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
            levels=draw(st.sampled_from([1, 2, 20])),
            prompt=draw(st.integers(0, 60)),
            answered=draw(st.booleans()),
        )
        for _ in range(layers)
    ]
    protection = Protection(
        draw(st.integers(0, 80)), draw(st.integers(0, 80)), draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    )
    check(
        states,
        protection,
        interval,
        prior=draw(st.sampled_from([None, 0.25, 1.0])),
        width=draw(st.one_of(st.none(), st.integers(interval, 80))),
        block=draw(st.sampled_from([None, 32])),
    )


@needs_cuda
def test_refill_waits_for_nothing_and_replays_in_a_graph() -> None:
    states = [fill(2, capacities, 4, seed) for seed, capacities in enumerate(CAPACITIES)]
    table = VictimTable.of(states)
    protection = Protection(4, 8)

    def step() -> None:
        refill(states, protection, count=4, prior=0.1, table=table)

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for state in states:
        state.importance.copy_(state.importance.flip(1))
    graph.replay()
    replayed = [state.queue.clone() for state in states]
    step()
    for state, queue in zip(states, replayed, strict=True):
        assert torch.equal(state.queue, queue)
