"""Victims of all layers: what a refill writes, what it refuses, and the Triton kernel without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetctl.errors import KernelError
from budgetctl.kernels import kv_victims
from budgetctl.kernels.kv_reference import guarded, pick_victims
from budgetctl.kernels.kv_resources import compiled_victims, shape_of_state, victims_cost
from budgetctl.kernels.kv_state import Protection, SlotState
from budgetctl.kernels.kv_victims import BLOCK, MOST_WHOLE, VictimTable, launch_options, refill
from tests.triton_process import needs_compiler, needs_cuda, needs_triton, run_cases

CASES = Path(__file__).with_name("kv_victims_cases.py")
PROTECTION = Protection(2, 3)


@pytest.mark.slow
@needs_triton
def test_kernel_equals_the_reference_in_the_interpreter() -> None:
    run_cases(CASES, TRITON_INTERPRET="1")


@pytest.mark.gpu
@needs_triton
@needs_cuda
def test_kernel_equals_the_reference_on_cuda() -> None:
    run_cases(CASES)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("slots", "count", "options"),
    [
        (2048, 4, {}),
        (2048, 128, {"prior": False}),
        (2048, 16, {"scores": True}),
        (MOST_WHOLE, 4, {}),
        (2 * MOST_WHOLE, 4, {}),
    ],
)
def test_kernel_compiles_for_sm_90(
    slots: int, count: int, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found, ptx = compiled_victims(slots, count, **options)
    assert found.spilled == 0
    assert found.registers * found.threads <= 65536
    assert found.shared <= 4096
    # The guarded score is that of PyTorch, whose division is exact.
    assert ("div.rn.f32" in ptx) is (options == {})
    assert "div.full.f32" not in ptx


def states(dtype: torch.dtype = torch.float32, **options: Any) -> list[SlotState]:
    found = []
    for layer, capacities in enumerate([[12, 9], [7, 20]]):
        state = SlotState.allocate(2, capacities, 4, 4, interval=3, value_norms=True, dtype=dtype, **options)
        assert state.value_norms is not None
        generator = torch.Generator().manual_seed(layer)
        state.positions.copy_(torch.rand(state.positions.shape, generator=generator).argsort(1))
        for tensor in (state.importance, state.value_norms):
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
        state.lengths.fill_(30)
        found.append(state)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prior", [None, 0.5])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("width", [None, 8])
def test_on_the_cpu_it_is_the_reference_by_layer(
    dtype: torch.dtype, prior: float | None, count: int, width: int | None
) -> None:
    chosen = states(dtype)
    refill(chosen, PROTECTION, count=count, prior=prior, width=width, table=VictimTable.of(chosen))
    for state in chosen:
        scores = None if prior is None else guarded(state, width, prior)
        expected = pick_victims(state, scores, PROTECTION, count=count, width=width)
        assert torch.equal(state.queue[:, :, 3 - count :], expected)
        assert (state.queue[:, :, : 3 - count] == 0).all()
        assert (state.cursor == 3 - count).all()


def test_scores_come_before_importance() -> None:
    chosen = states()
    scores = [-state.head_positions().float() for state in chosen]
    refill(chosen, Protection(0, 0), count=1, scores=scores)
    for state in chosen:
        latest = state.head_positions().amax(2)
        assert torch.equal(state.positions.gather(1, state.queue[:, :, -1].long()), latest)


def test_a_table_knows_its_states() -> None:
    chosen = states()
    table = VictimTable.of(chosen)
    assert table.entries.shape == (2, len(kv_victims.COLUMNS))
    assert table.entries[1, 0] == chosen[1].importance.data_ptr()
    assert table.describes(chosen)
    rows = torch.tensor([1, 0])
    chosen[0].reorder(rows)
    assert table.describes(chosen)
    assert not table.describes(chosen[:1])
    assert not table.describes([chosen[0], chosen[1].select(rows)])
    assert not table.describes(chosen[::-1])
    # A state may give up a tensor of its own.
    assert not table.describes([chosen[0], replace(chosen[1], value_norms=None)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"states": []}, "no states"),
        ({"states": [*states(), SlotState.allocate(2, [9, 9], 4, 4)]}, r"queue of state 2 is \(2, 2, 1\)"),
        ({"states": [*states(), shape_of_state(2, 2, 9, interval=3)]}, "on meta: expected .* on cpu"),
        ({"count": 0}, "count=0: expected 1 to 3"),
        ({"count": 4}, "count=4: expected 1 to 3"),
        ({"width": 2}, "count=3: expected 1 to 2"),
        ({"prior": -1.0}, "prior=-1.0: expected a number of at least 0"),
        ({"prior": 1.0, "scores": [torch.zeros(2, 2, 12), torch.zeros(2, 2, 20)]}, "either of the two"),
        (
            {"prior": 1.0, "states": [replace(s, value_norms=None) for s in states()]},
            "without norms of values",
        ),
        ({"scores": [torch.zeros(2, 2, 12)]}, "scores have shapes"),
        ({"scores": [torch.zeros(2, 2, 12), torch.zeros(2, 2, 20)], "width": 11}, r"expected \[\(2, 2, 11\)"),
        ({"table": VictimTable.of(states())}, "the table is of other states"),
    ],
)
def test_refused(change: dict[str, Any], words: str) -> None:
    arguments = {"states": states(), "protection": PROTECTION, "count": 3} | change
    with pytest.raises(KernelError, match=words) as caught:
        refill(**arguments)
    assert "\n" not in str(caught.value)


def test_a_prior_needs_norms_of_values() -> None:
    with pytest.raises(KernelError, match="keeps no norms of values"):
        guarded(SlotState.allocate(1, [4], 4, 4), None, 1.0)


@pytest.mark.parametrize("widest", [1, 100, 2048, 3000, MOST_WHOLE, MOST_WHOLE + 1, 10**6])
def test_a_program_holds_a_head_or_goes_through_it(widest: int) -> None:
    options = launch_options(widest)
    assert options["WHOLE"] == (widest <= MOST_WHOLE)
    assert not options["WHOLE"] or options["BLOCK"] >= widest
    assert options["BLOCK"] <= max(MOST_WHOLE, BLOCK)
    assert 4 <= options["num_warps"] <= 16


def test_cost_grows_with_layers_and_slots() -> None:
    small, large = shape_of_state(2, 4, 64), shape_of_state(2, 4, 128)
    once, twice = (victims_cost(layers, small, 4) for layers in (1, 2))
    assert (once.programs, twice.programs, twice.bytes) == (8, 16, 2 * once.bytes)
    assert victims_cost(1, large, 4).bytes - once.bytes == 12 * 2 * 4 * 64
    assert once.bytes - victims_cost(1, small, 4, prior=False).bytes == 4 * 2 * 4 * 64
