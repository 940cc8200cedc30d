"""Against queues whose waiting times are known; seeds are fixed, tolerances some three standard errors."""

from __future__ import annotations

import numpy as np
import pytest

from budgetctl.simulate.replica import Replica
from budgetctl.simulate.step_time import ReplicaShape, StepTime
from budgetctl.simulate.workload import Progress, Workload

COUNT = 8_000


def serve(written: np.ndarray, rate: float, rows: int, step: float) -> tuple[Workload, Progress, Replica]:
    """Poisson arrivals, prompts of one token."""
    arrival = np.cumsum(np.random.default_rng(1).exponential(1 / rate, size=len(written)))
    ones = np.ones(len(written), np.int64)
    workload = Workload(arrival, ones, written - 1, ones)
    shape = ReplicaShape(1 << 24, 16, rows, max(rows, 8))
    replica = Replica(shape, StepTime(step), workload)
    for request, time in enumerate(arrival.tolist()):
        replica.advance(time)
        replica.submit(request, time)
    replica.advance()
    return workload, replica.progress, replica


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_m_d_1(load: float) -> None:
    """One row, one step a request: the mean wait is load · D / (2 (1 - load))."""
    _, progress, replica = serve(np.ones(COUNT, np.int64), load, 1, 1.0)
    assert progress.waited.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.12)
    assert replica.busy / replica.clock == pytest.approx(load, rel=0.05)


def test_m_m_1() -> None:
    """Many short steps, a geometric number of them, are nearly an exponential service: the mean time in the system is
    1 / (1 - load) services. For the geometric number, Pollaczek and Khinchine's mean wait holds exactly."""
    load, steps = 0.5, 200
    written = np.random.default_rng(2).geometric(1 / steps, size=COUNT)
    workload, progress, _ = serve(written, load, 1, 1 / steps)
    service = written / steps
    before, waits = 0.0, []
    for gap, last in zip(np.diff(workload.arrival), service, strict=False):
        waits.append(before)
        before = max(0.0, before + last - gap)  # Lindley's recursion, of this very sample
    assert progress.waited.tolist() == pytest.approx([*waits, before], abs=1e-6)
    wait = load * (2 - 1 / steps) / (2 * (1 - load))
    assert progress.waited.mean() == pytest.approx(wait, rel=0.15)
    spent = progress.finish - workload.arrival
    assert spent.mean() == pytest.approx(1 / (1 - load), rel=0.15)
    assert spent.mean() == pytest.approx(progress.waited.mean() + service.mean(), rel=1e-9)


def test_m_g_infinity_and_little() -> None:
    """Rows for all: each takes its own time and at most the rest of a step before, and as many are there as rate times
    mean time."""
    rate, step = 20.0, 2.0**-8
    written = np.random.default_rng(3).integers(1, 512, size=COUNT)
    workload, progress, replica = serve(written, rate, 4096, step)
    spent = progress.finish - workload.arrival
    extra = spent - written * step
    assert (extra > -1e-9).all()
    assert (extra < step + 1e-9).all()
    rows = replica.row_seconds / workload.arrival[-1]
    assert rows == pytest.approx(rate * written.mean() * step, rel=0.05)


def test_little_in_a_busy_queue() -> None:
    """The area under the number of rows is the sum of the times in service, whatever the order."""
    written = np.random.default_rng(4).integers(1, 60, size=2000)
    workload, progress, replica = serve(written, 1.2, 8, 0.25)
    in_service = (progress.finish - workload.arrival - progress.waited).sum()
    assert replica.row_seconds == pytest.approx(in_service, rel=1e-9)
