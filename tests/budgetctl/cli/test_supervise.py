"""A supervised process is started again where it ends by itself, and ended where that is asked for."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from budgetctl.cli.supervise import supervise


def code(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-c", f"import os, signal, sys\n{text}", *arguments]


@pytest.mark.parametrize(("status", "returned"), [(0, 1), (3, 3)])
def test_one_that_ends_by_itself_is_started_again(status: int, returned: int, tmp_path: Path) -> None:
    """With 0 as well: vLLM's server ends so when its engine has died."""
    starts, told = tmp_path / "starts", list[str]()
    command = code(f"open(sys.argv[1], 'a').write('x')\nsys.exit({status})", str(starts))
    assert supervise(command, os.environ, 2, told.append) == returned
    assert starts.read_text() == "xxx"
    assert [f"status {status}; it is started again {left} times more" in told[2 - left] for left in (2, 1, 0)]


def test_one_that_a_signal_ends_has_failed(tmp_path: Path) -> None:
    command = code("os.kill(os.getpid(), signal.SIGKILL)")
    assert supervise(command, os.environ, 0, lambda line: None) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_nothing_is_started_again(number: signal.Signals, tmp_path: Path) -> None:
    """The process asks its parent to end, and waits for the signal to come back."""
    starts, before = tmp_path / "starts", signal.getsignal(number)
    command = code(
        f"signal.signal({int(number)}, lambda *_: sys.exit(5))\nopen(sys.argv[1], 'a').write('x')\n"
        f"os.kill(os.getppid(), {int(number)})\nwhile True: signal.pause()",
        str(starts),
    )
    told: list[str] = []
    assert supervise(command, os.environ, 4, told.append) == 5
    assert starts.read_text() == "x"
    assert told == []
    assert signal.getsignal(number) is before


def test_what_a_killed_process_leaves_behind_is_killed(tmp_path: Path) -> None:
    """As the engine of a server: it holds a lock for as long as it lives."""
    lock = tmp_path / "lock"
    command = code(
        "import fcntl\nheld = open(sys.argv[1], 'w')\nfcntl.flock(held, fcntl.LOCK_EX)\n"
        "if os.fork() == 0:\n    while True: signal.pause()\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        str(lock),
    )
    assert supervise(command, os.environ, 0, lambda line: None) == 128 + signal.SIGKILL
    end = time.monotonic() + 20
    with lock.open("w") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < end, "it still runs"
