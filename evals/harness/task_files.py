"""Questions out of files, with the line of whatever is wrong with them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from budgetctl.errors import EvalError
from budgetctl.evals.harness.method import Item

#: Fields of a question and of its answer; the first that a line has is taken.
QUESTION_FIELDS = ("prompt", "question", "problem")
ANSWER_FIELDS = ("answer", "solution", "ground_truth", "final_answer")


def file_items(path: Path, task: str, n: int | None, seed: int) -> list[Item]:
    """Questions of a file of any of the formats that are read; nothing is added to them.

    A row has a question (``QUESTION_FIELDS``) and an answer (``ANSWER_FIELDS``; of ``... #### x``, as GSM8K writes it, the
    ``x``), and may have ``id``, a number as ``level`` or ``difficulty``, and ``task`` and ``entry`` for a verifier of its
    own; without, mathematics is compared by math-verify and other answers as text.

    Args:
        path: .jsonl, .json, .parquet or .csv.
        task: name of the task.
        n: at most so many; None for all.
        seed: of which are taken, and of their order.

    Raises:
        EvalError: a file that cannot be read, or a row without question or answer; the message names the line.
    """
    items = [_item(where, row, task, place) for place, (where, row) in enumerate(file_rows(path))]
    return chosen(items, n, seed, str(path))


def chosen(items: Sequence[Item], n: int | None, seed: int, source: str) -> list[Item]:
    """The first ``n`` in an order that follows from the seed.

    Raises:
        EvalError: there are none.
    """
    if not items:
        raise EvalError(f"{source} is empty: expected questions with answers; add some")
    shuffled = random.Random(seed).sample(list(items), len(items))
    return shuffled[:n]


def file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a file, each with where it stands.

    Raises:
        EvalError: the file or a line cannot be read.
    """
    if not path.is_file():
        raise EvalError(f"no file {path}: expected a file of questions; correct the path")
    if path.suffix == ".jsonl":
        yield from _lines(path)
        return
    from budgetctl.errors import TrainingError
    from budgetctl.training.verifiers import require_package

    require_package("datasets")
    from budgetctl.training.sources import read_dataset

    try:
        rows = read_dataset(path)
    except TrainingError as error:
        raise EvalError(str(error)) from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            why = str(error).splitlines()[0]
            raise EvalError(f"{where} is not JSON ({why}): expected an object; correct the line") from None
        if not isinstance(row, dict):
            raise EvalError(f"{where} is a JSON {type(row).__name__}: expected an object; correct the line")
        yield where, row


def text_of(where: str, row: Mapping[str, Any], names: Sequence[str], what: str) -> str:
    """The text of the first field that a row has.

    Raises:
        EvalError: it has none, or what it has is empty.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value
    raise EvalError(
        f"{where} has no {what}: expected text in {', '.join(names)}; add it, or leave the question out"
    )


def number_of(value: Any) -> float | None:
    """A level, None where it is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def reference(answer: str) -> str:
    """What stands behind the last ``####``, or all of it."""
    return answer.rsplit("####", 1)[-1].strip()


def _item(where: str, row: Mapping[str, Any], task: str, place: int) -> Item:
    given = row.get("id", row.get("unique_id"))
    level = number_of(row.get("level"))
    return Item(
        task=task,
        id=str(place if given is None else given),
        prompt=text_of(where, row, QUESTION_FIELDS, "question"),
        answer=reference(text_of(where, row, ANSWER_FIELDS, "answer")),
        level=number_of(row.get("difficulty")) if level is None else level,
        verifier=str(row.get("task") or ""),
        entry=str(row.get("entry") or ""),
    )
