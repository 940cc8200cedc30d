"""The novelty kernels against the reference in float64, on CUDA or in Triton's interpreter; run by ``test_kv_novelty.py``."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from budgetctl.kernels.kv_novelty import _launch, novelty
from budgetctl.kernels.kv_state import Protection, SlotState
from budgetctl.kernels.kv_victims import VictimTable, refill
from tests.kernels.kv_novelty_states import fill, in_double, reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
needs_cuda = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
# The interpreter knows no bfloat16.
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]


def check(states: list[SlotState], weight: float | None, width: int | None = None, **options: Any) -> None:
    """Within rounding of float32 of the reference in float64, in the slots that hold a token."""
    found = _launch(states, weight, width, None, **options)
    assert len(found) == len(states)
    for each, state in zip(found, states, strict=True):
        expected = reference(in_double(state), weight, width)
        held = state.head_positions(width) >= 0
        assert each.shape == expected.shape
        torch.testing.assert_close(each[held].double(), expected[held], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", [None, 10.0])
@pytest.mark.parametrize("occupied", [0.5, 1.0])
@pytest.mark.parametrize("parts", [1, 4])
def test_scores_are_those_of_the_reference(
    dtype: torch.dtype, weight: float | None, occupied: float, parts: int
) -> None:
    """Three layers of as many slots come in one tensor."""
    states = [fill(2, [140, 140], 24, dtype, DEVICE, seed, occupied=occupied) for seed in range(3)]
    check(states, weight, parts=parts)
    assert isinstance(_launch(states, weight, None, None), torch.Tensor)


@pytest.mark.parametrize("weight", [None, 3.0])
@pytest.mark.parametrize("width", [None, 20, 70])
def test_heads_of_their_own_sizes(weight: float | None, width: int | None) -> None:
    capacities = [[40, 40, 40], [23, 40, 17], [130, 18, 64]]
    states = [
        fill(2, each, 16, torch.float32, DEVICE, seed, occupied=0.9) for seed, each in enumerate(capacities)
    ]
    check(states, weight, width)
    check(states, weight, width, parts=2)


@pytest.mark.parametrize("size", [64, 96, 256])
def test_keys_of_any_size(size: int) -> None:
    check([fill(1, [60, 60], size, torch.float32, DEVICE, size)], 10.0)


def test_more_slots_than_a_program_holds_at_a_time() -> None:
    check([fill(1, [2500, 2500], 16, torch.float32, DEVICE, 1, occupied=0.95)], 10.0)


def test_keys_without_a_direction_are_finite() -> None:
    state = fill(2, [50, 50], 16, torch.float32, DEVICE, 2)
    state.keys[0] = 0
    state.keys[1, ::7] = 0
    check([state], None)
    assert all(each.isfinite().all() for each in _launch([state], 10.0, None, None))


def test_a_head_without_a_token_or_importance_is_finite() -> None:
    state = fill(2, [50, 50], 16, torch.float32, DEVICE, 3)
    state.positions[0] = -1
    state.importance[1] = 0
    assert _launch([state], 10.0, None, None)[0].isfinite().all()


@needs_cuda
def test_the_launches_wait_for_nothing_and_replay_in_a_graph() -> None:
    states = [fill(2, [300, 300], 64, torch.bfloat16, DEVICE, seed) for seed in range(3)]
    table = VictimTable.of(states)

    def choose() -> torch.Tensor:
        scores = novelty(states, 10.0, None, table)
        refill(states, Protection(4, 8), count=4, scores=scores, table=table)
        return torch.stack([state.queue for state in states])

    expected = choose().clone()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        choose()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = choose()
    for state in states:
        state.queue.zero_()
    graph.replay()
    assert torch.equal(found, expected)
