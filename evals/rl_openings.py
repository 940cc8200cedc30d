"""Does a sentence that names a budget change what a model thinks? ``python -m budgetctl.evals.rl_openings NAME=DIR ...``.

HBPO's question: held-out questions with the thought opened by its sentence under each budget, nothing enforced. Prints
Markdown: mean thinking tokens and accuracy by budget and model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from budgetctl.evals.load import LoadedModel, load_model
from budgetctl.evals.metrics import bootstrap_mean
from budgetctl.evals.output import progress_bar
from budgetctl.evals.runner import chat_prompts
from budgetctl.reasoner.tasks import Question, take_questions
from budgetctl.spelling import decode, encode
from budgetctl.training.rollouts import free
from budgetctl.training.sampler import RowSampler, row_seeds

BATCH = 64


def opened_thoughts(
    loaded: LoadedModel, questions: Sequence[Question], opening: str, limit: int
) -> tuple[list[int], list[bool]]:
    """(thinking tokens, right or not) of each question, its thought opened with ``opening``; noise by question."""
    tokenizer = loaded.tokenizer
    sampler = RowSampler(loaded.model, tokenizer.pad_token_id, loaded.delimiters.eos_ids, round_tokens=32)
    prompts = [encode(tokenizer, text + opening) for text in chat_prompts(tokenizer, questions)]
    lengths, right = [], []
    for start in range(0, len(prompts), BATCH):
        rows = range(start, min(start + BATCH, len(prompts)))
        seeds = row_seeds(0, 0, rows)
        for i, rollout in zip(
            rows, free(sampler, loaded.delimiters, prompts[rows.start : rows.stop], seeds, limit), strict=True
        ):
            ids = rollout.completion_ids
            lengths.append(rollout.thinking_tokens)
            answer = decode(tokenizer, ids[len(ids) - rollout.answer_tokens :])
            right.append(rollout.answer_tokens > 0 and questions[i].is_correct(answer))
    return lengths, right


def main(
    models: Annotated[list[str], typer.Argument(help="NAME=DIRECTORY of each model")],
    budgets: Annotated[str, typer.Option(help="tokens, with commas")] = "24,48,96,120",
    count: Annotated[int, typer.Option("--n", help="held-out questions")] = 256,
    limit: Annotated[int, typer.Option(help="tokens of an answer with its thought")] = 256,
    opening: Annotated[
        str | None, typer.Option(help="opens the thought, with {budget} in it; HBPO's sentence by default")
    ] = None,
) -> None:
    """Print the table."""
    from budgetctl.training.hbpo import OPENING

    named = dict(text.partition("=")[::2] for text in models)
    questions = take_questions("test", count)
    sentence = opening or OPENING
    openings = {"none": ""} | {size: sentence.format(budget=size) for size in budgets.split(",")}
    cells: dict[str, list[str]] = {size: [] for size in openings}
    with progress_bar(Console(stderr=True)) as progress:
        advance = partial(progress.advance, progress.add_task("answering", total=len(named) * len(openings)))
        for folder in named.values():
            loaded = load_model(folder)
            for size, opening in openings.items():
                lengths, right = opened_thoughts(loaded, questions, opening, limit)
                tokens = bootstrap_mean(lengths, resamples=2000)
                accuracy = bootstrap_mean(right, resamples=2000)
                cells[size].append(f"{tokens.mean:.0f} [{tokens.low:.0f}, {tokens.high:.0f}] at {accuracy}")
                advance(1)
    lines = [f"| budget named | {' | '.join(named)} |", "|---" * (len(named) + 1) + "|"]
    lines += [f"| {size} | {' | '.join(row)} |" for size, row in cells.items()]
    Console().print("\n".join(lines), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
