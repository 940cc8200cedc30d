"""The script for a GPU in its smallest form, and the tables that need none: what they find, and what they would not let pass."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from budgetctl.errors import BudgetctlError
from budgetctl.evals import kv_gpu, kv_gpu_checks, kv_gpu_plot, kv_kernel_tables, kv_tune
from budgetctl.evals.kv_bench import Timing
from budgetctl.evals.kv_bytes import CacheShape, full_bytes, least_bytes
from budgetctl.kernels import kv_reference
from tests.triton_process import needs_compiler

CPU = torch.device("cpu")
SMALL = [(2, 16, 2, [40, 24])]


def test_equality_of_the_plain_path() -> None:
    found = kv_gpu_checks.equality(CPU, SMALL)
    assert [case["dtype"] for case in found] == ["float32", "float16", "bfloat16"]
    assert all(case["passed"] and case["output"] > 0 for case in found)


@pytest.mark.parametrize("broken", ["output", "importance", "positions"])
def test_equality_sees_what_is_wrong(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> torch.Tensor:
        found = kv_reference.decode_step(*arguments, **options)
        state = arguments[3]
        if broken == "output":
            return found + 1e-3
        tensor = getattr(state, broken)
        tensor.add_(1e-3 if broken == "importance" else 1)
        return found

    monkeypatch.setattr(kv_gpu_checks, "decode_step", wrong)
    [case] = kv_gpu_checks.equality(CPU, SMALL, (torch.float32,))
    assert not case["passed"]
    assert case["same"] is (broken != "positions")


def test_one_bit_makes_a_difference() -> None:
    state = kv_gpu_checks.full_state(1, [30, 20], 16, torch.bfloat16, CPU)
    assert 0 < int((state.positions < 0).sum()) < 25
    tensors = state.tensors()
    assert not bool(kv_gpu_checks._differs(tensors, {n: t.clone() for n, t in tensors.items()}))
    importance = state.importance.clone()
    importance[0, 3] = torch.nextafter(importance[0, 3], torch.tensor(torch.inf))
    assert bool(kv_gpu_checks._differs(tensors, replace(state, importance=importance).tensors()))


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter runs the kernel here"
)
def test_what_needs_a_gpu_is_skipped_without() -> None:
    assert "skipped" in kv_gpu_checks.races(CPU)
    assert "skipped" in kv_gpu_checks.graph(CPU)


def test_the_script_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("budgetctl.evals.kv_bench.RUN", 2)
    ran = CliRunner().invoke(kv_gpu.app, ["--small", "--out", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    found = json.loads((tmp_path / "kv_gpu.json").read_text())
    assert {(t["kind"], t["batch"], t["tokens"]) for t in found["timings"]} == {
        (kind, batch, tokens) for kind in ("call", "step") for batch in (1, 2) for tokens in (80, 160)
    }
    assert all(case["passed"] for case in found["equality"]["result"])
    text = (tmp_path / "kv_gpu.md").read_text()
    assert text.strip() == ran.output.strip()
    assert "| float32 | 1 |" in text
    assert "small, a decode step" in text


def test_an_error_and_a_late_part_are_reported(tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("no such kernel\nand more")

    report = kv_gpu.Report(tmp_path, CPU, 60.0)
    report.part("races", fails)
    late = kv_gpu.Report(tmp_path, CPU, 0.0)
    late.part("graph", fails)
    assert "races: failed RuntimeError: no such kernel\n" in report.markdown()
    assert "left out: graph: the time was up" in late.markdown()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_device_it_says_so() -> None:
    ran = CliRunner().invoke(kv_gpu.app, [])
    assert ran.exit_code == 2
    assert "no CUDA device" in ran.output


def test_one_table_of_several_runs(tmp_path: Path) -> None:
    """Settings down, caches across; what was left out is empty."""
    timing = Timing(
        model="m",
        kind="step",
        method="DynamicCache",
        batch=1,
        tokens=2048,
        capacity=64,
        runs=2,
        ms=36.4,
        ratio=1.0,
        low=1.0,
        high=1.0,
        allocated=1,
        moved=1.0,
        least=1,
        least_ms=0.25,
    )
    ours = replace(timing, method="diverse-max", ms=0.0123, least_ms=0.125)
    runs = {"a.json": [timing, replace(timing, tokens=4096)], "b.json": [ours]}
    paths = [tmp_path / name for name in runs]
    for path, timings in zip(paths, runs.values(), strict=True):
        path.write_text(json.dumps({"timings": [each.as_dict() for each in timings]}))
    figure = tmp_path / "figure.png"
    ran = CliRunner().invoke(kv_gpu_plot.app, [*map(str, paths), "--png", str(figure)])
    assert ran.exit_code == 0, ran.output
    assert "| 1 | 2,048 | 36.4 | 0.012 | 0.250, 0.125 |" in ran.output
    assert "| 1 | 4,096 | 36.4 |  | 0.250,  |" in ran.output
    assert figure.read_bytes()[:4] == b"\x89PNG"
    paths[0].write_text("{}")
    with pytest.raises(BudgetctlError, match=r"expected kv_gpu\.json"):
        kv_gpu_plot.read(paths[0])


def test_traffic() -> None:
    ran = CliRunner().invoke(kv_kernel_tables.app, ["traffic"])
    assert ran.exit_code == 0, ran.output
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ran.output.splitlines()[2:]]
    assert [(int(line[0]), int(line[1].replace(",", ""))) for line in lines] == [
        (batch, tokens) for batch in (1, 8, 32) for tokens in kv_kernel_tables.LENGTHS
    ]
    shape, last = CacheShape(36, 8, 4, 128), lines[-1]
    mib = [float(cell.replace(",", "")) for cell in last[3:7]]
    assert mib[0] == round(least_bytes(shape, 32, 32_768) / 2**20)
    assert mib[1] == round(full_bytes(shape, 32, 32_768) / 2**20)
    # Flat: what a budget moves does not depend on the tokens thought.
    assert len({line[5] for line in lines[10:]}) == 1
    # Importance, logits and partial sums; and novelty, which reads all keys twice in four steps.
    assert 1.25 * mib[3] < mib[2] < 1.4 * mib[3]
    full, budget = (float(part) for part in last[8].split(","))
    assert full == pytest.approx(1e3 * least_bytes(shape, 32, 32_768) / 3.35e12, rel=0.01)
    assert full / budget > 11


@needs_compiler
@pytest.mark.slow
def test_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ran = CliRunner().invoke(kv_kernel_tables.app, ["resources"])
    assert ran.exit_code == 0, ran.output
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ran.output.splitlines()[2:]]
    assert [line[0] for line in lines] == [
        *["decode"] * 7,
        "combine",
        *["victims"] * 4,
        *["novelty"] * 3,
    ]
    assert all(line[3] == "0" for line in lines)


@pytest.mark.parametrize("batch", [1, 8, 32, 200])
def test_each_way_to_launch_is_tried_once(batch: int) -> None:
    tried = list(kv_tune.launches(batch, 2048))
    assert len(set(tried)) == len(set(map(str, tried))) == len(tried)
    assert tried[0].constants() == {}
    assert all(launch.parts >= 1 for launch in tried)
    assert kv_tune.Launch(4, tile=32, rule="none").constants() == {"BLOCK_N": 32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_nothing_is_tuned_without_a_device() -> None:
    ran = CliRunner().invoke(kv_tune.app, [])
    assert ran.exit_code == 2
    assert "no CUDA device" in ran.output
