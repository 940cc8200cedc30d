"""Kills a run at random sizes of its records, as often as asked, then lets it end: ``killed_run.py FOLDER TIMES SEED``."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

from budgetctl.evals.harness.records import RECORDS
from tests.evals.harness.fake import run_all

QUESTIONS, BATCH, BYTES = 60, 3, 300_000


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def main(folder: Path, times: int, seed: int) -> int:
    """How many of the kills came before the end."""
    rng = random.Random(seed)
    killed = 0
    for limit in sorted(rng.randrange(BYTES) for _ in range(times)):
        child = os.fork()
        if child == 0:
            run_all(folder, QUESTIONS, BATCH)
            os._exit(0)
        ended = 0
        while not ended and size(folder / RECORDS) < limit:
            ended, _ = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed += os.WIFSIGNALED(status)
    run_all(folder, QUESTIONS, BATCH)
    return killed


if __name__ == "__main__":
    sys.stdout.write(f"{main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))}\n")
