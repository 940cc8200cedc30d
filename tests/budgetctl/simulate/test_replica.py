"""One replica against a schedule worked out by hand, against brute force, and against what always has to hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.errors import BudgetctlError
from budgetctl.simulate.replica import Replica
from budgetctl.simulate.step_time import ReplicaShape, StepTime
from budgetctl.simulate.workload import Progress, Workload
from tests.budgetctl.simulate import brute_force

#: Multiples of a power of two, so that sums do not depend on their order.
TICK = 2.0**-10


def served(workload: Workload, shape: ReplicaShape, step: StepTime) -> tuple[Replica, Progress]:
    replica = Replica(shape, step, workload)
    for request, time in enumerate(workload.arrival.tolist()):
        replica.advance(time)
        replica.submit(request, time)
    replica.advance()
    return replica, replica.progress


def workload_of(rows: list[tuple[float, int, int, int]], slots: int | None = None) -> Workload:
    arrival, prompt, thinking, answer = (np.array(column) for column in zip(*rows, strict=True))
    return Workload(arrival.astype(float), prompt, thinking, answer, slots)


@st.composite
def instances(draw: st.DrawFn) -> tuple[Workload, ReplicaShape, StepTime]:
    count = draw(st.integers(1, 9))
    gaps = draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))
    arrival = np.cumsum(gaps) * TICK
    sizes = [
        draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
        for low, high in ((1, 9), (0, 9), (1, 9))
    ]
    slots = draw(st.one_of(st.none(), st.integers(1, 20)))
    workload = Workload(arrival, *(np.array(size) for size in sizes), slots)
    block = draw(st.integers(1, 5))
    longest = int((workload.prompt + workload.written).max())
    needed = -(-min(longest, slots or longest) // block)
    rows = draw(st.integers(1, 6))
    shape = ReplicaShape(needed + draw(st.integers(0, 8)), block, rows, rows + draw(st.integers(0, 12)))
    times = [draw(st.integers(low, 6)) * TICK for low in (1, 0, 0, 0, 0)]
    return workload, shape, StepTime(*times)


@settings(max_examples=300, deadline=None)
@given(instances())
def test_equals_brute_force(instance: tuple[Workload, ReplicaShape, StepTime]) -> None:
    workload, shape, step = instance
    replica, progress = served(workload, shape, step)
    columns = (workload.arrival, workload.prompt, workload.thinking, workload.answer)
    jobs = [brute_force.Job(float(a), int(p), int(t), int(w)) for a, p, t, w in zip(*columns, strict=True)]
    trace = brute_force.run(jobs, shape, step, workload.slots)
    assert progress.finish.tolist() == [job.finish for job in jobs]
    assert progress.first_answer.tolist() == [job.first_answer for job in jobs]
    assert progress.preemptions.tolist() == [job.sent_back for job in jobs]
    assert shape.blocks - replica.least_free == max(trace.held)
    assert replica.steps == len(trace.held)


@settings(max_examples=100, deadline=None)
@given(instances(), st.lists(st.integers(0, 400), max_size=6))
def test_every_request_finishes_once_and_no_block_is_given_twice(
    instance: tuple[Workload, ReplicaShape, StepTime], looks: list[int]
) -> None:
    workload, shape, step = instance
    replica = Replica(shape, step, workload)
    progress = replica.progress
    times = sorted({*workload.arrival.tolist(), *(look * TICK for look in looks)})
    coming = list(enumerate(workload.arrival.tolist()))
    for time in times:
        replica.advance(time)
        assert replica.free >= 0
        assert replica.free + progress.blocks.sum() == shape.blocks
        while coming and coming[0][1] <= time:
            replica.submit(*coming.pop(0))
    replica.advance()
    assert replica.load == 0
    assert replica.free == shape.blocks
    assert (progress.generated == workload.written).all()
    assert (progress.finish > workload.arrival).all()
    assert (progress.first_answer <= progress.finish).all()
    assert (progress.waited <= progress.finish - workload.arrival + 1e-9).all()


def test_a_schedule_by_hand_with_a_row_sent_back() -> None:
    """Two requests, prompts of 2, 4 tokens each to write, blocks of 2 tokens, a pool of 4; a step takes one second, a
    token of a prompt a tenth of a second more.

    Step 1 reads both prompts (4 tokens, a block each) and writes a token each: 1.4. In step 2 each row writes its third
    token to the cache, which takes a block each: 4 in use. 2.4. Step 3 fills them: 3.4, three tokens written each. In
    step 4 the first row needs a third block and none is left, so the second is sent back; the first writes its last
    token at 4.4. Step 5 reads 2 + 3 tokens of the second again, and writes its last one: 4.4 + 1 + 0.5 = 5.9.
    """
    workload = workload_of([(0.0, 2, 2, 2), (0.0, 2, 2, 2)])
    replica, progress = served(workload, ReplicaShape(4, 2, 8, 8), StepTime(1.0, prefill_token=0.1))
    assert progress.finish.tolist() == pytest.approx([4.4, 5.9])
    assert progress.first_answer.tolist() == pytest.approx([3.4, 3.4])
    assert progress.preemptions.tolist() == [0, 1]
    assert progress.waited.tolist() == pytest.approx([0.0, 1.0])
    assert replica.least_free == 0


def test_a_prompt_is_read_in_chunks() -> None:
    workload = workload_of([(0.0, 10, 0, 1)])
    replica, progress = served(workload, ReplicaShape(8, 2, 1, 4), StepTime(1.0))
    assert replica.steps == 3
    assert progress.first_token[0] == 3.0


def test_a_kv_budget_bounds_blocks_and_time() -> None:
    """10 + 30 tokens in 12 slots: the reads of a step stop growing there."""
    workload = workload_of([(0.0, 10, 20, 10)], slots=12)
    replica, progress = served(workload, ReplicaShape(3, 4, 1, 64), StepTime(1.0, kv_token=1.0))
    assert replica.least_free == 0
    assert progress.finish[0] == 30 + 10 + 11 + 28 * 12
    assert replica.kv_seconds == 11 * 10 + 12 * 11 + 28 * 13 * 12


def test_a_request_that_never_fits_is_refused() -> None:
    workload = workload_of([(0.0, 10, 20, 10)])
    with pytest.raises(BudgetctlError, match="needs 10 blocks of 4, the pool has 9"):
        Replica(ReplicaShape(9, 4, 1, 64), StepTime(1.0), workload)


@settings(max_examples=100, deadline=None)
@given(instances(), st.integers(0, 9))
def test_shorter_thoughts_finish_no_later_where_one_row_is_served_at_a_time(
    instance: tuple[Workload, ReplicaShape, StepTime], budget: int
) -> None:
    """Lindley's recursion: no request's service grows, so no start and no end is later."""
    workload, shape, step = instance
    alone = ReplicaShape(shape.blocks, shape.block_size, 1, shape.max_batch_tokens)
    capped = Workload(
        workload.arrival,
        workload.prompt,
        np.minimum(workload.thinking, budget),
        workload.answer,
        workload.slots,
    )
    before, after = (served(one, alone, step)[1].finish for one in (workload, capped))
    assert (after <= before + 1e-12).all()
