"""A run in numbers: ``summary.json`` and ``table.md``, made of its records alone. The shape is that of
:mod:`budgetctl.evals.measures.shape`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures.cells import Resampling, column, measured
from budgetctl.evals.measures.compare import compared
from budgetctl.evals.measures.methods import measured_method, method_points
from budgetctl.evals.measures.records import ordered, question_keys, read_records, setting_order
from budgetctl.evals.measures.shape import Section, Summary
from budgetctl.evals.measures.table import main_table
from budgetctl.evals.output import write_text

SUMMARY, TABLE = "summary.json", "table.md"
REFERENCE, BASE = "hard-cut", "full"
FORMAT = 1


def summarise_run(
    answers: Sequence[Answer],
    reference: str = REFERENCE,
    base: str = BASE,
    how: Resampling = Resampling(),  # noqa: B008
) -> Summary:
    """All measures of a run; the order of the answers does not matter.

    Args:
        answers: of all tasks, methods, settings and seeds.
        reference: method that the others are compared with.
        base: method without a limit, whose tokens and accuracy others are divided by.
        how: intervals are made.

    Raises:
        EvalError: there are no answers, or two of one question under one setting and seed.
    """
    found = ordered(answers)
    methods = {one.method for one in found}
    tasks = {task: list(some) for task, some in groupby(found, lambda one: one.task)}
    return Summary(
        format=FORMAT,
        n=len(found),
        reference=reference if reference in methods else None,
        base=base if base in methods else None,
        confidence=how.confidence,
        resamples=how.resamples,
        tasks={task: _section(some, reference, base, how, True) for task, some in tasks.items()},
        overall=_section(found, reference, base, how, len(tasks) == 1),
    )


def write_summary(run_dir: Path, reference: str = REFERENCE, base: str = BASE) -> Path:
    """Write ``summary.json`` and ``table.md`` beside the records of a run, each whole or not at all.

    Returns:
        The path of ``summary.json``.

    Raises:
        EvalError: as :func:`~budgetctl.evals.measures.records.read_records` and :func:`summarise_run`.
    """
    summary = summarise_run(read_records(run_dir), reference, base)
    write_text(run_dir / TABLE, main_table(summary))
    write_text(run_dir / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return run_dir / SUMMARY


def _section(answers: list[Answer], reference: str, base: str, how: Resampling, by_level: bool) -> Section:
    answers = sorted(answers, key=setting_order)
    settings = [list(some) for _, some in groupby(answers, setting_order)]
    free = [one for one in answers if (one.method, one.budget, one.effort) == (base, None, None)]
    base_tokens = float(column(free, "tokens").mean()) if free else None
    cells = [measured(some, how, base_tokens, by_level) for some in settings]
    curve = [some for some in settings if some[0].method == reference]
    points = method_points([cell for cell in cells if cell["method"] == reference]) or None
    methods = {
        method: measured_method(
            [one for one in answers if one.method == method],
            [cell for cell in cells if cell["method"] == method],
            None if method == reference else points,
            free,
            how,
        )
        for method in sorted({one.method for one in answers})
    }
    others = [some for some in settings if some[0].method != reference] if curve else []
    return Section(
        n=len(answers),
        questions=len(set(question_keys(answers))),
        cells=cells,
        methods=methods,
        comparisons=[compared(some, curve, how) for some in others],
    )
