"""The simulator against a real engine at small scale: ``python -m budgetctl.evals.serving_check``.

The embedded reasoner runs in transformers' continuous batching, or in vLLM (``--engine vllm``), driven step by step. A
step takes the processor time of this process over that of a fixed piece of work beside it, and requests arrive by the
sum of those: what other processes do on the machine counts for little. Calibration runs give the step's time by least squares over their steps; then requests arrive
at random, and the simulator gets the same arrivals with the tokens that were written. Calibration and arrivals take
turns. Writes ``serving_check.json`` to ``--out``; its step times
are what ``budgetctl simulate --step-time`` takes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from budgetctl.evals.load import load_model
from budgetctl.evals.output import progress_bar, write_text
from budgetctl.evals.pace import Pace
from budgetctl.evals.stepped_engines import SteppedEngine, TransformersSteps, VLLMSteps
from budgetctl.reasoner.tasks import take_questions
from budgetctl.simulate.replica import Replica
from budgetctl.simulate.step_time import ReplicaShape, StepTime
from budgetctl.simulate.workload import Workload

#: Calibration: requests that come at once, as (rows, tokens that each writes at most).
WAVES = tuple((rows, tokens) for rows in (1, 4, 8, 16) for tokens in (1, 24, 48))
#: And requests that come one by one, so many steps apart; they show what a step costs in which one prompt is read.
STAIRS, STAIR_REQUESTS, STAIR_TOKENS = (1, 3, 8), 24, 48
SHAPE = ReplicaShape(blocks=256, block_size=32, max_rows=16, max_batch_tokens=1024)
#: Tokens that a request of the comparison writes at most.
MOST = 96


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
    thinking_budget: int | None,
    **clocks: Callable[[], float],
) -> list[Step]:
    """The steps of waves and stairs; ``clocks`` as of :func:`drive`."""
    steps: list[Step] = []
    for rows, tokens in WAVES:
        steps += drive(engine, prompts[:rows], [0.0] * rows, tokens, thinking_budget, **clocks)[1]
    usual = float(np.median([step.seconds for step in steps]))
    for apart in STAIRS:
        arrivals = [one * apart * usual for one in range(STAIR_REQUESTS)]
        steps += drive(engine, prompts[:STAIR_REQUESTS], arrivals, STAIR_TOKENS, thinking_budget, **clocks)[1]
    return steps


def fit_step_time(steps: Sequence[Step]) -> StepTime:
    """Non-negative least squares: a step, its rows, KV tokens read, whether prompts are read in it, and their tokens."""
    from scipy.optimize import nnls

    values = np.array([astuple(step) for step in steps], dtype=float)
    rows, kv, prompts, prompt_tokens, seconds = values.T
    columns = [np.ones(len(values)), rows, kv, prompts > 0, prompt_tokens]
    found, _ = nnls(np.column_stack(columns).astype(float), seconds)
    return StepTime(*found.tolist())


def simulate(served: Sequence[Served], step: StepTime, shape: ReplicaShape = SHAPE) -> np.ndarray:
    """[N] seconds at which the simulator finishes the same requests, in order of their arrival."""
    order = sorted(served, key=lambda one: one.arrival)
    written = np.array([one.written for one in order])
    workload = Workload(
        np.array([one.arrival for one in order]),
        np.array([one.prompt for one in order]),
        written - 1,
        np.ones_like(written),
    )
    replica = Replica(shape, step, workload)
    for number, one in enumerate(order):
        replica.advance(one.arrival)
        replica.submit(number, one.arrival)
    replica.advance()
    return replica.progress.finish


def compare(runs: Sequence[Sequence[Served]], step: StepTime) -> dict[str, float]:
    """Measured and simulated throughput (requests per second) and latencies (seconds) over all requests of some runs, and
    the ratio of each."""
    order = [sorted(run, key=lambda one: one.arrival) for run in runs]
    arrival = [np.array([one.arrival for one in run]) for run in order]
    ends = {
        "measured": [np.array([one.finish for one in run]) for run in order],
        "simulated": [simulate(run, step) for run in order],
    }
    found: dict[str, float] = {}
    for name, finish in ends.items():
        latency = np.concatenate([end - begin for end, begin in zip(finish, arrival, strict=True)])
        spans = [float(end.max() - begin[0]) for end, begin in zip(finish, arrival, strict=True)]
        found[f"{name}_throughput"] = len(latency) / sum(spans)
        found[f"{name}_mean"] = float(latency.mean())
        found[f"{name}_p50"] = float(np.percentile(latency, 50))
        found[f"{name}_p99"] = float(np.percentile(latency, 99))
    for value in ("throughput", "mean", "p50", "p99"):
        found[f"ratio_{value}"] = found[f"simulated_{value}"] / found[f"measured_{value}"]
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: simulated beside measured, and their ratio."""
    lines = [
        "| thinking budget | arrive/s | served/s: real, simulated | mean s | p50 s | p99 s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row[f'measured_{name}']:.3g}, {row[f'simulated_{name}']:.3g} ({row[f'ratio_{name}'] - 1:+.0%})"
            for name in ("throughput", "mean", "p50", "p99")
        ]
        budget = "none" if row["thinking_budget"] is None else row["thinking_budget"]
        lines.append(f"| {budget} | {row['rate']:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def check(
    engine: SteppedEngine,
    prompts: Sequence[Sequence[int]],
    thinking_budget: int | None,
    loads: Sequence[float],
    repeats: int,
    seed: int,
    done: Callable[[], None] = lambda: None,
    **clocks: Callable[[], float],
) -> tuple[StepTime, list[dict[str, Any]]]:
    """The fitted step time, and the comparison at each load.

    Args:
        engine: that is driven.
        prompts: of the requests of a run.
        thinking_budget: of each.
        loads: rates of arrival, as shares of what full batches serve.
        repeats: runs at each load, calibrations between them.
        seed: of the arrivals.
        done: called after each run.
        clocks: as of :func:`drive`.
    """
    noise = np.random.default_rng(seed)
    full, _ = drive(engine, prompts, [0.0] * len(prompts), MOST, thinking_budget, **clocks)
    done()
    most = len(full) / max(one.finish for one in full)
    steps: list[Step] = []
    runs: dict[float, list[list[Served]]] = {load: [] for load in loads}
    for _ in range(repeats):
        for load in loads:
            steps += calibrate(engine, prompts, thinking_budget, **clocks)
            arrivals = np.cumsum(noise.exponential(1 / (load * most), size=len(prompts)))
            runs[load].append(drive(engine, prompts, arrivals.tolist(), MOST, thinking_budget, **clocks)[0])
            done()
    steps += calibrate(engine, prompts, thinking_budget, **clocks)
    step = fit_step_time(steps)
    rows = [
        {"thinking_budget": thinking_budget, "rate": load * most, "load": load, **compare(runs[load], step)}
        for load in loads
    ]
    return step, rows


def main(
    engine: Annotated[str, typer.Option(help="transformers or vllm")] = "transformers",
    requests: Annotated[int, typer.Option(help="requests of each run", min=STAIR_REQUESTS)] = 120,
    shares: Annotated[str, typer.Option(help="loads, as shares of what full batches serve")] = "0.4,0.8",
    budget: Annotated[int, typer.Option(help="thinking budget of the second policy", min=1)] = 16,
    repeats: Annotated[int, typer.Option(help="runs at each load", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="of arrivals")] = 0,
    paced: Annotated[bool, typer.Option("--pace/--no-pace", help="divide by a fixed piece of work")] = True,
    out: Annotated[Path, typer.Option(help="folder for the result")] = Path("runs/serving_check"),
) -> None:
    """Fit the step's time and compare, without and with a thinking budget."""
    if engine not in ("transformers", "vllm"):
        raise typer.BadParameter(f"--engine {engine}: expected transformers or vllm")
    loaded = load_model()
    render = loaded.tokenizer.apply_chat_template
    prompts = [
        list(render([{"role": "user", "content": q.prompt}], add_generation_prompt=True).input_ids)
        for q in take_questions("test", requests)
    ]
    runs: SteppedEngine = VLLMSteps(SHAPE) if engine == "vllm" else TransformersSteps(loaded, SHAPE)
    loads = [float(share) for share in shares.split(",")]
    rows: list[dict[str, Any]] = []
    fits = {}
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("serving", total=2 * (1 + repeats * len(loads)))
        pace = Pace()
        clocks: dict[str, Callable[[], float]] = {"pace": pace} if paced else {}
        calibrate(runs, prompts, budget)  # the first steps allocate
        for thinking_budget in (None, budget):
            step, found = check(
                runs, prompts, thinking_budget, loads, repeats, seed, lambda: bar.advance(task), **clocks
            )
            fits["none" if thinking_budget is None else str(thinking_budget)] = asdict(step)
            rows += found
    told = pace.told or [pace()]
    paces = dict(zip(("5 %", "50 %", "95 %"), np.percentile(told, (5, 50, 95)).tolist(), strict=True))
    result = {"engine": engine, "requests": requests, "repeats": repeats, "paced": paced, "pace": paces}
    result |= {"step_times": fits, "runs": rows}
    write_text(out / "serving_check.json", json.dumps(result, indent=1))
    shown = ", ".join(f"{value:.2f}" for value in paces.values())
    Console().print(
        f"{json.dumps(fits)}\n\npace, 5, 50 and 95 % of the steps: {shown}\n\n{table(rows)}",
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    typer.run(main)
