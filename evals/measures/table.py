"""The main table of a summary, in Markdown."""

from __future__ import annotations

from typing import Any

from budgetctl.evals.measures.shape import Cell, Comparison, MeanInterval, Section, Summary
from budgetctl.evals.metrics import Interval

COLUMNS = (
    "method",
    "setting",
    "n",
    "accuracy",
    "thinking tokens",
    "all tokens",
    "overhead tokens",
    "natural close",
    "over limit",
    "leaks",
    "s/question",
)


def main_table(summary: Summary) -> str:
    """A table for all tasks together, then one for each task if there are several."""
    parts = [_section("All tasks", summary["overall"], summary)]
    if len(summary["tasks"]) > 1:
        parts += [_section(task, section, summary) for task, section in summary["tasks"].items()]
    confidence = 100 * summary["confidence"]
    note = (
        f"Intervals: {confidence:g} %, {summary['resamples']} resamples of the questions. All tokens: thought, answer and "
        "overhead; prompts that are read again are not among them. Gains: of accuracy, on the same questions and seeds; at "
        "equal tokens, against two settings mixed to use as many tokens (* outside those settings: against the nearest)."
    )
    return "\n\n".join([*parts, note]) + "\n"


def _section(title: str, section: Section, summary: Summary) -> str:
    head = list(COLUMNS)
    if summary["reference"]:
        head += [f"gain over {summary['reference']}, same budget", "gain at equal tokens"]
    gains = {_setting(one): one for one in section["comparisons"]}
    rows = [_row(cell, gains.get(_setting(cell)), len(head)) for cell in section["cells"]]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]
    return f"## {title} ({section['questions']} questions)\n\n" + "\n".join(lines)


def _row(cell: Cell, comparison: Comparison | None, width: int) -> str:
    values = [
        cell["method"].replace("|", "\\|"),
        setting_name(cell["budget"], cell["effort"]),
        str(cell["n"]),
        str(Interval(**cell["accuracy"])),
        f"{cell['thinking_tokens']['mean']:.1f}",
        f"{cell['tokens']['mean']:.1f}",
        f"{cell['overhead_tokens']['mean']:.1f}",
        f"{cell['close']['natural']:.2f}",
        "" if cell["violation"] is None else f"{cell['violation']:.2f}",
        f"{cell['leak']:.2f}",
        f"{cell['seconds']['mean']:.3g}",
    ]
    if comparison:
        matched = comparison["matched"]
        values.append(_gain(comparison["gain"]))
        values.append(_gain(matched["gain"]) + ("" if matched["inside"] else " *") if matched else "")
    values += [""] * (width - len(values))
    return "| " + " | ".join(values) + " |"


def setting_name(budget: int | None, effort: str | float | None) -> str:
    """``64``, ``effort low``, both, or ``none``."""
    words = [] if budget is None else [str(budget)]
    if effort is not None:
        words.append(f"effort {effort}")
    return ", ".join(words) or "none"


def _gain(gain: MeanInterval | None) -> str:
    return "" if gain is None else f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def _setting(one: Any) -> tuple[Any, ...]:
    return one["method"], one["budget"], one["effort"]
