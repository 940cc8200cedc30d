"""How long requests are: as recorded, or drawn from a distribution that was fitted to what was recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from budgetctl.errors import BudgetctlError, InputFileError

#: (method, budget) of records; None stands for what has no limit.
Cell = tuple[str, int | None]
NATURAL: Cell = ("full", None)


@dataclass(frozen=True)
class Lengths:
    """Tokens of recorded requests, arrays [Q] of int64: ``prompt``, ``thinking`` without a limit, ``answer``.

    ``limited`` holds, for methods and budgets that were recorded too, ``thinking`` and ``answer`` of the same requests in
    the same order.
    """

    prompt: np.ndarray
    thinking: np.ndarray
    answer: np.ndarray
    limited: Mapping[Cell, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt)

    def fitted(self, count: int, seed: int) -> Lengths:
        """``count`` requests whose thoughts follow log(1 + L) ~ Gamma, fitted by maximum likelihood; prompts and answers
        are drawn from the recorded ones.

        Raises:
            BudgetctlError: when the thoughts do not differ in length.
        """
        concentration, rate = fit_log_gamma(self.thinking)
        noise = np.random.default_rng(seed)
        rows = noise.integers(len(self), size=count)
        drawn = draw_log_gamma(concentration, rate, count, noise)
        return Lengths(self.prompt[rows], drawn, self.answer[rows])


def fit_log_gamma(thinking: np.ndarray) -> tuple[float, float]:
    """Concentration and rate of log(1 + L) ~ Gamma by maximum likelihood; that is how the length predictor sees
    remaining lengths (Budget Guidance, arXiv 2506.13752).

    Raises:
        BudgetctlError: when the lengths do not differ.
    """
    from scipy import stats

    logs = np.log1p(thinking[thinking > 0])
    if len(logs) < 2 or np.ptp(logs) == 0:
        raise BudgetctlError(
            "thoughts of one length: expected lengths that differ, to fit a distribution; record more requests"
        )
    concentration, _, scale = stats.gamma.fit(logs, floc=0)
    return float(concentration), float(1 / scale)


def draw_log_gamma(concentration: float, rate: float, count: int, noise: np.random.Generator) -> np.ndarray:
    """[count] int64 lengths, at least 1."""
    logs = noise.gamma(concentration, 1 / rate, size=count)
    return np.maximum(np.rint(np.expm1(np.minimum(logs, math.log(1e7)))), 1).astype(np.int64)


def synthetic(concentration: float, rate: float, prompt: int, answer: int, count: int, seed: int) -> Lengths:
    """``count`` requests without a recording: thoughts from log(1 + L) ~ Gamma, prompts and answers of one length.

    Raises:
        BudgetctlError: for values that are not above 0.
    """
    for name, value in {"concentration": concentration, "rate": rate}.items():
        if not 0 < value < math.inf:
            raise BudgetctlError(
                f"{name}={value!r} of the thoughts' lengths: expected a number above 0; correct it"
            )
    drawn = draw_log_gamma(concentration, rate, count, np.random.default_rng(seed))
    return Lengths(np.full(count, prompt, np.int64), drawn, np.full(count, answer, np.int64))


def read_lengths(path: Path, prompt_tokens: int = 64) -> Lengths:
    """Lengths from a file of traces, as ``budgetctl collect`` writes it, or from an evaluation's ``records.jsonl``.

    Args:
        path: JSON lines.
        prompt_tokens: of each prompt where the file does not tell, as records do not.

    Raises:
        InputFileError: naming file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(
            f"{path} cannot be read ({type(error).__name__}): expected traces or records; correct the path"
        ) from None
    first = _json(path, 1, text.partition("\n")[0])
    return _from_traces(path) if "settings" in first else _from_records(path, text, prompt_tokens)


def _from_traces(path: Path) -> Lengths:
    from budgetctl.predictors.traces import load_traces

    traces = [trace for trace in load_traces(path) if trace.closed]
    if not traces:
        raise InputFileError(
            f"{path}: no thought that was closed: expected at least one; collect with more new tokens"
        )
    return Lengths(
        np.array([max(1, len(t.prompt_ids)) for t in traces]),
        np.array([len(t.thought_ids) + len(t.close_ids) for t in traces]),
        np.array([max(1, len(t.answer_ids)) for t in traces]),
    )


def _from_records(path: Path, text: str, prompt_tokens: int) -> Lengths:
    cells: dict[Cell, dict[tuple[str, str, int], tuple[int, int]]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            cell, key, sizes = _record(path, number, _json(path, number, line))
            cells.setdefault(cell, {})[key] = sizes
    natural = next((cells[cell] for cell in cells if cell == NATURAL), None)
    if natural is None:
        raise InputFileError(
            f"{path}: no records of method full: expected the lengths without a limit; evaluate with full too"
        )
    keys = sorted(natural)
    limited = {
        cell: _columns(found, keys)
        for cell, found in cells.items()
        if cell != NATURAL and all(key in found for key in keys)
    }
    thinking, answer = _columns(natural, keys)
    return Lengths(np.full(len(keys), prompt_tokens, np.int64), thinking, answer, limited)


def _columns(found: Mapping[Any, tuple[int, int]], keys: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.array([found[key] for key in keys], np.int64)
    return sizes[:, 0], np.maximum(sizes[:, 1], 1)


def _record(
    path: Path, number: int, row: Mapping[str, Any]
) -> tuple[Cell, tuple[str, str, int], tuple[int, int]]:
    try:
        budget = row["budget"]
        sizes = (row["thinking_tokens"], row["answer_tokens"])
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError("thinking_tokens and answer_tokens are no counts")
        if budget is not None and type(budget) is not int:
            raise ValueError("budget is no count")
        return (str(row["method"]), budget), (str(row["task"]), str(row["item"]), int(row["seed"])), sizes
    except (KeyError, TypeError, ValueError) as error:
        raise InputFileError(
            f"{path}, line {number}: not a record ({type(error).__name__}: {error}): expected what an evaluation writes; "
            "remove the line"
        ) from None


def _json(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputFileError(
            f"{path}, line {number}: no JSON object: expected a trace or a record; remove the line"
        )
    return value
