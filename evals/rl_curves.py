"""What training has changed: ``python -m budgetctl.evals.rl_curves --before DIR --after NAME=DIR,DIR --after NAME=DIR``.

Accuracy against a thinking budget that is enforced by a hard cut, before and after, on held-out questions with shared
noise; thinking tokens by difficulty; learning curves from the runs' ``trainer_state.json``. Prints Markdown, and draws
the curves where ``--figure`` says. Several directories of a name are runs of other seeds: a question counts with its
mean over them, and intervals are over questions. Records are kept, so an interrupted evaluation goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from budgetctl.controller import BudgetController
from budgetctl.evals.load import LoadedModel, load_model
from budgetctl.evals.metrics import bootstrap_mean, paired_difference
from budgetctl.evals.output import progress_bar
from budgetctl.evals.runner import Record, ask, kept_records
from budgetctl.reasoner.tasks import Question, take_questions

BUDGETS = (16, 32, 48, 64, 96)
LEVELS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10))
#: Steps over which a learning curve is averaged.
WINDOW = 10


def budget_records(
    loaded: LoadedModel, questions: Sequence[Question], budget: int | None, **options: Any
) -> list[Record]:
    """Answers with thoughts cut at ``budget`` tokens, or as they come; sampled at temperature 1, noise by question."""
    return ask(
        loaded.model,
        loaded.tokenizer,
        questions,
        lambda width, rows: BudgetController(
            loaded.delimiters,
            prompt_length=width,
            thinking_budget=None if budget is None else [budget] * len(rows),
        ),
        seeds=range(len(questions)),
        max_new_tokens=256,
        **options,
    )


Records = dict[str, dict[int | None, list[Record]]]


def question_means(values: Sequence[float], count: int) -> np.ndarray:
    """Mean over runs [count] of values of the same ``count`` questions, run after run."""
    return np.asarray(values, dtype=np.float64).reshape(-1, count).mean(0)


def seed_means(values: Sequence[float], count: int) -> str:
    """The mean of each run in parentheses; empty for a single run."""
    runs = np.asarray(values, dtype=np.float64).reshape(-1, count).mean(1)
    return f" ({', '.join(f'{run:.3f}' for run in runs)})" if len(runs) > 1 else ""


def accuracy_table(records: Records) -> list[str]:
    """Accuracy with intervals by budget and model, that of each run, and the paired difference to the first model."""
    names, first = list(records), next(iter(records))
    lines = [f"| thinking budget | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for budget, base in records[first].items():
        before = [float(record.correct) for record in base]
        cells = []
        for name in names:
            right = [float(record.correct) for record in records[name][budget]]
            means = question_means(right, len(base))
            cell = str(bootstrap_mean(means, resamples=2000)) + seed_means(right, len(base))
            if name != first:
                change = paired_difference(means, before, resamples=2000)
                cell += f"; {change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
            cells.append(cell)
        lines.append(f"| {'none' if budget is None else budget} | {' | '.join(cells)} |")
    return lines


def difference_table(records: Records, reference: str) -> list[str]:
    """Paired differences in accuracy to ``reference`` by budget, for the models other than it and the first."""
    names = [name for name in list(records)[1:] if name != reference]
    lines = [f"| thinking budget, less {reference} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for budget, kept in next(iter(records.values())).items():
        means = {
            name: question_means([float(r.correct) for r in records[name][budget]], len(kept))
            for name in (reference, *names)
        }
        changes = (paired_difference(means[n], means[reference], resamples=2000) for n in names)
        cells = " | ".join(f"{c.mean:+.3f} [{c.low:+.3f}, {c.high:+.3f}]" for c in changes)
        lines.append(f"| {'none' if budget is None else budget} | {cells} |")
    return lines


def length_table(records: Records) -> list[str]:
    """Mean thinking tokens and accuracy of unlimited thoughts by difficulty."""
    lines = [f"| steps | {' | '.join(records)} |", "|---" * (len(records) + 1) + "|"]
    for low, high in (*LEVELS, (1, 10)):
        count = sum(low <= record.level <= high for record in next(iter(records.values()))[None])
        cells = []
        for kept in records.values():
            chosen = [record for record in kept[None] if low <= record.level <= high]
            if not chosen:
                cells.append("-")
                continue
            tokens = bootstrap_mean(
                question_means([record.thinking_tokens for record in chosen], count), resamples=2000
            )
            right = np.mean([record.correct for record in chosen])
            cells.append(f"{tokens.mean:.0f} [{tokens.low:.0f}, {tokens.high:.0f}] at {right:.2f}")
        lines.append(f"| {'all' if high - low > 1 else f'{low}-{high}'} | {' | '.join(cells)} |")
    return lines


def learning_curve(run: Path, name: str) -> tuple[list[int], list[float]]:
    """(optimizer step, value of a metric) at each logged step of a run."""
    history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    points = [(row["step"], row[name]) for row in history if row.get(name) is not None]
    return [int(x) for x, _ in points], [y for _, y in points]


def smooth(values: Sequence[float], window: int = WINDOW) -> np.ndarray:
    """Means over the last ``window`` values, fewer at the beginning."""
    sums = np.cumsum(np.asarray(values, dtype=np.float64))
    counts = np.minimum(np.arange(1, len(sums) + 1), window)
    return (sums - np.concatenate([np.zeros(window), sums])[: len(sums)]) / counts


def draw(runs: dict[str, list[Path]], records: Records, figure: Path) -> None:
    """Accuracy and thinking tokens of the training rollouts by step, one line a run, and held-out accuracy against
    thinking tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    canvas, (right, length, budget) = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    colors = {name: f"C{number}" for number, name in enumerate(runs)}
    for name, folders in runs.items():
        for axis, metric in ((right, "rewards/accuracy/mean"), (length, "rollout/thinking_tokens")):
            for number, run in enumerate(folders):
                steps, values = learning_curve(run, metric)
                axis.plot(steps, smooth(values), label=None if number else name, color=colors[name])
    for name, kept in records.items():
        means = [np.mean([r.thinking_tokens for r in rows]) for rows in kept.values()]
        share = [np.mean([r.correct for r in rows]) for rows in kept.values()]
        budget.plot(means, share, "o-", label=name, color=colors.get(name, "gray"), markersize=4)
    right.set(title="training rollouts, each as its method makes them", xlabel="step", ylabel="accuracy")
    length.set(title=f"training rollouts, means of {WINDOW} steps", xlabel="step", ylabel="thinking tokens")
    budget.set(title="held-out, cut at a budget", xlabel="mean thinking tokens", ylabel="accuracy")
    for axis in (right, length, budget):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(figure, dpi=110)


def main(
    before: Annotated[str, typer.Option(help="directory of the checkpoint that the runs began with")],
    after: Annotated[
        list[str],
        typer.Option(help="NAME=DIRECTORY of a trained model, or several of one method, with commas"),
    ],
    count: Annotated[int, typer.Option("--n", help="held-out questions")] = 256,
    reference: Annotated[
        str | None, typer.Option(help="name of a run that the others are compared with")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the records")] = Path("runs/rl/eval"),
    figure: Annotated[Path | None, typer.Option(help="where to draw the curves")] = None,
) -> None:
    """Print the tables, and draw the curves."""
    runs = {
        name: [Path(folder) for folder in folders.split(",")]
        for name, _, folders in (text.partition("=") for text in after)
    }
    if reference is not None and reference not in runs:
        raise typer.BadParameter(
            f"reference {reference!r}: expected one of {', '.join(runs)}; name a run of --after"
        )
    questions = take_questions("test", count)
    budgets: tuple[int | None, ...] = (*BUDGETS, None)
    records: Records = {}
    with progress_bar(Console(stderr=True)) as progress:
        models = {"before": [Path(before)], **runs}
        total = count * len(budgets) * sum(map(len, models.values()))
        advance = partial(progress.advance, progress.add_task("answering", total=total))
        for name, folders in models.items():
            records[name] = {budget: [] for budget in budgets}
            for folder in folders:
                loaded = load_model(str(folder))
                for budget in budgets:
                    kept = out / f"{name}-{folder.name}-{budget or 'none'}-{count}.jsonl"
                    records[name][budget] += kept_records(
                        kept, partial(budget_records, loaded, questions, budget, progress=advance)
                    )
    lines = [*accuracy_table(records), "", *length_table(records)]
    if reference is not None:
        lines += ["", *difference_table(records, reference)]
    Console().print("\n".join(lines), markup=False, soft_wrap=True)
    if figure is not None:
        draw(runs, records, figure)


if __name__ == "__main__":
    typer.run(main)
