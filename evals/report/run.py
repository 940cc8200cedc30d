"""A run directory read for the report: its records, its summary, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgetctl.errors import EvalError
from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures.shape import Section, Summary
from budgetctl.evals.measures.summary import read_records, write_summary

#: Name of the section that pools all tasks.
ALL = "all tasks"


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Args:
        folder: its directory.
        label: what tells it from the other runs of the report.
        records: its answers.
        summary: its ``summary.json``.
        about: its ``run.json``; empty without one.
    """

    folder: Path
    label: str
    records: Sequence[Answer]
    summary: Summary
    about: Mapping[str, Any]

    @property
    def sections(self) -> dict[str, Section]:
        """All tasks together, then each; a single task stands for itself."""
        tasks = self.summary["tasks"]
        return dict(tasks) if len(tasks) == 1 else {ALL: self.summary["overall"], **tasks}


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run directories; a summary that is missing, or older than the records, is written anew.

    Raises:
        EvalError: no directory, one given twice, a directory without records, records of other fields, a summary or
            ``run.json`` that cannot be read.
    """
    if not folders:
        raise EvalError(
            "no run directory: expected at least one; name the folder that `budgetctl eval` wrote"
        )
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise EvalError("a run directory is named twice: expected different ones; leave one out")
    read = [(folder, _records(folder), _about(folder)) for folder in folders]
    labels = _labels(resolved)
    return [
        Run(folder, label, records, _summary(folder, len(records)), about)
        for (folder, records, about), label in zip(read, labels, strict=True)
    ]


def _records(folder: Path) -> Sequence[Answer]:
    if not folder.is_dir():
        raise EvalError(f"{folder}: no such directory: expected the folder of a run; correct the path")
    if not (folder / "records.jsonl").is_file():
        raise EvalError(
            f"{folder}: no records.jsonl in it: expected the folder of a run; run `budgetctl eval` first, or correct the path"
        )
    records = list(read_records(folder))
    if not records:
        raise EvalError(
            f"{folder / 'records.jsonl'}: no records: expected at least one answer; run `budgetctl eval` on"
        )
    return records


def _about(folder: Path) -> Mapping[str, Any]:
    path = folder / "run.json"
    return _mapping(path) if path.is_file() else {}


def _summary(folder: Path, records: int) -> Summary:
    path = folder / "summary.json"
    if path.is_file():
        kept = _mapping(path)
        if kept.get("format") == 1 and kept.get("n") == records:
            return kept  # type: ignore[return-value]
    write_summary(folder)
    return _mapping(path)  # type: ignore[return-value]


def _mapping(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise EvalError(
            f"{path}: cannot be read ({error}): expected a JSON object; delete it, or restore it"
        ) from None
    if not isinstance(value, dict):
        raise EvalError(f"{path}: a {type(value).__name__}: expected a JSON object; delete it, or restore it")
    return value


def _labels(folders: Sequence[Path]) -> list[str]:
    """As many last parts of the paths as tell them apart."""
    depth = 1
    while True:
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
        depth += 1
