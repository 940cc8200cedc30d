"""Keeps a server's process running: starts it again where it ends by itself, and passes signals on to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from types import FrameType


def supervise(
    command: Sequence[str], environment: Mapping[str, str], restarts: int, tell: Callable[[str], None]
) -> int:
    """Run ``command`` until a signal ends it, or it has ended by itself once more than ``restarts``.

    SIGTERM and SIGINT are passed on, and what ends after one is not started again. The process has a session of its own;
    what it leaves behind there when it ends is killed, since a killed server would leave its engine, and the engine's
    memory. Call it in the main thread.

    Args:
        command: program and arguments.
        environment: of the process.
        restarts: how often it is started again, in all.
        tell: is told in a line when it has ended by itself.

    Returns:
        Exit status: that of the process, 128 and the number where a signal ended it; 1 where a process ended by itself
        with 0, since a server that is not asked to end has failed.
    """
    asked: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for left in range(restarts, -1, -1):
            with subprocess.Popen(list(command), env=dict(environment), start_new_session=True) as process:
                running[:] = [process]
                for number in asked:  # one that came before there was a process
                    process.send_signal(number)
                found = process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            status = 128 - found if found < 0 else found
            if asked:
                return status
            tell(f"the server ended by itself with status {status}; it is started again {left} times more")
        return status or 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
