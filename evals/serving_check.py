"""The simulator against a real engine at small scale: ``python -m budgetctl.evals.serving_check``.

The embedded reasoner runs in transformers' continuous batching, or in vLLM (``--engine vllm``), driven step by step. A
step takes the processor time of this process over that of a fixed piece of work beside it, and requests arrive by the
sum of those: what other processes do on the machine counts for little. Calibration runs give the step's time by least
squares over their steps; then requests arrive at random, and the simulator gets the same arrivals with the tokens that
were written. Calibration and arrivals take turns. The simulator is also given each run's own steps to fit: what is then
left is its schedule's, and the rest is that of calibrations that were made at other moments. Writes
``serving_check.json`` to ``--out``; its step times are what ``budgetctl simulate --step-time`` takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from budgetctl.evals.load import load_model
from budgetctl.evals.output import progress_bar, write_text
from budgetctl.evals.pace import Pace
from budgetctl.evals.serving_drive import REQUESTS, Served, Step, calibrate, drive, fit_step_time
from budgetctl.evals.stepped_engines import SteppedEngine, TransformersSteps, VLLMSteps
from budgetctl.reasoner.tasks import take_questions
from budgetctl.simulate.replica import Replica
from budgetctl.simulate.step_time import ReplicaShape, StepTime
from budgetctl.simulate.workload import Workload

SHAPE = ReplicaShape(blocks=256, block_size=32, max_rows=16, max_batch_tokens=1024)
#: Tokens that a request of the comparison writes at most.
MOST = 96
VALUES = ("throughput", "mean", "p50", "p99")


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


def compare(runs: Sequence[Sequence[Served]], steps: Sequence[StepTime]) -> dict[str, float]:
    """Measured and simulated throughput (requests per second) and latencies (seconds) over all requests of some runs, and
    the ratio of each; with the time of a step in each run."""
    order = [sorted(run, key=lambda one: one.arrival) for run in runs]
    arrival = [np.array([one.arrival for one in run]) for run in order]
    ends = {
        "measured": [np.array([one.finish for one in run]) for run in order],
        "simulated": [simulate(run, step) for run, step in zip(order, steps, strict=True)],
    }
    found: dict[str, float] = {}
    for name, finish in ends.items():
        latency = np.concatenate([end - begin for end, begin in zip(finish, arrival, strict=True)])
        spans = [float(end.max() - begin[0]) for end, begin in zip(finish, arrival, strict=True)]
        found[f"{name}_throughput"] = len(latency) / sum(spans)
        found[f"{name}_mean"] = float(latency.mean())
        found[f"{name}_p50"] = float(np.percentile(latency, 50))
        found[f"{name}_p99"] = float(np.percentile(latency, 99))
    for value in VALUES:
        found[f"ratio_{value}"] = found[f"simulated_{value}"] / found[f"measured_{value}"]
    return found


def together(steps: Sequence[Step], step: StepTime) -> float:
    """Seconds of the steps without a prompt, as a share of what the time of a step says."""
    decoded = [one for one in steps if not one.prompts]
    told = sum(step.base + step.row * one.rows + step.kv_token * one.kv_tokens for one in decoded)
    return sum(one.seconds for one in decoded) / told


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: simulated beside measured, their differences, those of the mean latency in single runs, and those by the
    runs' own steps."""
    lines = [
        "| thinking budget | arrive/s | served/s: real, simulated | mean s | in single runs | p50 s | p99 s | "
        "by their own steps: mean, p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        throughput, mean, p50, p99 = (
            f"{row[f'measured_{name}']:.3g}, {row[f'simulated_{name}']:.3g} ({row[f'ratio_{name}'] - 1:+.0%})"
            for name in VALUES
        )
        budget = "none" if row["thinking_budget"] is None else row["thinking_budget"]
        single = f"{min(row['single']) - 1:+.0%} to {max(row['single']) - 1:+.0%}"
        own = f"{row['own']['ratio_mean'] - 1:+.0%}, {row['own']['ratio_p99'] - 1:+.0%}"
        lines.append(
            f"| {budget} | {row['rate']:.3g} | {throughput} | {mean} | {single} | {p50} | {p99} | {own} |"
        )
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
) -> tuple[StepTime, float, list[dict[str, Any]]]:
    """The fitted step time; the time of steps whose rows came at once, as a share of what the fit says; and the comparison
    at each load.

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
    arrive, draw = (np.random.default_rng([seed, part]) for part in (0, 1))
    full, first = drive(engine, prompts, [0.0] * len(prompts), MOST, thinking_budget, **clocks)
    done()
    most = len(full) / max(one.finish for one in full)
    usual = float(np.median([step.seconds for step in first]))
    steps: list[Step] = []
    waves: list[Step] = []
    runs: dict[float, list[tuple[list[Served], list[Step]]]] = {load: [] for load in loads}

    def measure() -> None:
        steps.extend(calibrate(engine, prompts, usual, MOST, thinking_budget, draw, **clocks))
        rows = prompts[: SHAPE.max_rows]
        waves.extend(drive(engine, rows, [0.0] * len(rows), MOST, thinking_budget, **clocks)[1])

    for _ in range(repeats):
        for load in loads:
            measure()
            arrivals = np.cumsum(arrive.exponential(1 / (load * most), size=len(prompts)))
            runs[load].append(drive(engine, prompts, arrivals.tolist(), MOST, thinking_budget, **clocks))
            done()
    measure()
    step = fit_step_time(steps)
    rows = []
    for load in loads:
        served = [run for run, _ in runs[load]]
        rows.append(
            {"thinking_budget": thinking_budget, "rate": load * most, "load": load}
            | compare(served, [step] * repeats)
            | {"single": [compare([run], [step])["ratio_mean"] for run in served]}
            | {"own": compare(served, [fit_step_time(own) for _, own in runs[load]])}
        )
    return step, together(waves, step), rows


def main(
    engine: Annotated[str, typer.Option(help="transformers or vllm")] = "transformers",
    requests: Annotated[int, typer.Option(help="requests of each run", min=REQUESTS)] = 120,
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
    fits, shares_together = {}, {}
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("serving", total=2 * (1 + repeats * len(loads)))
        pace = Pace()
        clocks: dict[str, Callable[[], float]] = {"pace": pace} if paced else {}
        drive(runs, prompts, [0.0] * requests, MOST, budget)  # the first steps allocate
        for thinking_budget in (None, budget):
            name = "none" if thinking_budget is None else "budgetctl"
            step, shares_together[name], found = check(
                runs, prompts, thinking_budget, loads, repeats, seed, lambda: bar.advance(task), **clocks
            )
            fits[name] = asdict(step)
            rows += found
    told = pace.told or [pace()]
    paces = dict(zip(("5 %", "50 %", "95 %"), np.percentile(told, (5, 50, 95)).tolist(), strict=True))
    result = {"engine": engine, "requests": requests, "repeats": repeats, "paced": paced, "pace": paces}
    result |= {"step_times": fits, "together": shares_together, "runs": rows}
    write_text(out / "serving_check.json", json.dumps(result, indent=1))
    shown = ", ".join(f"{value:.2f}" for value in paces.values())
    Console().print(
        f"{json.dumps(fits)}\n\npace, 5, 50 and 95 % of the steps: {shown}\n"
        f"rows that came at once, their steps over those of the fit: {json.dumps(shares_together)}\n\n{table(rows)}",
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    typer.run(main)
