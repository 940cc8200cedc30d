"""Driving, fit and comparison on an engine whose steps take a known time; no model is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import typer

from budgetctl.evals import serving_check
from budgetctl.evals.pace import Pace
from budgetctl.evals.serving_check import MOST, SHAPE, check, compare, simulate, table, together
from budgetctl.evals.serving_drive import GAPS, REQUESTS, Served, Step, calibrate, drive, fit_step_time
from budgetctl.simulate.step_time import StepTime

STEP = StepTime(0.01, 0.001, 1e-6, 2e-3, 1e-4)
SLOW = StepTime(0.03, 0.003, 3e-6, 6e-3, 3e-4)
PROMPTS = [[0] * (20 + number % 9) for number in range(40)]


class TimedEngine:
    """First come, first served, whole prompts; the clock moves by the step's time alone.

    Args:
        step: its time.
        lengths: tokens that a request writes, by number, within its limit.
        place: seconds of a step for each number of tokens that some of its rows have written, in which it differs from
            the simulator.
    """

    def __init__(self, step: StepTime, lengths: Sequence[int], place: float = 0.0) -> None:
        self.step_time, self.lengths, self.place = step, lengths, place
        self.now = 0.0
        self.asked: list[int | None] = []
        self._waiting: list[int] = []
        self._running: dict[int, int] = {}
        self._prompt: dict[int, int] = {}
        self._most: dict[int, int] = {}

    def clock(self) -> float:
        return self.now

    def add(self, number: int, prompt: Sequence[int], most: int, thinking_budget: int | None) -> None:
        self._waiting.append(number)
        self._prompt[number] = len(prompt)
        self._most[number] = min(most, self.lengths[number % len(self.lengths)])
        self.asked.append(thinking_budget)

    def step(self) -> dict[int, int]:
        read = []
        while self._waiting and len(self._running) < SHAPE.max_rows:
            read.append(self._waiting.pop(0))
            self._running[read[-1]] = 0
        held = sum(self._prompt[one] + count for one, count in self._running.items())
        step = self.step_time
        self.now += step.base + step.row * len(self._running) + step.kv_token * held
        self.now += self.place * len(set(self._running.values()))
        if read:
            self.now += step.prefill_base + step.prefill_token * sum(self._prompt[one] for one in read)
        self._running = {one: count + 1 for one, count in self._running.items()}
        done = {one: count for one, count in self._running.items() if count == self._most[one]}
        self._running = {one: count for one, count in self._running.items() if one not in done}
        return done

    def written(self) -> Mapping[int, int]:
        return self._running | dict.fromkeys(self._waiting, 0)


def engine(step: StepTime = STEP, place: float = 0.0) -> TimedEngine:
    return TimedEngine(step, np.random.default_rng(1).integers(1, 60, size=37).tolist(), place)


def calibrated(runs: TimedEngine) -> list[Step]:
    noise = np.random.default_rng(7)
    return calibrate(runs, PROMPTS, 0.03, MOST, None, noise, clock=runs.clock)


def arrivals(count: int, gap: float) -> list[float]:
    return [float(time) for time in np.cumsum(np.random.default_rng(0).exponential(gap, size=count))]


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> TimedEngine:
    """An engine whose clock is what ``drive`` takes by default."""
    found = engine()
    monkeypatch.setattr(drive, "__defaults__", (None, found.clock, lambda: 1.0))
    return found


@pytest.mark.parametrize("gap", [0.5, 0.03, 0.0])
def test_the_simulator_finishes_each_request_when_the_engine_does(gap: float) -> None:
    """On an idle engine, a busy one, and one to which all come at once."""
    runs = engine()
    served, steps = drive(runs, PROMPTS, arrivals(40, gap), 48, 7, runs.clock)
    assert runs.asked == [7] * 40
    assert [one.prompt for one in served] == [len(prompt) for prompt in PROMPTS]
    assert max(step.rows for step in steps) == (16 if gap < 0.5 else max(step.rows for step in steps))
    assert sum(step.prompts for step in steps) == 40
    assert sum(step.rows for step in steps) == sum(one.written for one in served)
    np.testing.assert_allclose(simulate(served, STEP), [one.finish for one in served])
    found = compare([served, served], [STEP, STEP])
    assert found["ratio_mean"] == pytest.approx(1)
    assert found["ratio_p99"] == pytest.approx(1)
    assert found["ratio_throughput"] == pytest.approx(1)


def test_calibrations_bring_batches_of_all_sizes() -> None:
    """Also steps in which several prompts are read, as those of the runs."""
    steps = calibrated(engine())
    assert sum(step.prompts for step in steps) == len(GAPS) * REQUESTS
    assert {step.rows for step in steps} >= set(range(1, SHAPE.max_rows + 1))
    assert {0, 1, 2, 3} <= {step.prompts for step in steps}


def test_the_fit_finds_the_time_of_the_steps() -> None:
    found = fit_step_time(calibrated(engine()))
    for name in ("base", "row", "kv_token", "prefill_base", "prefill_token"):
        assert getattr(found, name) == pytest.approx(getattr(STEP, name), rel=1e-6), name


def test_what_rows_cost_at_different_places_is_in_the_fit() -> None:
    """Rows that all came at once do not show it: a fit to them makes a busy engine look too fast."""
    runs = engine(place=6e-4)
    served, _ = drive(runs, PROMPTS, arrivals(40, 0.03), MOST, None, runs.clock)
    at_once: list[Step] = []
    for rows in (1, 2, 4, 8, 16):
        at_once += drive(runs, PROMPTS[:rows], [0.0] * rows, MOST, None, runs.clock)[1]
    traffic = fit_step_time(calibrated(runs))
    assert compare([served], [fit_step_time(at_once)])["ratio_mean"] < 0.85
    assert compare([served], [traffic])["ratio_mean"] == pytest.approx(1, abs=0.05)
    assert together(at_once, traffic) < 0.9


def test_steps_over_those_of_the_fit_are_a_ratio_of_sums() -> None:
    steps = [Step(2, 50, 0, 0, 0.03), Step(4, 100, 1, 20, 9.0), Step(5, 10, 0, 0, 0.01)]
    told = (0.01 + 2 * 0.001 + 50 * 1e-6) + (0.01 + 5 * 0.001 + 10 * 1e-6)
    assert together(steps, STEP) == pytest.approx(0.04 / told)


def test_a_check_of_an_engine_that_is_as_the_simulator_has_no_error(clocked: TimedEngine) -> None:
    done: list[int] = []
    step, at_once, rows = check(clocked, PROMPTS, 16, [0.3, 0.9], 2, 0, lambda: done.append(1))
    assert step.base == pytest.approx(STEP.base)
    assert at_once == pytest.approx(1)
    assert len(done) == 5
    assert [row["load"] for row in rows] == [0.3, 0.9]
    for row in rows:
        assert row["ratio_mean"] == pytest.approx(1)
        assert row["single"] == pytest.approx([1, 1])
        assert row["own"]["ratio_p99"] == pytest.approx(1)
        assert row["measured_p99"] >= row["measured_p50"] > 0
    assert rows[1]["measured_mean"] > rows[0]["measured_mean"]
    assert "(+0%)" in table(rows)
    assert table(rows).count("| 16 |") == 2


def test_a_wrong_step_time_shows(clocked: TimedEngine) -> None:
    """Without what a step costs that reads a prompt, a loaded engine looks too fast."""
    served, _ = drive(clocked, PROMPTS, arrivals(40, 0.05), 48, None, clocked.clock)
    found = compare([served], [StepTime(STEP.base, STEP.row, STEP.kv_token, 0.0, STEP.prefill_token)])
    assert found["ratio_mean"] < 0.97


def test_requests_are_compared_in_the_order_of_their_arrival() -> None:
    runs = engine()
    served, _ = drive(runs, PROMPTS, arrivals(40, 0.05), 48, None, runs.clock)
    shuffled: list[Served] = [served[at] for at in np.random.default_rng(3).permutation(40)]
    assert compare([shuffled], [STEP]) == compare([served], [STEP])


def test_a_slow_run_is_told_from_a_wrong_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is slower in the run than in the calibrations; by the run's own steps there is no difference."""

    class Slowing(TimedEngine):
        begun = 0

        def add(self, number: int, prompt: Sequence[int], most: int, thinking_budget: int | None) -> None:
            self.begun += number == 0
            # all at once, a calibration of each gap, rows that come together, and then the run
            self.step_time = SLOW if self.begun == 1 + len(GAPS) + 2 else STEP
            super().add(number, prompt, most, thinking_budget)

    runs = Slowing(STEP, [20])
    _, _, (row,) = check(runs, PROMPTS, None, [0.2], 1, 0, clock=runs.clock)
    assert runs.begun == 1 + 2 * (len(GAPS) + 1) + 1
    assert row["ratio_mean"] < 0.5
    assert row["single"] == [row["ratio_mean"]]
    assert row["own"]["ratio_mean"] == pytest.approx(1)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="expected transformers or vllm"):
        serving_check.main(engine="sglang", requests=40)


def test_a_slow_minute_is_divided_out() -> None:
    """The machine is three times as slow from some step on, and the pace says so."""
    runs = engine()
    steps_done: list[int] = []

    def pace() -> float:
        steps_done.append(1)
        slow = 3.0 if len(steps_done) >= 50 else 1.0
        runs.step_time = SLOW if len(steps_done) >= 49 else STEP
        return slow

    served, _ = drive(runs, PROMPTS, arrivals(40, 0.05), 48, None, runs.clock, pace)
    assert len(steps_done) > 60
    np.testing.assert_allclose(simulate(served, STEP), [one.finish for one in served])


def test_the_pace_is_that_of_the_latest_pieces_of_work() -> None:
    ticks = iter(np.cumsum([0, *[0, 1] * 15, *[0, 2] * 3, *[0, 4] * 3]).tolist()[1:])
    pace = Pace(window=3, clock=lambda: next(ticks))
    assert [pace() for _ in range(6)] == [2, 2, 2, 2, 4, 4]
    assert pace.told == [2, 2, 2, 2, 4, 4]
