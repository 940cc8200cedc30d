"""Decode steps as a CUDA graph: several in one, as many as a BudgetCache takes from one choice of victims to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from budgetctl.evals.kv_subjects import STATIC, Setting, Subject
from budgetctl.kv import BudgetCache

Run = Callable[[], object]


def capture(run: Run) -> Run:
    """``run`` captured once, and replayed at each call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class Graphed:
    """Steps that are replayed ``length`` at a time: every so many calls does all of their work.

    Args:
        step: with a ``ready`` that makes a context.
        length: of the graph, in steps; only a multiple of it is worth timing.
        capture: makes a graph of a function.
    """

    def __init__(self, step: Any, length: int, capture: Callable[[Run], Run] = capture) -> None:
        self.length, self._calls = length, 0

        def run() -> None:
            for _ in range(length):
                step()

        with step.ready():
            self._replay = capture(run)

    @classmethod
    def of(cls, step: Any, subject: Subject, setting: Setting) -> Graphed | None:
        """Of a subject whose steps are all alike: a StaticCache, or a BudgetCache with full slots; None for others."""
        if subject.name == STATIC:
            return cls(step, 1)
        cache = subject.cache
        if not isinstance(cache, BudgetCache) or cache.get_seq_length() < setting.slots:
            return None
        filled = [layer for layer in cache.layers if layer.is_initialized]
        with step.ready():
            while any(layer.queued for layer in filled):
                step()
        # A call is one layer's, a step is all layers'.
        return cls(step, filled[0].interval * getattr(step, "layers", 1))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Nothing is needed."""
        yield

    def __call__(self) -> None:
        """One step."""
        self._calls += 1
        if self._calls % self.length == 0:
            self._replay()
