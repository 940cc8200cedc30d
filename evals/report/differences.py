"""Two runs against each other: the same method and setting on the questions that both asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.metrics import Interval, paired_difference
from budgetctl.evals.report.run import ALL, Run
from budgetctl.evals.report.series import setting_name
from budgetctl.evals.report.tables import NOTHING, Table, Value
from budgetctl.evals.report.words import points, signed, verdict

RESAMPLES = 2000
_Setting = tuple[str, int | None, str | float | None]


def difference_table(runs: Sequence[Run]) -> Table:
    """Each later run less the first, a row a task, method and setting that both have.

    Questions are paired by task and id, with their answers averaged over seeds; the intervals resample questions.
    """
    columns = [
        ("run", "less the first run"),
        ("task", ""),
        ("method", ""),
        ("setting", ""),
        ("questions", "asked in both runs"),
        ("accuracy, points", "difference with its bootstrap interval"),
        ("all tokens", "difference in mean generated tokens a question, with its interval"),
        ("in words", ""),
    ]
    first = runs[0]
    rows = []
    for later in runs[1:]:
        before, after = _answers(first), _answers(later)
        for task in [name for name in later.sections if name in first.sections]:
            for cell in later.sections[task]["cells"]:
                key = (cell["method"], cell["budget"], cell["effort"])
                pairs = _pairs(before.get(key, {}), after.get(key, {}), task)
                setting = setting_name(cell["budget"], cell["effort"])
                values = [Value(text, text) for text in (later.label, task, cell["method"], setting)]
                if not pairs:
                    continue
                values += [Value(str(len(pairs)), len(pairs)), *_changes(pairs, later.label, first.label)]
                tags = {"run": later.label, "task": task, "method": cell["method"], "setting": setting}
                rows.append((tags, values))
    return Table(columns, rows)


def _answers(run: Run) -> dict[_Setting, dict[tuple[str, str], list[Answer]]]:
    """Answers by setting and question."""
    found: dict[_Setting, dict[tuple[str, str], list[Answer]]] = defaultdict(lambda: defaultdict(list))
    for one in run.records:
        found[one.method, one.budget, one.effort][one.task, one.item].append(one)
    return found


def _pairs(
    before: dict[tuple[str, str], list[Answer]], after: dict[tuple[str, str], list[Answer]], task: str
) -> list[tuple[list[Answer], list[Answer]]]:
    return [
        (before[question], answers)
        for question, answers in after.items()
        if question in before and task in (ALL, question[0])
    ]


def _changes(pairs: Sequence[tuple[list[Answer], list[Answer]]], later: str, first: str) -> list[Value]:
    def change(field: str) -> Interval:
        old, new = ([np.mean([getattr(a, field) for a in pair[side]]) for pair in pairs] for side in (0, 1))
        return paired_difference(new, old, resamples=RESAMPLES)

    accuracy, tokens = change("correct"), change("tokens")
    gain = {"mean": accuracy.mean, "low": accuracy.low, "high": accuracy.high}
    said = verdict(gain, later, first) if len(pairs) > 1 else NOTHING  # type: ignore[arg-type]
    return [
        Value(points(gain), accuracy.mean),  # type: ignore[arg-type]
        Value(f"{signed(tokens.mean)} [{signed(tokens.low)}, {signed(tokens.high)}]", tokens.mean),
        Value(said, said),
    ]
