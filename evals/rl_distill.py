"""Examples in which a budget that is named is kept, because the controller kept it: ``python -m budgetctl.evals.rl_distill``.

A model that never saw a budget in its prompt does not learn from its own thoughts what the number means: how long it
thinks on a question hardly varies, so that the question tells the length and the number adds nothing. Under
budgetctl's controller the same question is answered within each budget. Those answers, where they are right, stand here
behind the sentence that names the budget, and one more of each question, without a limit, stands without a sentence.
The sentence is part of the prompt, as in HBPO's rollouts, so it bears no loss. Written as JSON lines for
``budgetctl.training.sft --data``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from budgetctl.evals.adherence import budgeted_records
from budgetctl.evals.load import load_model
from budgetctl.evals.output import progress_bar, write_jsonl
from budgetctl.evals.runner import Record, chat_prompts
from budgetctl.reasoner.tasks import take_questions
from budgetctl.spelling import decode

#: Tokens of a completion that are kept for the close and the answer.
ANSWER_TOKENS = 12


def thinking_of(budget: int, limit: int) -> int:
    """Tokens of thought in a completion of ``budget`` tokens; all that it may have, which binds nothing, for 0."""
    return max(budget - ANSWER_TOKENS, 1) if budget else limit


def distilled_rows(
    prompts: Sequence[str],
    records: Sequence[Record],
    completions: Sequence[str],
    named: Sequence[int],
    opening: str,
) -> list[dict[str, Any]]:
    """An example for each right answer: the prompt, opened with the budget where one is named (0 for none).

    Args:
        prompts: as the model reads them, their thoughts open.
        records: what was answered, in the order of ``prompts``.
        completions: the texts of the answers with their thoughts.
        named: budgets of a completion, in tokens.
        opening: with ``{budget}`` in it.
    """
    return [
        {
            "prompt": prompt + (opening.format(budget=budget) if budget else ""),
            "completion": text,
            "budget": budget,
        }
        for prompt, record, text, budget in zip(prompts, records, completions, named, strict=True)
        if record.correct
    ]


def main(
    out: Annotated[Path, typer.Option(help="JSON lines to write")] = Path("runs/rl/distilled.jsonl"),
    count: Annotated[int, typer.Option("--n", help="questions")] = 1000,
    budgets: Annotated[str, typer.Option(help="tokens of a completion, with commas")] = "24,48,96,120",
    limit: Annotated[int, typer.Option(help="tokens of an answer with its thought")] = 160,
    seed: Annotated[int, typer.Option(help="of questions and sampling")] = 1,
    batch: Annotated[int, typer.Option(help="answers at once")] = 128,
    opening: Annotated[
        str, typer.Option(help="opens the thought, with {budget} in it")
    ] = "Within {budget}.\n",
) -> None:
    """Write the examples."""
    loaded = load_model(with_predictor=True)
    sizes = [0, *(int(budget) for budget in budgets.split(","))]
    questions = [q for q in take_questions("train", count, seed=seed) for _ in sizes]
    named = [size for _ in range(count) for size in sizes]
    thinking = [thinking_of(size, limit) for size in named]
    seeds = [seed * len(named) + i for i in range(len(named))]
    with progress_bar(Console(stderr=True)) as progress:
        advance = partial(progress.advance, progress.add_task("answering", total=len(questions)))
        records = budgeted_records(
            loaded,
            questions,
            thinking,
            seeds=seeds,
            batch_size=batch,
            max_new_tokens=limit,
            answer_reserve=0,
            progress=advance,
        )
    texts = [decode(loaded.tokenizer, record.new_ids) for record in records]
    rows = distilled_rows(chat_prompts(loaded.tokenizer, questions), records, texts, named, opening)
    write_jsonl(out, rows)
    counts = Counter(row["budget"] for row in rows)
    parts = ", ".join(f"{counts[size]} under {size}" for size in sizes[1:])
    Console(stderr=True).print(
        f"{len(rows)} examples of {count} questions ({counts[0]} without a sentence, {parts}): {out}"
    )


if __name__ == "__main__":
    typer.run(main)
