"""Examples that show a reasoner what a budget prompt means, before reinforcement: ``python -m budgetctl.evals.rl_warm_up``.

Several thoughts of the embedded reasoner on each question, those with right answers, sorted by the least budget that
holds thought and answer. HBPO's sentence, which names that budget, opens one thought of each budget that a question has
thoughts of: the same question then stands in the data with short thoughts under small budgets and long ones under
large, so that the length cannot be told from the question, as it can where each question has one thought. The
sentence is part of the prompt, as in HBPO's rollouts, so it bears no loss. One more thought of each question stays
without a sentence. Written as JSON lines for ``budgetctl.training.sft --data``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from budgetctl.delimiters import Tokens, find_delimiters
from budgetctl.evals.output import progress_bar, write_jsonl
from budgetctl.evals.runner import chat_prompts
from budgetctl.reasoner.load import load_reasoner
from budgetctl.reasoner.tasks import take_questions
from budgetctl.spelling import decode, encode


def least_budget(length: int, budgets: Iterable[int]) -> int | None:
    """The smallest budget of at least ``length`` tokens; None when there is none."""
    return min((budget for budget in budgets if budget >= length), default=None)


def question_rows(
    prompt: str, completions: Sequence[tuple[str, int]], budgets: Sequence[int], openings: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Examples of one question: its first completion as it is, and the first of each budget with the budget named.

    Args:
        prompt: as the model reads it, its thought open.
        completions: text and tokens of each right completion, in the order of sampling.
        budgets: in tokens of a completion.
        openings: what opens the thought under each budget.
    """
    rows = [{"prompt": prompt, "completion": text, "budget": 0} for text, _ in completions[:1]]
    named: set[int] = set()
    for text, length in completions:
        budget = least_budget(length, budgets)
        if budget is not None and budget not in named:
            named.add(budget)
            rows.append({"prompt": prompt + openings[budget], "completion": text, "budget": budget})
    return rows


def main(
    out: Annotated[Path, typer.Option(help="JSON lines to write")] = Path("runs/rl/warm_up.jsonl"),
    count: Annotated[int, typer.Option("--n", help="questions")] = 600,
    samples: Annotated[int, typer.Option(help="answers sampled for each question")] = 8,
    budgets: Annotated[str, typer.Option(help="tokens, with commas")] = "24,48,96,120",
    limit: Annotated[int, typer.Option(help="tokens of an answer with its thought")] = 160,
    seed: Annotated[int, typer.Option(help="of questions and sampling")] = 1,
    batch: Annotated[int, typer.Option(help="answers at once; the noise depends on it")] = 64,
    opening: Annotated[
        str | None, typer.Option(help="opens the thought, with {budget} in it; HBPO's sentence by default")
    ] = None,
) -> None:
    """Write the examples."""
    # TRL is optional, and evals imports without it.
    from budgetctl.training.hbpo import OPENING
    from budgetctl.training.rollouts import free
    from budgetctl.training.sampler import RowSampler, row_seeds

    model, tokenizer = load_reasoner()
    delimiters = find_delimiters(tokenizer)
    sampler = RowSampler(model, tokenizer.pad_token_id, delimiters.eos_ids, round_tokens=32)
    questions = take_questions("train", count, seed=seed)
    texts = chat_prompts(tokenizer, questions)
    sizes = [int(budget) for budget in budgets.split(",")]
    openings = {size: (opening or OPENING).format(budget=size) for size in sizes}
    right: list[list[tuple[str, int]]] = [[] for _ in questions]
    answers = count * samples
    with progress_bar(Console(stderr=True)) as progress:
        advance = partial(progress.advance, progress.add_task("answering", total=answers))
        for start in range(0, answers, batch):
            chosen = range(start, min(start + batch, answers))
            prompts: list[Tokens] = [encode(tokenizer, texts[row // samples]) for row in chosen]
            found = free(sampler, delimiters, prompts, row_seeds(seed, start, chosen), limit)
            for row, rollout in zip(chosen, found, strict=True):
                ids = rollout.completion_ids
                reply = decode(tokenizer, ids[len(ids) - rollout.answer_tokens :])
                if ids[-1] in delimiters.eos_ids and questions[row // samples].is_correct(reply):
                    right[row // samples].append((decode(tokenizer, ids), len(ids)))
            advance(len(chosen))
    rows = [
        row
        for text, completions in zip(texts, right, strict=True)
        for row in question_rows(text, completions, sizes, openings)
    ]
    write_jsonl(out, rows)
    counts = Counter(row["budget"] for row in rows)
    parts = ", ".join(f"{counts[size]} under {size}" for size in sizes)
    Console(stderr=True).print(
        f"{len(rows)} examples of {count} questions ({counts[0]} without a sentence, {parts}): {out}"
    )


if __name__ == "__main__":
    typer.run(main)
