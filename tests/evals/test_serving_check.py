"""The fit and the comparison, on times that the simulator itself has made; no engine is run."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from budgetctl.evals.serving_check import (
    SHAPE,
    WAVES,
    Served,
    compare,
    fit_step_time,
    serve,
    simulate,
    table,
)
from budgetctl.simulate.step_time import StepTime

STEP = StepTime(0.01, 0.001, 1e-6, 0.0, 1e-4)


def timed(jobs: list[tuple[float, int, int]]) -> list[Served]:
    """Jobs (arrival, prompt, written) as the simulator serves them."""
    finish = simulate([Served(arrival, 0.0, prompt, written) for arrival, prompt, written in jobs], STEP)
    return [Served(arrival, float(end), *sizes) for (arrival, *sizes), end in zip(jobs, finish, strict=True)]


def test_the_fit_finds_the_time_that_made_the_waves() -> None:
    waves = [timed([(0.0, 30 + row, tokens) for row in range(rows)]) for rows, tokens in WAVES]
    found = fit_step_time(waves)
    assert found.base == pytest.approx(STEP.base, rel=0.03)
    assert found.row == pytest.approx(STEP.row, rel=0.03)
    assert found.prefill_token == pytest.approx(STEP.prefill_token, rel=0.1)


def test_a_comparison_with_itself_has_no_error() -> None:
    arrivals = np.cumsum(np.random.default_rng(0).exponential(0.05, size=60))
    served = timed([(float(time), 20, 10 + number % 30) for number, time in enumerate(arrivals)])
    found = compare(served, STEP)
    assert found["ratio_mean"] == found["ratio_p99"] == found["ratio_throughput"] == 1
    slower = compare(served, StepTime(0.02, 0.001))
    assert slower["ratio_mean"] > 1.5
    assert "(+0%)" in table([{"thinking_budget": None, "rate": 20.0, **found}])


def test_requests_are_sent_in_time_and_collected() -> None:
    class Manager:
        """Finishes each request at once."""

        def __init__(self) -> None:
            self.results: queue.Queue[Any] = queue.Queue()

        def add_request(self, prompt: list[int], request_id: str, max_new_tokens: int) -> None:
            done = SimpleNamespace(
                request_id=request_id, generated_tokens=[0] * max_new_tokens, is_finished=lambda: True
            )
            self.results.put(done)

        def get_result(self, timeout: float) -> Any:
            return self.results.get(timeout=timeout)

        def is_running(self) -> bool:
            return True

    served = serve(Manager(), [[1, 2], [3]], [0.0, 0.02], 4)
    assert [(one.prompt, one.written) for one in served] == [(2, 4), (1, 4)]
    assert served[1].arrival >= 0.02
    assert all(one.finish >= one.arrival for one in served)
    assert SHAPE.max_batch_tokens >= SHAPE.max_rows
