"""``records.jsonl``: appended a batch at a time so that a kill at any byte loses at most what it was writing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from budgetctl.errors import EvalError
from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.output import write_jsonl

RECORDS = "records.jsonl"


def shard(rank: int) -> str:
    """File name of one of several processes."""
    return f"records-{rank}.jsonl"


def read_records(path: Path) -> list[Answer]:
    """The answers of a file, [] where there is none; a last line without its end is torn, and left out.

    Raises:
        EvalError: any other line is no record; the message names it.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    answers = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise EvalError(f"a JSON {type(row).__name__}: expected an object; start a new run")
            answers.append(Answer.from_dict(row))
        except (ValueError, TypeError, EvalError) as error:
            why = " ".join(str(error).split())
            raise EvalError(
                f"{path}, line {number} is no record ({why}): expected one of this version; remove the line, and its "
                "question is asked again"
            ) from None
    return answers


def mend(path: Path) -> None:
    """Cut a torn last line off."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())


def append_records(path: Path, answers: Sequence[Answer]) -> None:
    """Add lines at the end; when this returns they are on the disk."""
    text = "".join(json.dumps(answer.as_dict(), allow_nan=False) + "\n" for answer in answers)
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def merge_shards(folder: Path) -> None:
    """Bring what other processes wrote into ``records.jsonl``, each answer once; a kill in between changes nothing."""
    shards = sorted(folder.glob("records-*.jsonl"))
    if not shards:
        return
    answers = list(unique([a for path in (folder / RECORDS, *shards) for a in read_records(path)]))
    write_jsonl(folder / RECORDS, (answer.as_dict() for answer in answers))
    for path in shards:
        path.unlink()


def unique(answers: Iterable[Answer]) -> Iterable[Answer]:
    """The first answer to each question in each cell."""
    first: dict[tuple[object, ...], Answer] = {}
    for answer in answers:
        first.setdefault((answer.cell, answer.item), answer)
    return first.values()
