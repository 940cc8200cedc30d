"""The decode kernel without a GPU: what it refuses, what it takes, and its cases in the interpreter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetctl.errors import KernelError
from budgetctl.kernels import kv_reference
from budgetctl.kernels.kv_decode import MOST_SIZE, decode_step, launch_options
from budgetctl.kernels.kv_resources import compiled_combine, compiled_decode, decode_cost, shape_of_state
from budgetctl.kernels.kv_scratch import ENOUGH_PROGRAMS, LEAST_SLOTS, KVScratch, splits
from budgetctl.kernels.kv_state import SlotState
from tests.triton_process import needs_compiler, needs_cuda, needs_triton, run_cases

CASES = Path(__file__).with_name("kv_decode_cases.py")
GPU_CASES = Path(__file__).with_name("kv_gpu_cases.py")


@pytest.mark.slow
@needs_triton
def test_kernel_equals_the_reference_in_the_interpreter() -> None:
    run_cases(CASES, TRITON_INTERPRET="1")


@pytest.mark.gpu
@needs_triton
@needs_cuda
@pytest.mark.parametrize("cases", [CASES, GPU_CASES], ids=lambda path: path.stem)
def test_kernel_equals_the_reference_on_cuda(cases: Path) -> None:
    run_cases(cases)


COMPILED: list[dict[str, Any]] = [
    {},
    {"parts": 1},
    {"launches": 2},
    {"groups": 1, "size": 64, "heads": 16, "rule": "sum", "group": "mean"},
    {"groups": 7, "dtype": torch.float16, "parts": 4},
    {"groups": 8, "size": 256, "slots": 4096},
    {"groups": 32, "size": 128},
    {"dtype": torch.float32},
    {"dtype": torch.float32, "size": 256},
    {"rule": "none"},
]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("options", COMPILED, ids=str)
def test_kernel_compiles_for_sm_90(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found, ptx = compiled_decode(**options)
    assert found.spilled == 0
    assert found.registers <= 255
    assert found.shared <= 227 * 1024  # of a multiprocessor of an H100
    assert "cp.async" in ptx
    narrow = options.get("dtype") != torch.float32
    assert bool(re.search(r"\b(wgmma|mma\.sync)", ptx)) is narrow
    counted = options.get("parts", 16) > 1 and options.get("launches", 1) == 1
    assert ("atom.global.gpu.acq_rel" in ptx) is counted


@needs_compiler
@pytest.mark.slow
def test_the_second_launch_compiles_for_sm_90(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found, ptx = compiled_combine()
    assert found.spilled == 0
    assert "atom." not in ptx


def step(dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    state = SlotState.allocate(2, [6, 4], 8, 12, value_norms=True, evicted=True, dtype=dtype)
    shapes = {"query": (2, 6, 8), "key": (2, 2, 8), "value": (2, 2, 12)}
    drawn = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    state.cursor.zero_()
    return drawn | {"state": state, "scale": 0.3} | options


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("launches", [1, 2])
def test_on_the_cpu_it_is_the_reference(dtype: torch.dtype, launches: int) -> None:
    options = {"rule": "sum", "group": "mean", "decay": 0.5, "real": torch.tensor([True, False]), "width": 3}
    here, there = step(dtype, **options), step(dtype, **options)
    found = decode_step(**here, launches=launches)
    assert torch.equal(found, kv_reference.decode_step(**there))
    for name, tensor in here["state"].tensors().items():
        assert torch.equal(tensor, there["state"].tensors()[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": torch.zeros(2, 3, 8)}, r"key and value have shapes \(2, 3, 8\)"),
        ({"key": torch.zeros(2, 2, 8).half()}, "key is torch.float16 on cpu: expected torch.float32 on cpu"),
        ({"value": torch.zeros(2, 2, 12).double()}, "value is torch.float64"),
        ({"value": torch.zeros(2, 2, 12, device="meta")}, "value is torch.float32 on meta"),
        ({"query": torch.zeros(2, 5, 8)}, "a multiple of 2"),
        ({"query": torch.zeros(2, 6, 8, device="meta")}, "query is torch.float32 on meta"),
        ({"query": torch.zeros(2, 6, 8).int()}, "query is torch.int32 on cpu: expected floating point"),
        ({"real": torch.ones(2)}, "real is torch.float32"),
        ({"real": torch.ones(3).bool()}, r"of shape \(3,\) on cpu: expected bool of \[2\]"),
        ({"real": torch.ones(2, device="meta").bool()}, "on meta: expected bool"),
        ({"rule": "mean"}, "rule='mean', group='max': expected one of max, sum, none"),
        ({"group": "sum"}, "and of max, mean"),
        ({"launches": 3}, "launches=3: expected 1, or 2"),
    ],
)
def test_refused(change: dict[str, Any], words: str) -> None:
    case = step() | change
    with pytest.raises(KernelError, match=words) as caught:
        decode_step(**case)
    assert "\n" not in str(caught.value)
    assert (case["state"].cursor == 0).all()


@pytest.mark.parametrize("batch", [1, 2, 8, 33, 1000])
@pytest.mark.parametrize("slots", [1, 100, 128, 2048, 32_768])
def test_splits_fill_the_gpu_where_there_is_work(batch: int, slots: int) -> None:
    parts = splits(batch, 8, slots)
    assert parts & (parts - 1) == 0
    assert parts == 1 or slots // parts >= LEAST_SLOTS
    assert parts == 1 or batch * 8 * parts <= ENOUGH_PROGRAMS
    # Twice as many would be too many, or too small.
    assert 2 * parts > slots // LEAST_SLOTS or 2 * parts * batch * 8 > ENOUGH_PROGRAMS


def test_scratch_fits_what_it_was_made_for() -> None:
    small, large = (shape_of_state(2, 4, slots) for slots in (300, 2000))
    scratch = KVScratch.allocate([small, large], 3)
    assert scratch.fits(small, 3)
    assert scratch.fits(large, 3)
    assert not scratch.fits(large, 4)
    assert not scratch.fits(shape_of_state(3, 4, 2000), 3)
    assert not KVScratch.allocate([small], 3).fits(large, 3)
    assert not scratch.fits(SlotState.allocate(2, [300] * 4, 128, 128), 3)
    assert scratch.bytes == sum(
        4 * t.numel() for t in (scratch.partials, scratch.extremes, scratch.logits, scratch.counters)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 60, 64, 128, MOST_SIZE])
@pytest.mark.parametrize("groups", [1, 5, 64])
def test_tiles_hold_the_shapes(dtype: torch.dtype, size: int, groups: int) -> None:
    options = launch_options(shape_of_state(size=size, dtype=dtype), groups, rule="max", group="max")
    assert options["BLOCK_D"] == options["BLOCK_E"] >= max(size, 16)
    assert options["BLOCK_G"] >= max(options["ROWS"], 16)
    assert options["ROWS"] >= groups
    assert 16 <= options["BLOCK_N"] <= 128
    assert options["ROWS"] * options["BLOCK_I"] <= 8192


def test_cost_is_that_of_the_slots() -> None:
    small, large = shape_of_state(2, 8, 1024), shape_of_state(2, 8, 2048)
    less, more = (decode_cost(state, 4, parts=1) for state in (small, large))
    # Keys and values in bfloat16, position, importance and four logits both ways.
    assert more.bytes - less.bytes == 2 * 8 * 1024 * (4 * 128 + 4 + 8 + 32)
    assert less.programs == 16
    assert decode_cost(small, 4, parts=4).programs == 64
    assert decode_cost(small, 4, parts=4).bytes > less.bytes
    assert decode_cost(small, 4, rule="none", parts=1).bytes == less.bytes - 2 * 8 * 1024 * 40
    assert less.tensor_flops > 0 == less.flops
    wide = decode_cost(shape_of_state(2, 8, 1024, dtype=torch.float32), 4)
    assert wide.flops > 0 == wide.tensor_flops
