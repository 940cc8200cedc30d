"""Does an early exit pay? ``python -m budgetctl.evals.early_exit``.

Both exits at several settings, against no exit and against budgetctl's budgets at equal tokens, on the same questions and
noise. An exit's tokens are those of the thought and those of its probes; the prefixes that probes re-read are told beside
them, and not counted. Between two budgets, budgetctl at equal tokens is the mixture of both that uses as many. Writes
records, ``summary.json`` and ``table.md`` to ``--out``; a run that was interrupted goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from budgetctl.controller import BudgetController
from budgetctl.early_exit import EarlyExit
from budgetctl.evals.load import LoadedModel, load_model
from budgetctl.evals.measures.matched import mixture_at
from budgetctl.evals.metrics import Interval, bootstrap_mean, paired_difference
from budgetctl.evals.output import progress_bar, write_jsonl, write_text
from budgetctl.evals.runner import Record, ask, chat_prompts, kept_records
from budgetctl.evals.testbed import natural_records
from budgetctl.evals.tradeoff import method_records
from budgetctl.exit_probe import ExitProbe
from budgetctl.guidance import guided_temperature
from budgetctl.reasoner.tasks import Question, take_questions
from budgetctl.trial_answer import AnswerTexts

THRESHOLDS = "0.8,0.9,0.95,0.99"
WINDOWS = "2,3,4"
BUDGETS = "6,12,18,24,32,48,72,108,160"


@dataclass(frozen=True)
class ExitRecord(Record):
    """A question answered with an early exit, and what its probes cost."""

    probes: int
    probe_tokens: int
    read_tokens: int


def exit_records(
    loaded: LoadedModel,
    config: EarlyExit,
    questions: Sequence[Question],
    seeds: Sequence[int] | None,
    temperature: float = 1.0,
    **options: Any,
) -> list[ExitRecord]:
    """Records under one early exit and no other limit."""
    texts = AnswerTexts.from_tokenizer(loaded.tokenizer, loaded.model.get_output_embeddings().weight.shape[0])
    batches: list[tuple[int, list[int], ExitProbe]] = []

    def controller(width: int, rows: Sequence[int]) -> BudgetController:
        probe = ExitProbe(loaded.model, loaded.tokenizer, loaded.delimiters, config, texts=texts)
        batches.append((width, list(rows), probe))
        return BudgetController(
            loaded.delimiters,
            boundaries=loaded.boundaries,
            prompt_length=width,
            early_exit=probe,
            greedy=seeds is None,
            temperature=guided_temperature(temperature, seeds is not None),
        )

    records = ask(
        loaded.model, loaded.tokenizer, questions, controller, seeds=seeds, temperature=temperature, **options
    )
    prompts = loaded.tokenizer(chat_prompts(loaded.tokenizer, questions), add_special_tokens=False).input_ids
    found = []
    for width, rows, probe in batches:
        for row in rows:
            padding = [loaded.tokenizer.pad_token_id] * (width - len(prompts[row]))
            ids = torch.tensor([[*padding, *prompts[row], *records[row].new_ids]])
            found.append(ExitRecord(**records[row].as_dict(), **asdict(probe.account(ids)[0])))
    return found


def kept_exits(path: Path, make: partial[list[ExitRecord]]) -> list[ExitRecord]:
    """As ``kept_records``."""
    if path.exists():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [ExitRecord(**{**row, "new_ids": tuple(row["new_ids"])}) for row in rows]
    records = make()
    write_jsonl(path, (record.as_dict() for record in records))
    return records


def at_equal_tokens(curve: Sequence[Sequence[Record]], tokens: float) -> tuple[list[float], float]:
    """How often each question is right, [n], when two neighbours of ``curve`` are mixed so that a thought has ``tokens``
    on average, and the mean that was reached: outside the curve, that of its end."""
    mixture = mixture_at([_mean_thought(records) for records in curve], tokens)
    right = mixture.of([np.array([record.correct for record in records], dtype=float) for records in curve])
    return list(right), mixture.tokens


def compare(
    records: Sequence[ExitRecord], full: Sequence[Record], curve: Sequence[Sequence[Record]]
) -> dict[str, Any]:
    """Accuracy and tokens of one exit; paired gains over no exit, and over budgetctl's budgets at as many tokens, with
    and without the tokens of the probes."""
    right = [float(record.correct) for record in records]
    thinking = _mean_thought(records)
    probes = float(np.mean([record.probe_tokens for record in records]))
    total, reached = at_equal_tokens(curve, thinking + probes)
    free, _ = at_equal_tokens(curve, thinking)
    gains = {
        "over_full": paired_difference(right, [float(record.correct) for record in full]),
        "over_budget": paired_difference(right, total),
        "over_budget_free_probes": paired_difference(right, free),
    }
    return {
        "n": len(records),
        "accuracy": asdict(bootstrap_mean(right)),
        "thinking_tokens": thinking,
        "probe_tokens": probes,
        "probes": float(np.mean([record.probes for record in records])),
        "read_tokens": float(np.mean([record.read_tokens for record in records])),
        "early": float(np.mean([record.close == "early" for record in records])),
        "budget_tokens": reached,
        **{name: asdict(gain) for name, gain in gains.items()},
    }


def _mean_thought(records: Sequence[Record]) -> float:
    return float(np.mean([record.thinking_tokens for record in records]))


def table(
    rows: Sequence[dict[str, Any]], full: Sequence[Record], curve: Mapping[int, Sequence[Record]]
) -> str:
    """Markdown: budgets first, then a line an exit."""
    lines = [
        "| budget | accuracy [95 %] | thinking tokens |",
        "|---|---|---|",
        f"| none | {_accuracy(full)} | {_mean_thought(full):.1f} |",
        *(f"| {budget} | {_accuracy(r)} | {_mean_thought(r):.1f} |" for budget, r in curve.items()),
        "",
        "| exit | accuracy [95 %] | thinking tokens | probe tokens | together | tokens re-read | early closes "
        "| gain over no exit | gain over a budget of as many tokens | the same, probes not counted |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gains = (row[name] for name in ("over_full", "over_budget", "over_budget_free_probes"))
        lines.append(
            f"| {row['exit']} | {Interval(**row['accuracy'])} | {row['thinking_tokens']:.1f} "
            f"| {row['probe_tokens']:.1f} | {row['thinking_tokens'] + row['probe_tokens']:.1f} "
            f"| {row['read_tokens']:.0f} | {row['early']:.2f} | "
            + " | ".join(f"{g['mean']:+.3f} [{g['low']:+.3f}, {g['high']:+.3f}]" for g in gains)
            + " |"
        )
    return "\n".join(lines)


def _accuracy(records: Sequence[Record]) -> Interval:
    return bootstrap_mean([record.correct for record in records])


def main(
    model: Annotated[
        str | None, typer.Option(help="directory or hub id; the embedded reasoner when left out")
    ] = None,
    predictor: Annotated[str | None, typer.Option(help="its length predictor, for the budgets")] = None,
    count: Annotated[int, typer.Option("--n", help="questions")] = 512,
    thresholds: Annotated[str, typer.Option(help="of the exit by confidence; '' for none")] = THRESHOLDS,
    windows: Annotated[str, typer.Option(help="of the exit by agreement; '' for none")] = WINDOWS,
    budgets: Annotated[str, typer.Option(help="thinking budgets that the exits are compared with")] = BUDGETS,
    answer_prompt: Annotated[str, typer.Option(help="what makes the model answer; \\n is a line end")] = (
        r"\n\nAnswer:"
    ),
    probe_tokens: Annotated[int, typer.Option(help="most tokens of a trial answer")] = 8,
    every: Annotated[int, typer.Option(help="probe after so many tokens; 0: at line ends")] = 0,
    turn: Annotated[
        str | None, typer.Option(help="probe only at the ends of lines with this text, such as Wait")
    ] = None,
    split: Annotated[str, typer.Option(help="stream of questions")] = "test",
    seed: Annotated[int, typer.Option(help="first noise seed")] = 0,
    temperature: Annotated[float, typer.Option(help="sampling temperature")] = 1.0,
    out: Annotated[Path, typer.Option(help="folder for records, summary and table")] = Path(
        "runs/early_exit"
    ),
) -> None:
    """Run the exits, the budgets and no limit."""
    loaded = load_model(model, predictor, with_predictor=True)
    questions = take_questions(split, count)
    seeds = [seed + i for i in range(count)]
    shared: dict[str, Any] = {
        "answer_prompt": answer_prompt.replace(r"\n", "\n"),
        "probe_tokens": probe_tokens,
        "every": every or "line",
        "turn": turn,
    }
    configs = [EarlyExit("confidence", threshold=float(t), **shared) for t in thresholds.split(",") if t]
    configs += [EarlyExit("agreement", window=int(w), **shared) for w in windows.split(",") if w]
    caps = [int(budget) for budget in budgets.split(",")]
    name = f"{split}-{count}-T{temperature:g}-seed{seed}"
    rows: list[dict[str, Any]] = []
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("answering", total=count * (1 + len(caps) + len(configs)))
        options: dict[str, Any] = {"temperature": temperature, "progress": partial(progress.advance, task)}
        full = kept_records(
            out / f"full-{name}.jsonl", partial(natural_records, loaded, questions, seeds, **options)
        )
        curve = {
            cap: kept_records(
                out / f"budget{cap}-{name}.jsonl",
                partial(method_records, loaded, "budgetctl", cap, questions, seeds, **options),
            )
            for cap in caps
        }
        for config in configs:
            label = f"{config.method} {config.threshold or config.window}"
            asked = "".join(filter(str.isalnum, config.answer_prompt)) or "nothing"
            label += f" at {turn}" if turn else ""
            asked += f"-at-{turn}" if turn else ""
            file = f"{config.method}{config.threshold or config.window}-{asked}-every-{every or 'line'}-{probe_tokens}-{name}.jsonl"
            records = kept_exits(
                out / file, partial(exit_records, loaded, config, questions, seeds, **options)
            )
            rows.append({"exit": label, **compare(records, full, [full, *curve.values()])})
    write_text(out / "summary.json", json.dumps(rows, indent=1))
    write_text(out / "table.md", table(rows, full, curve) + "\n")
    Console().print(table(rows, full, curve), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
