"""Prompts in a JSON-lines file: each line an object with ``prompt`` and perhaps its own limits and plan, or a plain string."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from budgetctl.cli.requests import LIMITS
from budgetctl.errors import BudgetctlError, InputFileError

FIELDS = ("prompt", *LIMITS, "plan")

T = TypeVar("T")


@dataclass(frozen=True)
class BadLine:
    """A line (counted from 1) that cannot be used, and why."""

    line: int
    error: str

    def as_dict(self) -> dict[str, object]:
        return {"line": self.line, "error": self.error}


def read_batch_file(path: Path, make: Callable[[dict[str, object]], T]) -> tuple[list[T], list[BadLine]]:
    """What ``make`` makes of every line, and the lines that it or the format refuses; empty lines are skipped.

    Raises:
        InputFileError: when the file cannot be read or has nothing in it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be read ({error.strerror or type(error).__name__}): expected a file of JSON lines; "
            "correct the path"
        ) from error
    made: list[T] = []
    bad: list[BadLine] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            made.append(make(_parse(line)))
        except BudgetctlError as error:
            bad.append(BadLine(number, str(error)))
    if not made and not bad:
        raise InputFileError(
            f'{path} is empty: expected a line {{"prompt": "..."}} for each prompt; add some'
        )
    return made, bad


def _parse(line: bytes) -> dict[str, object]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise InputFileError("not UTF-8: expected a JSON object or string; convert the file") from None
    except (ValueError, RecursionError) as error:
        raise InputFileError(
            f"not JSON ({str(error).splitlines()[0]}): expected an object or a string; correct the line"
        ) from None
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise InputFileError(
            f"a JSON {type(value).__name__}: expected an object or a string; correct the line"
        )
    unknown = sorted(set(value) - set(FIELDS))
    if unknown:
        raise InputFileError(
            f"unknown field {unknown[0]!r}: expected {', '.join(FIELDS)}; correct or remove it"
        )
    return value
