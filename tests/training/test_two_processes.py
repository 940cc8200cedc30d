"""The update of two processes is that of one: rewards are gathered before they are compared, and noise is by row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.run_method import run
from tests.training.tiny import OPTIONS, OWN, command_line

ROOT = Path(__file__).resolve().parents[2]
#: A group lies on both processes. SGD, because Adam divides rounding errors by gradients that are almost nothing.
COMMON = {
    **OPTIONS,
    "per_device_train_batch_size": 4,
    "num_generations": 8,
    "optim": "sgd",
    "learning_rate": 0.1,
}
#: The launcher of several GPUs is torchrun; with ``use_cpu`` its processes talk by gloo.
LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_machines",
    "1",
    "--main_process_port",
    "0",
]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2"]


def runs(model: Path, out: Path, processes: int) -> list[tuple[str, list[str]]]:
    options = {**COMMON, "model_name_or_path": model, "gradient_accumulation_steps": 2 // processes}
    return [(name, command_line({**options, **own, "output_dir": out / name})) for name, own in OWN.items()]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_two_processes_take_the_step_of_one(tiny: Path, tmp_path: Path) -> None:
    plan = tmp_path / "runs.json"
    plan.write_text(json.dumps(runs(tiny, tmp_path / "two", 2)))
    done = subprocess.run(
        [sys.executable, *LAUNCH, "-m", "tests.training.run_method", str(plan)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run(runs(tiny, tmp_path / "one", 1))
    start = load_file(tiny / "model.safetensors")
    for name in OWN:
        one, two = (load_file(tmp_path / count / name / "model.safetensors") for count in ("one", "two"))
        moved = max(float((one[n] - start[n]).abs().max()) for n in start)
        assert moved > 1e-2, name
        for n in start:
            torch.testing.assert_close(two[n], one[n], rtol=1e-4, atol=1e-4 * moved)
