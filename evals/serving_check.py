"""The simulator against a real engine at small scale: ``python -m budgetctl.evals.serving_check``.

The embedded reasoner runs in transformers' continuous batching. Waves of requests that all come at once give the step's
time by least squares; then requests arrive at random in real time, and the simulator gets the same arrivals with the
tokens that were written. Writes ``serving_check.json`` to ``--out``; its step time is what ``budgetctl simulate
--step-time`` takes.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from budgetctl.evals.load import load_model
from budgetctl.evals.output import progress_bar, write_text
from budgetctl.integrations.transformers import install
from budgetctl.reasoner.load import PREDICTOR
from budgetctl.reasoner.tasks import take_questions
from budgetctl.simulate.replica import Replica
from budgetctl.simulate.step_time import ReplicaShape, StepTime
from budgetctl.simulate.workload import Workload

#: Rows of the waves, and tokens that each row writes, from which the step's time is fitted.
WAVES = tuple((rows, tokens) for rows in (1, 4, 8, 16) for tokens in (1, 24, 48))
SHAPE = ReplicaShape(blocks=256, block_size=32, max_rows=16, max_batch_tokens=1024)


@dataclass(frozen=True)
class Served:
    """One request of the real engine; ``arrival`` and ``finish`` in seconds, lengths in tokens."""

    arrival: float
    finish: float
    prompt: int
    written: int


def serve(manager: Any, prompts: Sequence[list[int]], arrivals: Sequence[float], tokens: int) -> list[Served]:
    """Send the prompts at ``arrivals`` (seconds from now) and wait for all; they write ``tokens`` at most."""
    finish: dict[str, tuple[float, int]] = {}
    begin = time.perf_counter() + 0.05

    def collect() -> None:
        while len(finish) < len(prompts):
            output = manager.get_result(timeout=1)
            if output is None and not manager.is_running():
                return
            if output is not None and output.is_finished():
                finish[output.request_id] = (time.perf_counter() - begin, len(output.generated_tokens))

    collecting = threading.Thread(target=collect)
    collecting.start()
    sent = []
    for number, (prompt, arrival) in enumerate(zip(prompts, arrivals, strict=True)):
        name = f"{begin}-{number}"
        time.sleep(max(0.0, begin + arrival - time.perf_counter()))
        sent.append((name, time.perf_counter() - begin))
        manager.add_request(list(prompt), request_id=name, max_new_tokens=tokens)
    collecting.join()
    if len(finish) < len(sent):
        raise RuntimeError("the engine has ended before its requests; see above")
    return [
        Served(arrival, *_pair(finish[name], prompt))
        for (name, arrival), prompt in zip(sent, prompts, strict=True)
    ]


def _pair(result: tuple[float, int], prompt: list[int]) -> tuple[float, int, int]:
    return result[0], len(prompt), result[1]


def fit_step_time(waves: Sequence[Sequence[Served]]) -> StepTime:
    """Non-negative least squares, relative to each wave's time: steps, rows · steps, KV tokens read and prompt tokens."""
    from scipy.optimize import nnls

    rows, seconds = [], []
    for wave in waves:
        steps = max(one.written for one in wave)
        decoded = sum(one.written for one in wave)
        read = sum(one.prompt * one.written + one.written * (one.written - 1) / 2 for one in wave)
        rows.append([steps, decoded, read, sum(one.prompt for one in wave)])
        seconds.append(max(one.finish for one in wave) - min(one.arrival for one in wave))
    scale = 1 / np.asarray(seconds)
    found, _ = nnls(np.asarray(rows) * scale[:, None], np.ones(len(scale)))
    base, row, kv, prefill = found.tolist()
    return StepTime(base, row, kv, 0.0, prefill)


def simulate(served: Sequence[Served], step: StepTime, shape: ReplicaShape = SHAPE) -> np.ndarray:
    """[N] seconds at which the simulator finishes the same requests."""
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


def compare(served: Sequence[Served], step: StepTime) -> dict[str, float]:
    """Measured and simulated throughput (requests per second) and latencies (seconds), and the ratio of each."""
    order = sorted(served, key=lambda one: one.arrival)
    arrival = np.array([one.arrival for one in order])
    found: dict[str, float] = {}
    for name, finish in (
        ("measured", np.array([one.finish for one in order])),
        ("simulated", simulate(order, step)),
    ):
        latency = finish - arrival
        found[f"{name}_throughput"] = len(order) / float(finish.max() - arrival[0])
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


def main(
    requests: Annotated[int, typer.Option(help="requests of each run", min=2)] = 120,
    shares: Annotated[str, typer.Option(help="loads, as shares of what full batches serve")] = "0.4,0.8",
    budget: Annotated[int, typer.Option(help="thinking budget of the second policy", min=1)] = 16,
    repeats: Annotated[
        int, typer.Option(help="times that each wave is measured; the median counts", min=1)
    ] = 3,
    seed: Annotated[int, typer.Option(help="of arrivals")] = 0,
    out: Annotated[Path, typer.Option(help="folder for the result")] = Path("runs/serving_check"),
) -> None:
    """Fit the step's time and compare, without and with a thinking budget."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    loaded = load_model()
    questions = take_questions("test", requests)
    render = loaded.tokenizer.apply_chat_template
    prompts = [
        list(render([{"role": "user", "content": q.prompt}], add_generation_prompt=True).input_ids)
        for q in questions
    ]
    noise = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    fits = {}
    with progress_bar(Console(stderr=True)) as bar:
        loads = [float(share) for share in shares.split(",")]
        task = bar.add_task("serving", total=2 * (len(WAVES) * repeats + len(loads)))
        for thinking_budget in (None, budget):
            installation = install(loaded.model, loaded.tokenizer, PREDICTOR)
            model: Any = installation.model
            config = model.generation_config
            config.update(do_sample=False, top_k=None, top_p=None, temperature=None, max_new_tokens=96)
            config.thinking_budget = thinking_budget
            sizes = ContinuousBatchingConfig(
                page_size=SHAPE.block_size,
                num_blocks=SHAPE.blocks,
                max_batch_tokens=SHAPE.max_batch_tokens,
                max_requests_per_batch=SHAPE.max_rows,
            )
            manager = model.init_continuous_batching(config, sizes)
            manager.start()
            try:
                serve(manager, prompts[:4], [0.0] * 4, 8)  # the first steps allocate
                waves = []
                for count, tokens in WAVES:
                    again = []
                    for _ in range(repeats):
                        again.append(serve(manager, prompts[:count], [0.0] * count, tokens))
                        bar.advance(task)
                    waves.append(sorted(again, key=lambda w: max(s.finish for s in w))[repeats // 2])
                step = fit_step_time(waves)
                fits["none" if thinking_budget is None else str(thinking_budget)] = asdict(step)
                full = waves[-1]
                most = SHAPE.max_rows / max(one.finish for one in full)
                for share in loads:
                    arrivals = np.cumsum(noise.exponential(1 / (share * most), size=requests))
                    found = serve(manager, prompts, arrivals.tolist(), 96)
                    rows.append(
                        {"thinking_budget": thinking_budget, "rate": share * most, **compare(found, step)}
                    )
                    bar.advance(task)
            finally:
                manager.stop(block=True)
                config.thinking_budget = None
                installation.uninstall()
    result = {"step_time": fits["none"], "step_times": fits, "requests": requests, "runs": rows}
    write_text(out / "serving_check.json", json.dumps(result, indent=1))
    Console().print(f"{json.dumps(fits)}\n\n{table(rows)}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
