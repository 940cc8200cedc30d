"""Examples that show a reasoner what a budget prompt means, before reinforcement: ``python -m budgetctl.evals.rl_warm_up``.

The embedded reasoner's own right answers, each once as it is and once with its thought opened by HBPO's sentence, which
names the least budget that holds thought and answer. The sentence is part of the prompt, as in HBPO's rollouts, so it
bears no loss. Written as JSON lines for ``budgetctl.training.sft --data``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from budgetctl.delimiters import Tokens, find_delimiters
from budgetctl.evals.output import progress_bar, write_jsonl
from budgetctl.evals.runner import chat_prompts
from budgetctl.reasoner.load import load_reasoner
from budgetctl.reasoner.tasks import take_questions
from budgetctl.spelling import decode, encode
from budgetctl.training.rollouts import free
from budgetctl.training.sampler import RowSampler, row_seeds

BATCH = 64


def least_budget(length: int, budgets: list[int]) -> int | None:
    """The smallest budget of at least ``length`` tokens; None when there is none."""
    return min((budget for budget in budgets if budget >= length), default=None)


def main(
    out: Annotated[Path, typer.Option(help="JSON lines to write")] = Path("runs/rl/warm_up.jsonl"),
    count: Annotated[int, typer.Option("--n", help="questions, one sampled answer each")] = 1500,
    budgets: Annotated[str, typer.Option(help="tokens, with commas")] = "24,48,96,120",
    limit: Annotated[int, typer.Option(help="tokens of an answer with its thought")] = 160,
    seed: Annotated[int, typer.Option(help="of questions and sampling")] = 1,
) -> None:
    """Write the examples."""
    from budgetctl.training.hbpo import OPENING

    model, tokenizer = load_reasoner()
    delimiters = find_delimiters(tokenizer)
    sampler = RowSampler(model, tokenizer.pad_token_id, delimiters.eos_ids, round_tokens=32)
    questions = take_questions("train", count, seed=seed)
    texts = chat_prompts(tokenizer, questions)
    sizes = [int(budget) for budget in budgets.split(",")]
    rows = []
    with progress_bar(Console(stderr=True)) as progress:
        advance = partial(progress.advance, progress.add_task("answering", total=count))
        for start in range(0, count, BATCH):
            chosen = range(start, min(start + BATCH, count))
            prompts: list[Tokens] = [encode(tokenizer, texts[i]) for i in chosen]
            answers = free(sampler, delimiters, prompts, row_seeds(seed, start, chosen), limit)
            for i, rollout in zip(chosen, answers, strict=True):
                ids = rollout.completion_ids
                reply = decode(tokenizer, ids[len(ids) - rollout.answer_tokens :])
                if ids[-1] not in delimiters.eos_ids or not questions[i].is_correct(reply):
                    continue
                rows.append({"prompt": texts[i], "completion": decode(tokenizer, ids)})
                budget = least_budget(len(ids), sizes)
                if budget is not None:
                    rows.append({**rows[-1], "prompt": texts[i] + OPENING.format(budget=budget)})
            advance(len(chosen))
    write_jsonl(out, rows)
    Console(stderr=True).print(f"{len(rows)} examples of {count} questions: {out}")


if __name__ == "__main__":
    typer.run(main)
