"""Is a thought ever over its budget? ``python -m budgetctl.evals.adherence``.

Held-out questions x budgets from a few tokens to twice the natural length x greedy and sampled decoding x batch 1 and
batch 16 with mixed budgets and left padding. Counts thoughts over budget, answers that did not get their reserve, and
rows whose tokens differ alone and in the batch. ``max_new_tokens`` is tight on purpose, so that for the large budgets
it is the answer's reserve that ends the thought. An interrupted run goes on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from budgetctl.controller import BudgetController
from budgetctl.evals.load import LoadedModel, load_model
from budgetctl.evals.output import progress_bar, write_text
from budgetctl.evals.runner import Record, ask, kept_records
from budgetctl.guidance import guided_temperature
from budgetctl.reasoner.tasks import Question, take_questions


def budgeted_records(
    loaded: LoadedModel,
    questions: Sequence[Question],
    budgets: Sequence[int],
    *,
    seeds: Sequence[int] | None,
    batch_size: int,
    max_new_tokens: int,
    answer_reserve: int,
    progress: Any,
) -> list[Record]:
    """Each question under its own budget."""

    def controller(width: int, rows: Sequence[int]) -> BudgetController:
        return BudgetController(
            loaded.delimiters,
            thinking_budget=[budgets[i] for i in rows],
            forecast=loaded.forecast,
            boundaries=loaded.boundaries,
            prompt_length=width,
            max_new_tokens=max_new_tokens,
            answer_reserve=answer_reserve,
            greedy=seeds is None,
            temperature=guided_temperature(1.0, seeds is not None),
        )

    return ask(
        loaded.model,
        loaded.tokenizer,
        questions,
        controller,
        seeds=seeds,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )


def faults(
    record: Record, budget: int, max_new_tokens: int, answer_reserve: int, eos_ids: Sequence[int] = ()
) -> list[str]:
    """What went wrong with one record; empty when nothing did."""
    found = []
    if record.thinking_tokens > budget:
        found.append("over budget")
    if record.close == "none":
        found.append("not closed")
    ended = len(record.new_ids) < max_new_tokens or record.new_ids[-1] in eos_ids
    if not ended and record.answer_tokens < answer_reserve:
        found.append("no reserve")
    if record.leaked:
        found.append("leaked")
    return found


def main(
    count: Annotated[int, typer.Option("--n", help="questions")] = 500,
    budgets: Annotated[str, typer.Option(help="thinking budgets in tokens")] = "8,16,32,64,96,160",
    max_new_tokens: Annotated[int, typer.Option(help="limit of each generation")] = 140,
    answer_reserve: Annotated[int, typer.Option(help="tokens kept for the answer")] = 16,
    batch_size: Annotated[int, typer.Option(help="rows of the mixed batches")] = 16,
    model: Annotated[
        str | None, typer.Option(help="directory or hub id; the embedded reasoner when left out")
    ] = None,
    predictor: Annotated[str | None, typer.Option(help="its length predictor")] = None,
    decodings: Annotated[str, typer.Option(help="greedy, sampled or both")] = "greedy,sampled",
    out: Annotated[Path, typer.Option(help="folder for records and summary")] = Path("runs/adherence"),
) -> None:
    """Run the grid (in float64, where rounding does not depend on the batch) and print the counts."""
    loaded = load_model(model, predictor, with_predictor=True, dtype=torch.float64)
    questions = take_questions("test", count)
    caps = [int(b) for b in budgets.split(",")]
    totals: Counter[str] = Counter()
    by_close: Counter[str] = Counter()
    with progress_bar(Console(stderr=True)) as progress:
        modes = decodings.split(",")
        task = progress.add_task("answering", total=2 * len(modes) * count * len(caps))
        for decoding in modes:
            seeds = None if decoding == "greedy" else list(range(count))
            for turn in range(len(caps)):
                mixed = [caps[(i + turn) % len(caps)] for i in range(count)]
                sides = {}
                for rows in (batch_size, 1):
                    sides[rows] = kept_records(
                        out / f"{decoding}-turn{turn}-batch{rows}-n{count}.jsonl",
                        partial(
                            budgeted_records,
                            loaded,
                            questions,
                            mixed,
                            seeds=seeds,
                            batch_size=rows,
                            max_new_tokens=max_new_tokens,
                            answer_reserve=answer_reserve,
                            progress=partial(progress.advance, task),
                        ),
                    )
                    for record, cap in zip(sides[rows], mixed, strict=True):
                        totals["generations"] += 1
                        totals.update(
                            faults(record, cap, max_new_tokens, answer_reserve, loaded.delimiters.eos_ids)
                        )
                        totals["ended by the reserve"] += (
                            record.thinking_tokens < cap and record.close == "forced"
                        )
                        by_close[record.close] += 1
                pairs = zip(sides[batch_size], sides[1], strict=True)
                totals["differs in a batch"] += sum(a.new_ids != b.new_ids for a, b in pairs)
                totals["pairs compared"] += count
    for fault in ("over budget", "not closed", "no reserve", "leaked", "differs in a batch"):
        totals.setdefault(fault, 0)
    summary = {"budgets": caps, "questions": count, **totals, "closes": dict(by_close)}
    write_text(out / "summary.json", json.dumps(summary, indent=1))
    Console().print_json(data=summary)


if __name__ == "__main__":
    typer.run(main)
