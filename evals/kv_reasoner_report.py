"""Tables and plot of ``kv_reasoner``: right answers and tokens of thought, by policy and share of the full length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from budgetctl.evals.metrics import bootstrap_mean, paired_difference

if TYPE_CHECKING:
    from budgetctl.evals.kv_reasoner import Answered

#: What others are compared with: budgetctl's default policy.
DEFAULT = "diverse-max"
HEADER = (
    "slots",
    "policy",
    "right answers [95 %]",
    "less than with all [95 %]",
    f"against {DEFAULT} [95 %]",
    "closed thoughts",
    "thinking tokens",
    "more than with all [95 %]",
)


def summarise(
    found: Mapping[tuple[str, float], Sequence[Answered]], full: Sequence[Answered]
) -> list[dict[str, Any]]:
    """One row for the full cache and for each policy and share; differences are paired by question.

    ``lost`` are right answers lost against the full cache, ``worse`` those lost against the default policy at the same
    share, ``longer`` thinking tokens more than with the full cache.
    """
    rows = [_row("full cache", None, full, full)]
    for (name, share), records in found.items():
        row = _row(name, share, records, full)
        if name != DEFAULT and (DEFAULT, share) in found:
            row |= _difference("worse", found[DEFAULT, share], records, "correct")
        rows.append(row)
    return rows


def _row(
    name: str, share: float | None, records: Sequence[Answered], full: Sequence[Answered]
) -> dict[str, Any]:
    accuracy = bootstrap_mean([record.correct for record in records])
    row: dict[str, Any] = {
        "name": name,
        "share": share,
        "questions": len(records),
        "slots": float(np.mean([record.slots for record in records])),
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "closed": float(np.mean([record.closed for record in records])),
        "thinking": float(np.mean([record.thinking for record in records])),
    }
    if share is not None:
        row |= _difference("lost", full, records, "correct")
        row |= _difference("longer", records, full, "thinking")
    return row


def _difference(
    name: str, first: Sequence[Answered], second: Sequence[Answered], key: str
) -> dict[str, float]:
    """Mean of ``first - second`` with its interval."""
    found = paired_difference(
        [float(getattr(record, key)) for record in first], [float(getattr(record, key)) for record in second]
    )
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def cell(name: str, form: str) -> str:
        if name not in row:
            return ""
        mean, low, high = (format(row[name + suffix], form) for suffix in ("", "_low", "_high"))
        return f"{mean} [{low}, {high}]"

    slots = "all" if row["share"] is None else f"{row['share']:.1%} ({row['slots']:.1f})"
    return (
        slots,
        row["name"],
        cell("accuracy", ".3f"),
        cell("lost", "+.3f"),
        cell("worse", "+.3f"),
        f"{row['closed']:.3f}",
        f"{row['thinking']:.1f}",
        cell("longer", "+.1f"),
    )


def _ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: (-2 if row["share"] is None else -row["share"], -row["accuracy"]))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows, from all slots to few, the best first."""
    lines = [HEADER, ("---",) * len(HEADER), *map(_cells, _ordered(rows))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows as a table of the terminal, a section for each share."""
    table = Table(*HEADER)
    ordered = _ordered(rows)
    for at, row in enumerate(ordered):
        last = at + 1 == len(ordered) or ordered[at + 1]["share"] != row["share"]
        table.add_row(*_cells(row), end_section=last)
    console.print(table)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Right answers and thinking tokens against share, a line for each policy; dotted is the full cache."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    names = list(dict.fromkeys(row["name"] for row in rows if row["share"] is not None))
    colours = pyplot.get_cmap("tab10")
    for at, name in enumerate(names):
        points = sorted((row for row in rows if row["name"] == name), key=lambda row: row["share"])
        default = name == DEFAULT
        style: dict[str, Any] = {
            "color": "black" if default else colours(at % 10),
            "linewidth": 2.4 if default else 1.2,
            "marker": "o",
            "markersize": 4,
            "zorder": 3 if default else 2,
        }
        shares = [100 * row["share"] for row in points]
        panels[0].plot(shares, [row["accuracy"] for row in points], label=name, **style)
        panels[1].plot(shares, [row["thinking"] for row in points], label=name, **style)
        if default:
            low, high = ([row[f"accuracy_{end}"] for row in points] for end in ("low", "high"))
            panels[0].fill_between(shares, low, high, color="black", alpha=0.12, linewidth=0)
    for axes, key, title in zip(
        panels, ("accuracy", "thinking"), ("right answers", "thinking tokens"), strict=True
    ):
        for row in rows:
            if row["share"] is None:
                axes.axhline(row[key], color="grey", linestyle=":", label="full cache")
        axes.set_xlabel("slots, per cent of each question's full length")
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    panels[0].legend(fontsize=8, ncols=2, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
