"""What a KV budget does to the embedded reasoner: right answers and length of thoughts, by policy and capacity.

``python -m budgetctl.evals.kv_reasoner``. Each question is answered greedily with a full cache first; what it took then,
prompt and all, is its full length, and capacities are shares of that, row by row. Writes one file of records for each
policy and share, ``summary.json``, ``table.md`` and ``reasoner.png`` to ``--out``; an interrupted run goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from budgetctl.evals.kv_reasoner_report import draw, markdown, show, summarise
from budgetctl.evals.kv_variants import parse_variant
from budgetctl.evals.output import progress_bar, write_jsonl, write_text
from budgetctl.evals.runner import chat_prompts
from budgetctl.kv import POLICIES, BudgetCache
from budgetctl.reasoner.load import load_reasoner
from budgetctl.reasoner.tasks import Question, take_questions

#: Fewest slots of a row: four sinks, two recent tokens, and two to choose from.
LEAST = 8
#: New tokens after which a row that has not ended is given up.
MOST = 300


@dataclass(frozen=True)
class Answered:
    """One question: tokens of prompt, thought and all that was written, whether the thought was closed and the answer right."""

    index: int
    slots: int
    prompt: int
    thinking: int
    written: int
    closed: bool
    correct: bool


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    batches: Sequence[Sequence[int]],
    slots: Sequence[int],
    make_cache: Callable[[list[int]], Cache],
    *,
    most: int = MOST,
) -> list[Answered]:
    """Greedy answers to the questions of left-padded batches.

    Args:
        model: with the attention function that the caches need.
        tokenizer: of the model.
        questions: all of them.
        batches: their indices.
        slots: of each question, for the record.
        make_cache: from the slots of a batch's rows.
        most: new tokens.

    Returns:
        in the order of the questions.
    """
    prompts = chat_prompts(tokenizer, questions)
    close = tokenizer.convert_tokens_to_ids("</think>")
    found = []
    for rows in batches:
        inputs = tokenizer(
            [prompts[i] for i in rows],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        sequences = model.generate(
            **inputs,
            max_new_tokens=most,
            do_sample=False,
            past_key_values=make_cache([slots[i] for i in rows]),
        )
        new = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        lengths = inputs["attention_mask"].sum(1).tolist()
        for i, prompt, ids in zip(rows, lengths, new, strict=True):
            if tokenizer.eos_token_id in ids:
                ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
            closed = close in ids
            thinking = ids.index(close) if closed else len(ids)
            correct = closed and questions[i].is_correct(tokenizer.decode(ids[thinking + 1 :]))
            found.append(Answered(i, slots[i], prompt, thinking, len(ids), closed, correct))
    return sorted(found, key=lambda record: record.index)


def similar(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of ``size``, rows of similar length together."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def equal(slots: Sequence[int], batches: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The batches, divided into rows of equal capacity."""
    for rows in batches:
        for capacity in sorted({slots[i] for i in rows}):
            yield [i for i in rows if slots[i] == capacity]


def under_budget(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    full: Sequence[Answered],
    variant: str,
    share: float,
    *,
    size: int = 32,
    most: int = MOST,
) -> list[Answered]:
    """Answers when each row holds ``share`` of what it took with a full cache, at least :data:`LEAST` slots.

    Args:
        model: the reasoner.
        tokenizer: of it.
        questions: all of them.
        full: their answers with a full cache.
        variant: a policy, as ``kv_variants`` reads it.
        share: in (0, 1].
        size: rows of a batch. Its policy's interval and its recent tokens are those of its smallest row.
        most: new tokens.
    """
    lengths = [record.prompt + record.written for record in full]
    slots = [max(math.ceil(share * length), LEAST) for length in lengths]
    batches: list[list[int]] = similar(lengths, size)
    policy, options = parse_variant(variant)
    if policy.shared_heads:
        batches = list(equal(slots, batches))

    def make(capacities: list[int]) -> BudgetCache:
        if len(set(capacities)) == 1:
            return BudgetCache(model.config, capacities[0], policy, **options)
        return BudgetCache.by_row(model.config, capacities, policy, **options)

    model.set_attn_implementation("budget_kv")
    return answer(model, tokenizer, questions, batches, slots, make, most=most)


def kept_answers(path: Path, make: Callable[[], list[Answered]]) -> list[Answered]:
    """The records of an earlier run at ``path``; made now, and written whole, when there are none."""
    if path.exists():
        return [Answered(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    records = make()
    write_jsonl(path, map(asdict, records))
    return records


def main(
    questions: Annotated[int, typer.Option(min=1, help="of at least five operations")] = 256,
    split: Annotated[str, typer.Option(help="tune, or test")] = "test",
    shares: Annotated[
        str, typer.Option(help="slots as shares of each question's full length, by commas")
    ] = "0.125,0.25,0.375,0.5,0.75,1",
    policies: Annotated[str, typer.Option(help="by semicolons, as kv_quality has them")] = ";".join(POLICIES),
    out: Annotated[Path, typer.Option(help="folder")] = Path("runs/kv-reasoner"),
    as_json: Annotated[bool, typer.Option("--json", help="the summary on stdout")] = False,
) -> None:
    """Answer all questions with a full cache, and under every policy and share."""
    model, tokenizer = load_reasoner()
    asked = take_questions(split, questions, min_level=5)
    folder = out / f"{split}-{questions}"
    names, parts = policies.split(";"), [float(share) for share in shares.split(",")]

    def with_full_cache() -> list[Answered]:
        model.set_attn_implementation("sdpa")
        batches = similar([len(question.prompt) for question in asked], 32)
        return answer(model, tokenizer, asked, batches, [0] * len(asked), lambda _: DynamicCache())

    full = kept_answers(folder / "full.jsonl", with_full_cache)
    found: dict[tuple[str, float], list[Answered]] = {}
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("answering", total=len(names) * len(parts))
        for share in parts:
            for name in names:

                def make(name: str = name, share: float = share) -> list[Answered]:
                    return under_budget(model, tokenizer, asked, full, name, share)

                safe = "".join(c if c.isalnum() or c in "-.=" else "_" for c in name)
                found[name, share] = kept_answers(folder / f"{safe}-{share:g}.jsonl", make)
                progress.advance(task)
    rows = summarise(found, full)
    write_text(folder / "summary.json", json.dumps(rows, indent=1) + "\n")
    write_text(folder / "table.md", markdown(rows) + "\n")
    draw(rows, folder / "reasoner.png")
    if as_json:
        Console().print(json.dumps(rows), markup=False, highlight=False, soft_wrap=True)
    else:
        show(rows, Console())


if __name__ == "__main__":
    typer.run(main)
