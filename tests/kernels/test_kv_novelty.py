"""Novelty of keys: what it is, what it refuses, and the Triton kernels without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from budgetctl.errors import KernelError
from budgetctl.kernels.kv_novelty import ENOUGH_PROGRAMS, LEAST_SLOTS, difference, diverse, novelty, parts_of
from budgetctl.kernels.kv_resources import compiled_novelty, novelty_cost, shape_of_state
from budgetctl.kernels.kv_state import SlotState
from tests.kernels.kv_novelty_states import fill
from tests.triton_process import needs_compiler, needs_cuda, needs_triton, run_cases

CASES = Path(__file__).with_name("kv_novelty_cases.py")


@pytest.mark.slow
@needs_triton
def test_kernels_equal_the_reference_in_the_interpreter() -> None:
    run_cases(CASES, TRITON_INTERPRET="1")


@pytest.mark.gpu
@needs_triton
@needs_cuda
def test_kernels_equal_the_reference_on_cuda() -> None:
    run_cases(CASES)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("size", "dtype"), [(64, torch.float16), (128, torch.bfloat16), (256, torch.float32)], ids=str
)
def test_kernels_compile_for_sm_90(
    size: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = compiled_novelty(size, dtype=dtype)
    for found, _ in kernels:
        assert found.spilled == 0
        assert found.registers * found.threads <= 65536
    # Keys are read 16 bytes at a time.
    assert all("ld.global.v4.b32" in ptx and "ld.global.b16" not in ptx for _, ptx in kernels[:2])


def by_hand(state: SlotState, row: int, head: int, weight: float) -> dict[int, float]:
    """The score of each held slot, one after the other."""
    slots = [
        s for s in range(state.offsets[head], state.offsets[head + 1]) if int(state.positions[row, s]) >= 0
    ]
    keys = {s: state.keys[row, s].double() for s in slots}
    mean = sum(key / key.norm() for key in keys.values())
    assert state.value_norms is not None
    v = {s: float(state.value_norms[row, s]) for s in slots}
    u = {s: float(1 - torch.cosine_similarity(keys[s], mean, dim=0)) * v[s] for s in slots}
    i = {s: float(state.importance[row, s]) for s in slots}
    mean_i, mean_u, mean_v = (sum(part.values()) / len(slots) for part in (i, u, v))
    p = max(sum(i[s] / v[s] for s in slots) / len(slots) * mean_v / mean_i, 1.0)
    r = min(state.capacities[head] / int(state.lengths[row, head]), 1.0)
    return {s: i[s] / mean_i + weight * r * (p**-20 + 1 / 40) * u[s] / mean_u for s in slots}


def test_the_score_is_what_its_formula_says() -> None:
    states = [fill(2, [9, 14], 6, torch.float64, "cpu", seed, occupied=0.8) for seed in (0, 1)]
    for found, state in zip(novelty(states, 5.0), states, strict=True):
        for row in range(2):
            for head in range(2):
                for slot, expected in by_hand(state, row, head, 5.0).items():
                    column = slot - state.offsets[head]
                    assert float(found[row, head, column]) == pytest.approx(expected, rel=1e-6)


def test_without_a_weight_it_is_the_difference() -> None:
    state = fill(2, [9, 14], 6, torch.float32, "cpu", 0)
    assert torch.equal(novelty([state], None, 7)[0], difference(state, 7))
    assert torch.equal(novelty([state], 2.0)[0], diverse(state, 2.0))


def test_programs_are_enough_and_have_enough_to_do() -> None:
    assert parts_of(8, 2048) == 2048 // LEAST_SLOTS
    assert parts_of(36 * 8, 2048) == 4
    assert parts_of(ENOUGH_PROGRAMS, 2048) == 1
    assert parts_of(1, LEAST_SLOTS - 1) == 1
    for pairs in range(1, 3000, 7):
        parts = parts_of(pairs, 4096)
        assert parts & (parts - 1) == 0
        assert parts == 1 or 4096 // parts >= LEAST_SLOTS


def test_norms_of_values_are_needed() -> None:
    state = SlotState.allocate(1, [8], 4, 4)
    novelty([state])
    with pytest.raises(KernelError, match="value_norms=True"):
        novelty([state], 1.0)


def test_keys_are_read_twice() -> None:
    state = shape_of_state(8, 8, 2048, 128)
    cost = novelty_cost(36, state)
    keys = 36 * state.keys.numel() * 2
    assert 2 * keys < cost.bytes < 2.2 * keys
