"""How fast this process is now, by a fixed piece of work: on a shared machine its processor time is no constant."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

import torch


class Pace:
    """Processor time of a fixed piece of work now, as a share of what it took at the beginning.

    The processor time of a step depends on what runs beside it, on the same core and in the same caches. Divided by this,
    it does so much less. The work is of the kind that a step of a small model is: small products, and Python.

    Args:
        window: pieces of work whose median counts.
        clock: in seconds.
    """

    def __init__(self, window: int = 9, clock: Callable[[], float] = time.process_time) -> None:
        generator = torch.Generator().manual_seed(0)
        self._rows = torch.randn(16, 256, generator=generator)
        self._map = torch.randn(256, 256, generator=generator) / 16
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=window)
        self._begin = median(self._work() for _ in range(5 * window))
        #: All that was told, in order.
        self.told: list[float] = []

    def __call__(self) -> float:
        """1 at the beginning's speed, 2 where everything takes twice as long. One piece of work more is done."""
        self._recent.append(self._work())
        self.told.append(median(self._recent) / self._begin)
        return self.told[-1]

    @torch.no_grad()
    def _work(self) -> float:
        begun = self._clock()
        rows = self._rows
        for _ in range(8):
            rows = torch.tanh(rows @ self._map)
            sorted({number: -number for number in range(60)}.values())
        return self._clock() - begun
