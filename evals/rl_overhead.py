"""What a training step costs beside TRL's own GRPO: ``python -m budgetctl.evals.rl_overhead``.

TRL's ``GRPOTrainer`` and ours take the same steps on the embedded reasoner in turns, in one process. Every completion
has exactly ``--tokens`` tokens, so that both do the same work. Times are of the processor (``time.process_time``), so
that other load does not count. Prints Markdown.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from transformers import AutoTokenizer, TrainerCallback

from budgetctl.delimiters import find_delimiters
from budgetctl.evals.output import progress_bar
from budgetctl.reasoner.load import WEIGHTS


class StepTimes(TrainerCallback):
    """Processor seconds of each step, and of making the completions within it."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.rollouts: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, *arguments: Any, **others: Any) -> None:
        self._begun = time.process_time()
        self.rollouts.append(0.0)

    def on_step_end(self, *arguments: Any, **others: Any) -> None:
        self.steps.append(time.process_time() - self._begun)

    def timed(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """``make`` with its time noted."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            begun = time.process_time()
            made = make(*arguments, **options)
            if self.rollouts:
                self.rollouts[-1] += time.process_time() - begun
            return made

        return wrapped


def step_times(ours: bool, rows: int, tokens: int, steps: int, folder: str) -> StepTimes:
    """Times of ``steps`` optimizer steps of ``rows`` completions, the first of them left out."""
    from trl import GRPOConfig, GRPOTrainer

    from budgetctl.training.completions import CompletionReader
    from budgetctl.training.method import Method
    from budgetctl.training.rewards.accuracy import AccuracyReward
    from budgetctl.training.tasks import embedded_tasks
    from budgetctl.training.trainer import BudgetGRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS, padding_side="left")
    delimiters = find_delimiters(tokenizer)
    arguments = GRPOConfig(
        output_dir=folder,
        max_steps=steps + 1,
        per_device_train_batch_size=rows,
        num_generations=8,
        max_completion_length=tokens,
        generation_kwargs={"min_new_tokens": tokens},
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        logging_steps=1000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    common: dict[str, Any] = {
        "model": str(WEIGHTS),
        "args": arguments,
        "train_dataset": embedded_tasks(256),
        "processing_class": tokenizer,
        "reward_funcs": AccuracyReward(CompletionReader(tokenizer, delimiters)),
    }
    trainer: Any = (
        BudgetGRPOTrainer(method=Method(delimiters, tokens), **common) if ours else GRPOTrainer(**common)
    )
    times = StepTimes()
    trainer.add_callback(times)
    trainer._generate = times.timed(trainer._generate)
    trainer.train()
    times.steps, times.rollouts = times.steps[1:], times.rollouts[1:]
    return times


def main(
    rows: Annotated[int, typer.Option(help="completions a step")] = 16,
    tokens: Annotated[int, typer.Option(help="tokens of a completion")] = 64,
    steps: Annotated[int, typer.Option(help="steps of a turn")] = 3,
    turns: Annotated[int, typer.Option(help="turns of each trainer")] = 3,
) -> None:
    """Print the table."""
    found: dict[str, list[StepTimes]] = {"TRL's GRPOTrainer": [], "BudgetGRPOTrainer": []}
    with progress_bar(Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("training", total=2 * turns)
        for _ in range(turns):
            for ours, kept in enumerate(found.values()):
                kept.append(step_times(bool(ours), rows, tokens, steps, folder))
                progress.advance(task)
    lines = [
        "| trainer | n steps | seconds a step | rollouts | the rest | tokens a second |",
        "|---|---|---|---|---|---|",
    ]
    totals = []
    for name, kept in found.items():
        whole, made = (np.concatenate([getattr(t, part) for t in kept]) for part in ("steps", "rollouts"))
        totals.append(np.median(whole))
        cells = [f"{np.median(x):.2f}" for x in (whole, made, whole - made)]
        lines.append(
            f"| {name} | {len(whole)} | {' | '.join(cells)} | {rows * tokens / np.median(whole):.0f} |"
        )
    lines += ["", f"Ratio of the medians: {totals[1] / totals[0]:.3f}."]
    Console().print("\n".join(lines), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
