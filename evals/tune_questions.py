"""The questions of ``budgetctl tune``: the embedded reasoner's own, or JSON lines of prompts with their answers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from budgetctl.errors import BudgetctlError, InputFileError
from budgetctl.reasoner.tasks import FAMILIES, Question, questions

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class FileQuestion:
    """A prompt and its answer."""

    prompt: str
    answer: str

    def is_correct(self, answer_text: str) -> bool:
        """A number is right when it is the last one of the text; a word or phrase when it stands in its last line."""
        if _NUMBER.fullmatch(self.answer):
            found = _NUMBER.findall(answer_text)
            return bool(found) and _value(found[-1]) == _value(self.answer)
        lines = answer_text.strip().splitlines()
        wanted = rf"(?<!\w){re.escape(self.answer)}(?!\w)"
        return bool(lines) and re.search(wanted, lines[-1], re.IGNORECASE) is not None


Asked = Question | FileQuestion


def take(
    dev: Path | None, held_out: Path | None, family: str | None, count: int, *, embedded: bool
) -> tuple[list[Asked], list[Asked]]:
    """Dev questions and held-out ones, at most ``count`` of each.

    Raises:
        BudgetctlError: for files of which one is missing, a family of another model, or questions that are in both.
        InputFileError: for a file that cannot be read, and for its first line that is no question.
    """
    if (dev is None) != (held_out is None):
        raise BudgetctlError(
            "--questions and --held-out go together: expected both, so that the result is told on questions it was not chosen by"
        )
    if dev is None or held_out is None:
        if not embedded:
            raise BudgetctlError("--model without --questions and --held-out: expected both; give them")
        if family is not None and family not in FAMILIES:
            raise BudgetctlError(f"--family {family!r}: expected one of {', '.join(FAMILIES)}; correct it")
        first = _own("tune", family, count, set())
        return [*first], [*_own("test", family, count, {q.prompt for q in first})]
    if family is not None:
        raise BudgetctlError("--family with --questions: expected one of them; drop the other")
    own, other = _read(dev)[:count], _read(held_out)[:count]
    both = {q.prompt for q in own} & {q.prompt for q in other}
    if both:
        raise BudgetctlError(
            f"{len(both)} questions are in both files, such as {min(both)!r}: expected other ones to be held out; take them out"
        )
    return [*own], [*other]


def _own(split: str, family: str | None, count: int, without: set[str]) -> list[Question]:
    found: dict[str, Question] = {}
    for question in questions(split):
        if (family is None or question.family == family) and question.prompt not in without:
            found.setdefault(question.prompt, question)
        if len(found) == count:
            break
    return list(found.values())


def _read(path: Path) -> list[FileQuestion]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(
            f"{path} cannot be read ({type(error).__name__}): expected JSON lines; correct the path"
        ) from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            prompt, answer = value["prompt"], value["answer"]
        except (ValueError, KeyError, TypeError, RecursionError):
            prompt, answer = None, None
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = f"{answer:.12g}"
        if (
            not isinstance(prompt, str)
            or not isinstance(answer, str)
            or not prompt.strip()
            or not answer.strip()
        ):
            raise InputFileError(
                f'{path}, line {number} is no question: expected {{"prompt": "...", "answer": "..."}}; correct it'
            )
        found.append(FileQuestion(prompt, answer.strip()))
    if len(found) < 2:
        raise InputFileError(f"{path} has {len(found)} questions: expected at least 2; add some")
    return found


def _value(number: str) -> float:
    return float(number.replace(",", ""))
