"""Servers of the embedded reasoner as processes, that can be killed and started again on the same port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

#: Seconds that a server may take to start on a busy machine, and that any other change may take.
PATIENCE, SOON = 900, 60


def until(happened: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Poll until it has happened; after ``seconds`` it is an error."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


class Server:
    """``budgetctl serve --engine vllm`` on a port of its own.

    Args:
        log: file for what it writes.
        options: of ``budgetctl serve``.
    """

    def __init__(self, log: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._options = options
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        command = ["-m", "budgetctl", "serve", "--engine", "vllm", "--host", "127.0.0.1"]
        others = ["--", "--enforce-eager", "--max-num-seqs", "16", "--max-model-len", "1024"]
        # Two servers would bind their engines to the same core.
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }
        environment = {**os.environ, **settings, "VLLM_LOGGING_LEVEL": "INFO"}
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        with self.log.open("a") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--port", str(self.port), *self._options, *others],
                stdout=out,
                stderr=out,
                env=environment,
            )

    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def wait(self) -> None:
        """Until it serves."""

        def ready() -> bool:
            assert self.process.poll() is None, self.told()
            return self.healthy()

        until(ready, PATIENCE, self.told)

    def told(self) -> str:
        """The end of what it has written."""
        return self.log.read_text()[-4000:]

    def below(self) -> list[psutil.Process]:
        """All processes that it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine(self) -> psutil.Process:
        """The process that runs the model."""
        (found,) = (process for process in self.below() if "EngineCore" in process.name())
        return found

    def end(self) -> None:
        """End it, and all that it has started."""
        left = self.below() if self.process.poll() is None else []
        self.process.terminate()
        try:
            self.process.wait(SOON)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in left:
            if process.is_running():
                process.kill()
