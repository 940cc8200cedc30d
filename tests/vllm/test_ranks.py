"""Tensor-parallel ranks sample each for itself, and must decide alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: run `make test-vllm`, which has an environment of its own")

from budgetctl.reasoner.load import PREDICTOR

ROOT = Path(__file__).parents[2]


def answers(ranks: int, folder: Path) -> Any:
    """In processes of their own: an engine of several ranks forks."""
    threads = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment = {
        **os.environ,
        **threads,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "BUDGETCTL_PREDICTOR": str(PREDICTOR),
    }
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    found = folder / str(ranks)
    command = [sys.executable, "-m", "tests.vllm.ranks", str(ranks), str(found)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(found.read_text())


def test_two_ranks_write_what_one_writes(tmp_path: Path) -> None:
    alone, together = answers(1, tmp_path), answers(2, tmp_path)
    assert together == alone
    assert all(ids.index(4) <= 12 for ids in together[::6])
