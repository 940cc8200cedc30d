"""Drives an engine step by step, with requests that arrive by the time its steps take; fits that time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from budgetctl.evals.stepped_engines import SteppedEngine
from budgetctl.simulate.step_time import StepTime

#: Calibration: requests that arrive at random, so many steps apart in the mean, so that batches of all sizes are seen.
GAPS, REQUESTS = (1, 2, 4, 8), 24


@dataclass(frozen=True)
class Served:
    """One request of the real engine; ``arrival`` and ``finish`` in seconds, lengths in tokens."""

    arrival: float
    finish: float
    prompt: int
    written: int


@dataclass(frozen=True)
class Step:
    """One step of the real engine: rows, KV tokens that they read, prompts and prompt tokens among them, and seconds."""

    rows: int
    kv_tokens: int
    prompts: int
    prompt_tokens: int
    seconds: float


def drive(
    engine: SteppedEngine,
    prompts: Sequence[Sequence[int]],
    arrivals: Sequence[float],
    tokens: int,
    thinking_budget: int | None = None,
    clock: Callable[[], float] = time.process_time,
    pace: Callable[[], float] = lambda: 1.0,
) -> tuple[list[Served], list[Step]]:
    """Serve the prompts of an idle engine; what is between two steps takes no time but for adding requests.

    Args:
        engine: that is driven.
        prompts: token ids.
        arrivals: of each, seconds of the clock since the start, not decreasing.
        tokens: that each writes at most.
        thinking_budget: of each; None for none.
        clock: in seconds.
        pace: what a step's time is divided by, asked after each.

    Returns:
        The requests in order, and the steps.
    """
    now, sent = 0.0, 0
    before: dict[int, int] = {}
    served: dict[int, Served] = {}
    steps = []
    while len(served) < len(prompts):
        if not before:
            now = max(now, arrivals[sent])
        begun = clock()
        while sent < len(prompts) and arrivals[sent] <= now:
            engine.add(sent, prompts[sent], tokens, thinking_budget)
            before[sent] = 0
            sent += 1
        finished = engine.step()
        seconds = (clock() - begun) / pace()
        now += seconds
        after = {**engine.written(), **finished}
        wrote = [one for one, count in after.items() if count > before[one]]
        read = [one for one in wrote if not before[one]]
        steps.append(
            Step(
                rows=len(wrote),
                kv_tokens=sum(len(prompts[one]) + before[one] for one in wrote),
                prompts=len(read),
                prompt_tokens=sum(len(prompts[one]) for one in read),
                seconds=seconds,
            )
        )
        for one, count in finished.items():
            served[one] = Served(arrivals[one], now, len(prompts[one]), count)
        before = {one: count for one, count in after.items() if one not in finished}
    return [served[one] for one in range(len(prompts))], steps


def calibrate(
    engine: SteppedEngine,
    prompts: Sequence[Sequence[int]],
    usual: float,
    tokens: int,
    thinking_budget: int | None,
    noise: np.random.Generator,
    **clocks: Callable[[], float],
) -> list[Step]:
    """The steps of requests that arrive at random, at each of several rates.

    Requests that come at once would be cheaper: their rows begin, close and end their thoughts in the same steps, and a
    controller that works for thoughts has nothing to do in the others.

    Args:
        engine: that is driven.
        prompts: token ids, of which each rate draws some.
        usual: seconds of a step, which gaps are counted in.
        tokens: that each request writes at most.
        thinking_budget: of each; None for none.
        noise: of prompts and arrivals.
        clocks: as of :func:`drive`.
    """
    steps: list[Step] = []
    for gap in GAPS:
        drawn = [prompts[one] for one in noise.choice(len(prompts), REQUESTS, replace=False)]
        arrivals = np.cumsum(noise.exponential(gap * usual, size=REQUESTS)).tolist()
        steps += drive(engine, drawn, arrivals, tokens, thinking_budget, **clocks)[1]
    return steps


def fit_step_time(steps: Sequence[Step]) -> StepTime:
    """Non-negative least squares: a step, its rows, KV tokens read, whether prompts are read in it, and their tokens."""
    from scipy.optimize import nnls

    values = np.array([astuple(step) for step in steps], dtype=float)
    rows, kv, prompts, prompt_tokens, seconds = values.T
    columns = [np.ones(len(values)), rows, kv, prompts > 0, prompt_tokens]
    found, _ = nnls(np.column_stack(columns).astype(float), seconds)
    return StepTime(*found.tolist())
