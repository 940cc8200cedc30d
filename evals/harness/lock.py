"""One process at a time in a run directory; the system lets go of the lock when a process ends, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from budgetctl.errors import EvalError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder/run.lock``.

    Raises:
        EvalError: another process holds it.
    """
    path = folder / "run.lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _take(file)
        except OSError:
            raise EvalError(
                f"{folder} is in use by another process: expected one at a time; wait for it, or give another folder"
            ) from None
        yield
    finally:
        os.close(file)


def _take(file: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
