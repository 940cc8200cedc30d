"""Arrivals, routers, policies, samples of a fleet, capacity."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from budgetctl.errors import BudgetctlError, InputFileError
from budgetctl.simulate.arrivals import arrival_times, round_robin_indices
from budgetctl.simulate.capacity import find_capacity
from budgetctl.simulate.fleet import Fleet
from budgetctl.simulate.lengths import Lengths, draw_log_gamma, fit_log_gamma, read_lengths, synthetic
from budgetctl.simulate.policies import Policy
from budgetctl.simulate.step_time import ReplicaShape, StepTime

NONE = Policy.parse("none")


def fleet(**changes: object) -> Fleet:
    known = Fleet(
        synthetic(12, 3, 16, 8, 500, 0), StepTime(0.01, 0.0005), ReplicaShape(4000, 16, 32), requests=400
    )
    return replace(known, **changes)  # type: ignore[arg-type]


def test_arrivals_of_a_sample_are_those_of_the_whole() -> None:
    """Mean and variance of the gap between two requests of one replica out of 50: Erlang of 50 stages."""
    indices = round_robin_indices(20_000, 50, 1)
    assert indices[:3].tolist() == [0, 50, 100]
    gaps = np.diff(arrival_times(indices, 100.0, "poisson", np.random.default_rng(0)))
    assert gaps.mean() == pytest.approx(0.5, rel=0.01)
    assert gaps.std() == pytest.approx(math.sqrt(50) / 100, rel=0.03)
    assert round_robin_indices(5, 50, 2).tolist() == [0, 1, 50, 51, 100]


def test_bursts_come_at_once() -> None:
    times = arrival_times(np.arange(4000), 8.0, "burst", np.random.default_rng(0), burst=4)
    assert (times.reshape(-1, 4) == times[::4, None]).all()
    assert len(np.unique(times)) == 1000
    assert times[-1] == pytest.approx(500, rel=0.1)
    assert arrival_times(np.arange(3), 2.0, "even", np.random.default_rng(0)).tolist() == [0.0, 0.5, 1.0]


def test_the_same_seed_gives_the_same_outcome_and_another_one_another() -> None:
    first, again = (fleet().run(NONE, 5.0) for _ in range(2))
    assert first == again
    assert fleet(seed=1).run(NONE, 5.0) != first


def test_replicas_multiply_the_throughput_of_full_batches() -> None:
    one, many = fleet(), fleet(replicas=1000)
    assert many.saturation(NONE) == pytest.approx(1000 * one.saturation(NONE))
    outcome = many.run(NONE, 300 * one.saturation(NONE))
    assert outcome.served == pytest.approx(outcome.rate, rel=0.15)
    assert not outcome.saturated


def test_the_least_loaded_replica_gets_the_request() -> None:
    """Bursts of two on two replicas that take one row each: one request a replica, so that none waits."""
    alone = fleet(
        lengths=Lengths(np.array([1]), np.array([0]), np.array([5])),
        shape=ReplicaShape(8, 16, 1),
        replicas=2,
        arrivals="burst",
        burst=2,
        router="least-loaded",
    )
    outcome = alone.run(NONE, 0.5)
    assert outcome.queue < 0.01
    assert outcome.latency_p50 == pytest.approx(5 * 0.0105)


def test_more_arrivals_make_longer_queues_and_saturate() -> None:
    most = fleet().saturation(NONE)
    low, high = (fleet().run(NONE, share * most) for share in (0.3, 3.0))
    assert low.latency_p99 < high.latency_p99
    assert low.queue < high.queue
    assert not low.saturated
    assert high.saturated
    assert high.served < 1.3 * most


def test_capacity_holds_the_limit_and_nearly_reaches_it() -> None:
    limit = 1.5 * fleet().run(NONE, 0.01).latency_p99
    found = find_capacity(fleet(), NONE, limit, tolerance=0.05)
    assert found.outcome is not None
    assert found.outcome.latency_p99 <= limit
    above = fleet().run(NONE, found.rate * 1.06)
    assert above.latency_p99 > limit or above.saturated
    capped = find_capacity(fleet(), Policy.parse("hard-cut:20"), limit, tolerance=0.05)
    assert capped.rate > found.rate
    assert find_capacity(fleet(), NONE, 1e-3).rate == 0.0


def test_policies_are_read_and_refused() -> None:
    both = Policy.parse("budgetctl:512+kv:1024")
    assert (both.method, both.thinking_budget, both.slots) == ("budgetctl", 512, 1024)
    for wrong in (
        "",
        "half",
        "kv",
        "kv:0",
        "none:1",
        "hard-cut:1+budgetctl:2",
        "none+kv:3",
        "kv:-1",
        "kv:1+kv:2",
    ):
        with pytest.raises(BudgetctlError, match="policy"):
            Policy.parse(wrong)


def test_recorded_lengths_are_taken_before_capped_ones() -> None:
    recorded = (np.array([3, 4]), np.array([5, 6]))
    lengths = Lengths(np.array([1, 1]), np.array([9, 2]), np.array([7, 8]), {("budgetctl", 6): recorded})
    taken, capped = Policy.parse("budgetctl:6"), Policy.parse("budgetctl:5")
    assert taken.apply(lengths) == recorded
    assert taken.recorded(lengths)
    assert not capped.recorded(lengths)
    assert [part.tolist() for part in capped.apply(lengths)] == [[5, 2], [7, 8]]


def test_a_fit_finds_the_distribution_again() -> None:
    drawn = draw_log_gamma(60.0, 8.0, 20_000, np.random.default_rng(0))
    concentration, rate = fit_log_gamma(drawn)
    assert concentration == pytest.approx(60, rel=0.05)
    assert concentration / rate == pytest.approx(7.5, rel=0.01)
    with pytest.raises(BudgetctlError, match="one length"):
        fit_log_gamma(np.array([5, 5, 5]))


def record(method: str, budget: int | None, item: str, thinking: int) -> str:
    row = {"task": "t", "item": item, "seed": 0, "method": method, "budget": budget}
    return json.dumps({**row, "thinking_tokens": thinking, "answer_tokens": 2})


def test_records_are_paired_by_question(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    rows = [
        record("budgetctl", 8, "b", 7),
        record("full", None, "a", 10),
        record("full", None, "b", 20),
        record("budgetctl", 8, "a", 6),
        record("budgetctl", 4, "a", 3),
    ]
    path.write_text("\n".join(rows) + "\n")
    lengths = read_lengths(path, 30)
    assert lengths.thinking.tolist() == [10, 20]
    assert lengths.prompt.tolist() == [30, 30]
    assert list(lengths.limited) == [("budgetctl", 8)]
    assert lengths.limited["budgetctl", 8][0].tolist() == [6, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no JSON object"),
        ("[1]\n", "line 1: no JSON object"),
        (record("full", None, "a", 1) + "\n{}\n", "line 2: not a record"),
        (record("full", None, "a", -1) + "\n", "are no counts"),
        (record("budgetctl", 8, "a", 1) + "\n", "no records of method full"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(text)
    with pytest.raises(InputFileError, match=message):
        read_lengths(path)


def test_settings_that_make_no_sense_are_refused() -> None:
    for changes in ({"replicas": 0}, {"router": "random"}, {"warm_up": 1.0}, {"requests": 0}):
        with pytest.raises(BudgetctlError, match=next(iter(changes))):
            fleet(**changes)
    with pytest.raises(BudgetctlError, match="rate of 0"):
        fleet().run(NONE, 0)
    with pytest.raises(BudgetctlError, match="arrivals"):
        fleet(arrivals="daily").run(NONE, 1)
    for values in ({"base": -1}, {"row": 1}, {"base": 0}, {"base": 1, "speed": 2}, {"base": "1"}):
        with pytest.raises(BudgetctlError, match="expected"):
            StepTime.from_dict(values)
    with pytest.raises(BudgetctlError, match="a token a"):
        ReplicaShape(10, 16, 32, 16)


def test_the_roofline_counts_bytes_and_operations() -> None:
    step = StepTime.roofline(
        parameters=1e9, kv_bytes=1e5, bandwidth=1e12, flops=1e14, efficiency=0.5, overhead=0.001
    )
    assert step.base == pytest.approx(0.001 + 2e9 / 5e11)
    assert step.kv_token == pytest.approx(2e-7)
    assert step.row == step.prefill_token == pytest.approx(4e-5)


@pytest.mark.parametrize(
    ("policy", "controlled"),
    [("none", 0), ("kv:24", 0), ("hard-cut:20", 0), ("budgetctl:20", 1), ("budgetctl:20+kv:24", 1)],
)
def test_only_budgetctls_policies_take_the_time_of_its_steps(policy: str, controlled: int) -> None:
    plain, slow = StepTime(0.01, 0.0005), StepTime(0.015, 0.001)
    asked = Policy.parse(policy)
    both = fleet(step=plain, controlled=slow)
    alone = fleet(step=slow if controlled else plain)
    assert both.run(asked, 20.0) == alone.run(asked, 20.0)
    assert both.saturation(asked) == alone.saturation(asked)
    assert fleet(step=plain).saturation(asked) > fleet(step=slow).saturation(asked)
