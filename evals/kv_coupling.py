"""What the coupling of KV budget and thinking budget brings: ``python -m budgetctl.evals.kv_coupling``.

The embedded reasoner answers questions of all levels in mixed batches with as many bytes for keys and values each time:
a cache that knows nothing of thoughts, one that knows where the answers begin, and one pool whose slots go to the rows
by their forecasts; then with thoughts that are told to finish when their slots have lost too much, and under an effort.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import budgetctl
from budgetctl.evals.kv_tables import BATCH
from budgetctl.evals.metrics import bootstrap_mean, paired_difference
from budgetctl.evals.output import progress_bar, write_jsonl
from budgetctl.kv import BudgetCache
from budgetctl.kv.budget import SlotCost
from budgetctl.kv.policies import find_policy
from budgetctl.reasoner.load import PREDICTOR, load_reasoner
from budgetctl.reasoner.tasks import Question, take_questions


@dataclass(frozen=True)
class Answered:
    """A question's outcome; ``tokens`` are all that were written."""

    right: bool
    thinking_tokens: int
    tokens: int
    closed: bool


def answer(
    installation: Any,
    questions: Sequence[Question],
    *,
    slots: int | None = None,
    coupled: bool = True,
    pool: bool = False,
    max_new_tokens: int = 300,
    **knobs: Any,
) -> list[Answered]:
    """Greedy answers in left-padded batches.

    Args:
        installation: of budgetctl on the reasoner.
        questions: a multiple of nothing; the last batch may be smaller.
        slots: a head of each row on average; None for a full cache.
        coupled: whether the cache is told of thoughts and answers.
        pool: whether the rows share the bytes of ``slots`` each, rather than have them each for itself.
        max_new_tokens: thought and answer.
        knobs: of ``generate``.
    """
    model, tokenizer = installation.model, installation.tokenizer
    tokenizer.padding_side = "left"
    found = []
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question.prompt}], add_generation_prompt=True, tokenize=False
            )
            for question in part
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        options = dict(knobs)
        if slots is not None and not coupled:
            model.set_attn_implementation("budget_kv")
            options["past_key_values"] = BudgetCache(model.config, slots)
        elif slots is not None:
            options["kv_budget"] = f"{pool_bytes(model, slots, len(part))}B" if pool else slots
        sequences = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **options)
        if not coupled:
            model.set_attn_implementation("sdpa")
        for question, report, row in zip(
            part,
            installation.reports(sequences),
            sequences[:, inputs["input_ids"].shape[1] :].tolist(),
            strict=True,
        ):
            written = row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row
            _, mark, text = tokenizer.decode(written).partition("</think>")
            right = bool(mark) and question.is_correct(text)
            found.append(Answered(right, report.thinking_tokens, len(written), bool(mark)))
    return found


def pool_bytes(model: Any, slots: int, rows: int) -> int:
    """Bytes that ``rows`` of ``slots`` slots take under the default policy."""
    cost = SlotCost.of(model.config, model.dtype, find_policy(None).fitted(slots))
    return rows * (cost.fixed + slots * cost.slot)


def cases(
    capacities: Sequence[int], losses: Sequence[float], efforts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Name and options of :func:`answer`, the full cache first under each effort."""
    found: dict[str, dict[str, Any]] = {}
    for effort in (None, *efforts):
        knobs = {} if effort is None else {"effort": effort}
        after = "" if effort is None else f", effort {effort}"
        found[f"full{after}"] = knobs
        for slots in capacities:
            if effort is None:
                found[f"{slots}, uncoupled"] = {"slots": slots, "coupled": False}
            found[f"{slots}, each{after}"] = {"slots": slots, **knobs}
            found[f"{slots}, pool{after}"] = {"slots": slots, "pool": True, **knobs}
            for loss in losses if effort is None else ():
                name = f"{slots}, pool, kv_max_loss={loss:g}"
                found[name] = {"slots": slots, "pool": True, "kv_max_loss": loss}
    return found


def run(
    questions: int = typer.Option(256, min=1, help="of the test split, all levels"),
    capacities: Annotated[str, typer.Option(help="slots a head of each row, by commas")] = "64,48,40",
    losses: Annotated[str, typer.Option(help="values of kv_max_loss, by commas")] = "1,4,16",
    efforts: Annotated[str, typer.Option(help="efforts, by commas; empty for none")] = "medium",
    out: Annotated[
        Path, typer.Option(help="records of each case; a run goes on with those that are there")
    ] = Path("runs/kv_coupling"),
) -> None:
    """The table as Markdown; differences are paired by question, with 95 % bootstrap intervals."""
    model, tokenizer = load_reasoner()
    installation = budgetctl.install(model, tokenizer, predictor=str(PREDICTOR))
    asked = take_questions("test", questions)
    todo = cases(
        [int(each) for each in capacities.split(",")],
        [float(each) for each in losses.split(",") if each],
        [each for each in efforts.split(",") if each],
    )
    console = Console(stderr=True)
    records: dict[str, list[Answered]] = {}
    with progress_bar(console) as bar:
        task = bar.add_task("cases", total=len(todo))
        for name, options in todo.items():
            records[name] = kept(
                out / f"{name} of {questions}.jsonl", partial(answer, installation, asked, **options)
            )
            bar.advance(task)
    Console().print("\n".join(table(records)), markup=False, highlight=False, soft_wrap=True)


def kept(path: Path, make: Callable[[], list[Answered]]) -> list[Answered]:
    """Records of an earlier run at ``path``; made now, and written whole, where there are none."""
    if path.exists():
        return [Answered(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    found = make()
    write_jsonl(path, map(vars, found))
    return found


def table(records: dict[str, list[Answered]]) -> list[str]:
    """Markdown lines of :func:`cases` that were answered, each beside the full cache of its effort."""
    lines = [
        "| slots a row | accuracy [95 %] | against the full cache | thinking tokens | closed |",
        "|---" * 5 + "|",
    ]
    for name, found in records.items():
        effort = name[name.index(", effort") :] if ", effort" in name else ""
        right = [each.right for each in found]
        lost = paired_difference(right, [each.right for each in records[f"full{effort}"]])
        tokens = sum(each.thinking_tokens for each in found) / len(found)
        closed = sum(each.closed for each in found) / len(found)
        lines.append(f"| {name} | {bootstrap_mean(right)} | {lost} | {tokens:.1f} | {closed:.3f} |")
    return lines


if __name__ == "__main__":
    typer.run(run)
