"""The records of a run, read and put in order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from budgetctl.errors import EvalError
from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures.adherence import CLOSES

RECORDS = "records.jsonl"
NAMES = ("task", "item", "method", "close")
EFFORT_ORDER = {word: at for at, word in enumerate(("minimal", "low", "medium", "high", "xhigh", "max"))}
COUNTS = ("thinking_tokens", "answer_tokens", "overhead_tokens", "read_tokens", "seconds")


def read_records(run_dir: Path) -> list[Answer]:
    """The answers of ``records.jsonl``, in the order of the file.

    Raises:
        EvalError: the file is missing or empty, or a line is no answer; the message names the line.
    """
    path = run_dir / RECORDS
    if not path.is_file():
        raise EvalError(f"no {RECORDS} in {run_dir}: expected the folder of a run; run the evaluation first")
    answers = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                answers.append(_answer(line))
            except (ValueError, TypeError, KeyError) as reason:
                raise EvalError(
                    f"{path}:{number}: {_one_line(reason)}: expected one answer a line; remove the line and run the "
                    "evaluation again, which answers what is missing"
                ) from reason
    if not answers:
        raise EvalError(f"{path} holds no answers: expected one a line; run the evaluation first")
    return answers


def setting_order(answer: Answer) -> tuple[Any, ...]:
    """Sorts by method, budget, effort, none last; words before numbers."""
    effort = answer.effort
    number = float(effort) if isinstance(effort, (int, float)) else 0.0
    word = effort if isinstance(effort, str) else ""
    return (
        answer.method,
        answer.budget is None,
        answer.budget or 0,
        effort is None,
        not word,
        EFFORT_ORDER.get(word, len(EFFORT_ORDER)),
        word,
        number,
    )


def ordered(answers: Iterable[Answer]) -> list[Answer]:
    """By task, method, setting, question and seed, so that nothing measured depends on the order of a file.

    Raises:
        EvalError: there are none, or two answer the same question under the same setting and seed.
    """
    found = sorted(answers, key=lambda one: (one.task, *setting_order(one), one.item, one.seed))
    if not found:
        raise EvalError("no answers to summarise: expected at least one; run the evaluation first")
    for first, second in pairwise(found):
        if (first.cell, first.item) == (second.cell, second.item):
            raise EvalError(
                f"two answers of {first.method} to question {first.item} of {first.task} at budget {first.budget}, effort "
                f"{first.effort}, seed {first.seed}: expected one; remove one of them from {RECORDS}"
            )
    return found


def question_keys(answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """What tells questions apart across tasks."""
    return [(one.task, one.item) for one in answers]


def _answer(line: bytes) -> Answer:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError(f"a JSON {type(row).__name__}")
    answer = Answer.from_dict(row)
    for name in NAMES:
        if not isinstance(getattr(answer, name), str):
            raise TypeError(f"{name} {getattr(answer, name)!r} is no text")
    if answer.close not in CLOSES:
        raise ValueError(f"close {answer.close!r} is none of {', '.join(CLOSES)}")
    for name in COUNTS:
        value = getattr(answer, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{name} {value!r} is not a number from 0")
    return answer


def _one_line(reason: Exception) -> str:
    return " ".join(str(reason).split())
