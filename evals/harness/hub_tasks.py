"""Benchmarks of the Hugging Face hub, or local files with the same columns."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgetctl.errors import EvalError, TrainingError
from budgetctl.evals.harness.method import Item
from budgetctl.evals.harness.task_files import chosen, file_rows, number_of, reference, text_of
from budgetctl.training.verifiers import CHOICE, LITERAL, require_package

BOXED = "Put the final answer within \\boxed{}."
LETTERS = "ABCD"

#: Makes a question of (where the row stands, row, place, seed); ``task`` is filled in later.
MakeItem = Callable[[str, Mapping[str, Any], int, int], Item]


@dataclass(frozen=True)
class HubTask:
    """Where a benchmark is, and how its rows become questions.

    Args:
        source: hub id.
        name: configuration; None for the default.
        split: that is asked.
        make: of each row.
    """

    source: str
    name: str | None
    split: str
    make: MakeItem


def hub_items(task: str, n: int | None, seed: int, path: Path | None = None) -> list[Item]:
    """Questions of a benchmark.

    Args:
        task: name in ``HUB_TASKS``.
        n: at most so many; None for all.
        seed: of which are taken, of their order, and of the order of choices.
        path: a file with the benchmark's columns, in place of the hub.

    Raises:
        EvalError: a row without question or answer, or one that cannot be judged.
        TrainingError: the hub cannot be read, or a package is missing.
    """
    hub = HUB_TASKS[task]
    require_package("math_verify")
    rows = _hub_rows(hub) if path is None else file_rows(path)
    items = [hub.make(where, row, place, seed) for place, (where, row) in enumerate(rows)]
    named = [Item(task, i.id, i.prompt, i.answer, i.level, i.verifier, i.entry) for i in items]
    return chosen(named, n, seed, hub.source if path is None else str(path))


def _hub_rows(hub: HubTask) -> Iterator[tuple[str, Mapping[str, Any]]]:
    require_package("datasets")
    from budgetctl.training.sources import read_dataset

    try:
        rows = read_dataset(hub.source, hub.name, hub.split)
    except TrainingError as error:
        raise EvalError(f"{error}; or give a file with its columns as name=path") from error
    for number, row in enumerate(rows, start=1):
        yield f"{hub.source}, row {number}", row


def _mathematics(where: str, row: Mapping[str, Any], place: int, seed: int) -> Item:
    """``problem`` or ``question``, and ``answer`` (MATH-500, GSM8K, AIME)."""
    question = text_of(where, row, ("problem", "question"), "question")
    given = row.get("unique_id", row.get("id"))
    return Item(
        task="",
        id=str(place if given is None else given),
        prompt=f"{question.rstrip()}\n{BOXED}",
        answer=reference(text_of(where, row, ("answer",), "answer")),
        level=number_of(row.get("level")),
    )


def _choices(where: str, row: Mapping[str, Any], place: int, seed: int) -> Item:
    """``Question``, ``Correct Answer``, ``Incorrect Answer 1`` to ``3`` (GPQA), in an order that follows from the seed."""
    question = text_of(where, row, ("Question",), "question")
    right = text_of(where, row, ("Correct Answer",), "answer").strip()
    wrong = [text_of(where, row, (f"Incorrect Answer {i}",), f"choice {i}").strip() for i in (1, 2, 3)]
    given = str(row.get("Record ID") or place)
    order = random.Random(f"{seed}:{given}").sample(range(4), 4)
    choices = [[right, *wrong][at] for at in order]
    lines = "\n".join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return Item(
        task="",
        id=given,
        prompt=f"{question.strip()}\n\n{lines}\n\nPut the letter of the right choice within \\boxed{{}}.",
        answer=LETTERS[order.index(0)],
        verifier=CHOICE,
    )


def _execution(where: str, row: Mapping[str, Any], place: int, seed: int) -> Item:
    """``code``, ``input``, ``output`` (LiveCodeBench's code execution): what does a call return?"""
    if "code" not in row and ("starter_code" in row or "public_test_cases" in row):
        raise EvalError(
            f"{where} asks for a program, which is judged by running it, and code of a model is not run here: expected rows of "
            "LiveCodeBench's code execution with code, input and output; take livecodebench/execution-v2"
        )
    code = text_of(where, row, ("code",), "question").strip()
    call = text_of(where, row, ("input",), "call").strip()
    levels = {"easy": 1.0, "medium": 2.0, "hard": 3.0}
    given = row.get("id", place)
    return Item(
        task="",
        id=str(given),
        prompt=(
            f"What does `{call}` return?\n\n```python\n{code}\n```\n\nGive the value as a Python literal, after "
            '"Answer:" on the last line.'
        ),
        answer=text_of(where, row, ("output",), "answer").strip(),
        level=levels.get(str(row.get("difficulty")).lower()),
        verifier=LITERAL,
    )


#: Benchmarks by name.
HUB_TASKS: dict[str, HubTask] = {
    "math500": HubTask("HuggingFaceH4/MATH-500", None, "test", _mathematics),
    "gsm8k": HubTask("openai/gsm8k", "main", "test", _mathematics),
    "aime24": HubTask("HuggingFaceH4/aime_2024", None, "train", _mathematics),
    "aime25": HubTask("math-ai/aime25", None, "test", _mathematics),
    "gpqa-diamond": HubTask("Idavidrein/gpqa", "gpqa_diamond", "train", _choices),
    "livecodebench": HubTask("livecodebench/execution-v2", None, "test", _execution),
}
