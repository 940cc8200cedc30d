"""Accuracy against thinking tokens, side by side with the hard cut: ``python -m budgetctl.evals.tradeoff``.

Each budget is a share of the mean natural length. The hard cut closes the thought by force when the budget is spent
and lets the model answer; budgetctl steers it. Both draw from the same noise. Writes ``records.jsonl``,
``summary.json``, ``table.md`` and ``tradeoff.png`` to ``--out``; a run that was interrupted goes on.
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
from budgetctl.evals.output import progress_bar, write_text
from budgetctl.evals.runner import Record, ask, kept_records
from budgetctl.evals.testbed import natural_records
from budgetctl.guidance import guided_temperature
from budgetctl.reasoner.tasks import take_questions

SHARES = "0.25,0.5,0.75,1.0"


def method_records(
    loaded: LoadedModel,
    method: str,
    budget: int,
    questions: Sequence[Any],
    seeds: Sequence[int] | None,
    strength: float | None = None,
    temperature: float = 1.0,
    **options: Any,
) -> list[Record]:
    """Records of ``hard-cut`` or ``budgetctl`` at one budget in tokens."""
    steered = method == "budgetctl"

    def controller(width: int, rows: Sequence[int]) -> BudgetController:
        return BudgetController(
            loaded.delimiters,
            thinking_budget=budget,
            forecast=loaded.forecast if steered else None,
            boundaries=loaded.boundaries if steered else None,
            prompt_length=width,
            guidance_strength=strength if steered else None,
            greedy=seeds is None,
            temperature=guided_temperature(temperature, seeds is not None),
        )

    return ask(
        loaded.model, loaded.tokenizer, questions, controller, seeds=seeds, temperature=temperature, **options
    )


def summarise(records: Sequence[Record], against: Sequence[Record] | None = None) -> dict[str, Any]:
    """Accuracy with its interval, mean tokens, shares of closes; the paired gain over ``against``."""
    accuracy = bootstrap_mean([r.correct for r in records])
    summary: dict[str, Any] = {
        "n": len(records),
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "thinking_tokens": float(np.mean([r.thinking_tokens for r in records])),
        **{
            k: float(np.mean([r.close == k for r in records]))
            for k in ("natural", "steered", "forced", "none")
        },
    }
    if against is not None:
        gain = paired_difference([r.correct for r in records], [r.correct for r in against])
        summary |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    return summary


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of the summaries."""
    lines = [
        "| budget (share) | method | accuracy [95 %] | thinking tokens | natural | steered | forced | gain over hard cut [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        budget = "none" if row["budget"] is None else f"{row['budget']} ({row['share']:.0%})"
        gain = (
            f"{row['gain']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]" if "gain" in row else ""
        )
        lines.append(
            f"| {budget} | {row['method']} | {row['accuracy']:.3f} [{row['accuracy_low']:.3f}, "
            f"{row['accuracy_high']:.3f}] | {row['thinking_tokens']:.1f} | {row['natural']:.2f} | {row['steered']:.2f} "
            f"| {row['forced']:.2f} | {gain} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against mean thinking tokens, one line a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.3), layout="constrained")
    for method, colour, marker in (("budgetctl", "#1b6ca8", "o"), ("hard-cut", "#c4562f", "s")):
        points = sorted((r for r in rows if r["method"] == method), key=lambda r: r["budget"])
        x = [r["thinking_tokens"] for r in points]
        y = [r["accuracy"] for r in points]
        errors = [
            [r["accuracy"] - r["accuracy_low"] for r in points],
            [r["accuracy_high"] - r["accuracy"] for r in points],
        ]
        axes.errorbar(x, y, yerr=errors, color=colour, marker=marker, capsize=3, label=method)
        for row in points:
            at = (row["thinking_tokens"], row["accuracy"])
            shift = (-19, 2) if method == "budgetctl" else (21, -8)
            axes.annotate(
                f"{row['share']:.0%}",
                at,
                xytext=shift,
                textcoords="offset points",
                ha="center",
                color=colour,
                fontsize=8,
            )
    for row in rows:
        if row["method"] == "full":
            axes.axhline(row["accuracy"], color="grey", linestyle=":", linewidth=1)
            axes.plot(
                row["thinking_tokens"],
                row["accuracy"],
                color="grey",
                marker="*",
                markersize=11,
                linestyle="",
                label="no limit",
            )
    axes.set_xlabel("mean thinking tokens used")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.set_title("Labels: thinking budget as a share of the mean natural length", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(
    model: Annotated[
        str | None, typer.Option(help="directory or hub id; the embedded reasoner when left out")
    ] = None,
    predictor: Annotated[str | None, typer.Option(help="its length predictor")] = None,
    count: Annotated[int, typer.Option("--n", help="questions")] = 512,
    shares: Annotated[str, typer.Option(help="budgets as shares of the mean natural length")] = SHARES,
    split: Annotated[str, typer.Option(help="stream of questions")] = "test",
    seed: Annotated[int, typer.Option(help="first noise seed")] = 0,
    temperature: Annotated[float, typer.Option(help="sampling temperature")] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="decode greedily instead of sampling")] = False,
    strength: Annotated[
        float | None, typer.Option(help="guidance strength; the predictor's default when left out")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for records, summary, table and plot")] = Path(
        "runs/tradeoff"
    ),
) -> None:
    """Run both methods at every budget, and no limit."""
    loaded = load_model(model, predictor, with_predictor=True)
    questions = take_questions(split, count)
    seeds = None if greedy else [seed + i for i in range(count)]
    fractions = [float(share) for share in shares.split(",")]
    name = f"{split}-{count}-{'greedy' if greedy else f'T{temperature:g}-seed{seed}'}"
    rows: list[dict[str, Any]] = []
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("answering", total=count * (1 + 2 * len(fractions)))
        options: dict[str, Any] = {
            "temperature": temperature,
            "progress": partial(progress.advance, task),
        }
        full = kept_records(
            out / f"full-{name}.jsonl", partial(natural_records, loaded, questions, seeds, **options)
        )
        mean_length = float(np.mean([r.thinking_tokens for r in full]))
        rows.append({"method": "full", "budget": None, "share": None, **summarise(full)})
        for share in fractions:
            budget = round(share * mean_length)
            records: dict[str, list[Record]] = {}
            for method in ("hard-cut", "budgetctl"):
                label = f"-s{strength:g}" if strength is not None and method == "budgetctl" else ""
                records[method] = kept_records(
                    out / f"{method}-{budget}{label}-{name}.jsonl",
                    partial(method_records, loaded, method, budget, questions, seeds, strength, **options),
                )
                against = records["hard-cut"] if method == "budgetctl" else None
                rows.append(
                    {
                        "method": method,
                        "budget": budget,
                        "share": share,
                        **summarise(records[method], against),
                    }
                )
    write_text(out / "summary.json", json.dumps(rows, indent=1))
    write_text(out / "table.md", table(rows) + "\n")
    draw(rows, out / "tradeoff.png")
    Console().print(table(rows), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
