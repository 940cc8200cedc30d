"""Tokens a second of rollouts by transformers and by vLLM, on a CPU: ``python -m budgetctl.evals.rl_rollouts``.

Two trainers of each method roll out the same prompts of the embedded reasoner in turns, in one process; times are of
the processor. Rows end by themselves, so that both engines have rows that ended and rows that go on. What the engines
wrote is compared too: it is drawn from the same weights, with noise of its own; means with their standard errors over
prompts. Prints Markdown.
"""

from __future__ import annotations

import tempfile
import time
from importlib import import_module
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from budgetctl.evals.output import progress_bar
from budgetctl.evals.vllm_training import SCRIPTS, vllm_on_cpu
from budgetctl.training.rollouts import FORCED

#: Options of each method's own.
OWN = {
    "grpo": "",
    "hbpo": "--budgets 24 48 96 120",
    "elastic": "--thinking_budget 40 --answer_budget 16",
    "brpo": "--budgets 24 48 96 --summaries 2 --answer_budget 16",
}
#: Steps whose rollouts are not timed.
WARM_UP = 1


def trainer_of(method: str, rows: int, group: int, folder: str, vllm: bool) -> Any:
    """A trainer that is asked for rollouts alone."""
    from trl import GRPOConfig, ModelConfig, TrlParser

    from budgetctl.training.script import build

    options = {
        "output_dir": folder,
        "per_device_train_batch_size": rows,
        "num_generations": group,
        "max_completion_length": 160,
        "round_tokens": 32,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "use_vllm": vllm,
        "vllm_mode": "colocate",
        "vllm_max_model_length": 512,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    arguments = getattr(import_module(f"budgetctl.training.{method}"), SCRIPTS[method])
    classes: Any = (arguments, GRPOConfig, ModelConfig)
    return build(*TrlParser(classes).parse_args_and_config([*words, *OWN[method].split()]))


def outcomes(
    trainer: Any, batch: list[dict[str, Any]], told: dict[str, Any]
) -> list[tuple[float, float, float]]:
    """Of each rollout: tokens of its thought, whether its close was forced, whether its answer is right."""
    accuracy = next(f for f in trainer.reward_funcs if f.__name__ == "accuracy")
    columns = {name: [row[name] for row in batch] for name in batch[0] if name != "prompt"}
    right = accuracy([row["prompt"] for row in batch], [], told["completion_ids"], **columns)
    forced = [float(rollout.close == FORCED) for rollout in trainer._rollouts]
    return list(zip(map(float, told["thinking_tokens"]), forced, map(float, right), strict=True))


def cells(speeds: list[float], seen: list[tuple[float, float, float]], group: int) -> str:
    """Of an engine's speeds in tokens a second, and of the :func:`outcomes` of its rollouts, ``group`` a prompt."""
    values = np.array(seen).reshape(-1, group, 3).mean(1)
    means, errors = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
    told = [f"{mean:.3g} ± {error:.2g}" for mean, error in zip(means, errors, strict=True)]
    speed = f"{np.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})"
    return " | ".join([speed, str(len(seen)), *told])


def main(
    method: Annotated[list[str] | None, typer.Option(help="methods; grpo and elastic by default")] = None,
    rows: Annotated[int, typer.Option(help="rollouts a turn")] = 48,
    group: Annotated[int, typer.Option(help="rollouts of a prompt")] = 12,
    turns: Annotated[int, typer.Option(help="turns of each engine")] = 7,
) -> None:
    """Print the table."""
    lines = [
        "| method | engine | tokens a second, median (lowest to highest) | rollouts | thinking tokens | closed by force "
        "| right |",
        "|---|---|---|---|---|---|---|",
    ]
    methods = method or ["grpo", "elastic"]
    with (
        progress_bar(Console(stderr=True)) as progress,
        tempfile.TemporaryDirectory() as folder,
        vllm_on_cpu(),
    ):
        task = progress.add_task("rolling out", total=len(methods) * (turns + WARM_UP))
        for name in methods:
            trainers = {vllm: trainer_of(name, rows, group, folder, vllm) for vllm in (False, True)}
            loaders = {vllm: iter(trainer.get_train_dataloader()) for vllm, trainer in trainers.items()}
            speeds: dict[bool, list[float]] = {False: [], True: []}
            seen: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
            for turn in range(turns + WARM_UP):
                for vllm, trainer in trainers.items():
                    batch = next(loaders[vllm])
                    trainer.model.train()
                    trainer._step = turn
                    begun = time.process_time()
                    told = trainer._roll_out([row["prompt"] for row in batch], trainer)
                    taken = time.process_time() - begun
                    if turn >= WARM_UP:
                        speeds[vllm].append(sum(told["sampled_tokens"]) / taken)
                        seen[vllm] += outcomes(trainer, batch, told)
                progress.advance(task)
            trainers[True].close()
            for vllm, measured in speeds.items():
                engine = "vLLM" if vllm else "transformers"
                lines.append(f"| {name} | {engine} | {cells(measured, seen[vllm], group)} |")
    Console().print("\n".join(lines), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
