"""Tables and plot of ``kv_quality``: more nats a token and equal top-1 tokens, by policy and capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from budgetctl.evals.kv_teacher import Reading, counted, differences, quality
from budgetctl.evals.metrics import Interval

if TYPE_CHECKING:
    from budgetctl.evals.kv_quality import Cell

#: What others are compared with: budgetctl's default policy.
DEFAULT = "diverse-max"
HEADER = ("slots", "cache", "nats a token more [95 %]", "same top-1 [95 %]", f"against {DEFAULT} [95 %]")


def summarise(readings: Mapping[Cell, Reading], length: int, prompt: int) -> list[dict[str, Any]]:
    """One row for each cell but the full cache's; ``worse`` is what it loses more than the default policy at as many
    slots, paired by text."""
    full = next(reading for cell, reading in readings.items() if cell.source == "full")
    defaults = {
        cell.capacity: reading
        for cell, reading in readings.items()
        if cell.source == "budgetctl" and cell.name == DEFAULT
    }
    rows = []
    for cell, reading in readings.items():
        if cell.source == "full":
            continue
        part = counted(length, prompt, cell.capacity)
        found = quality(reading, full, part)
        row: dict[str, Any] = {
            "source": cell.source,
            "name": cell.name,
            "capacity": cell.capacity,
            "share": cell.capacity / length,
            "peak": reading.peak,
            "texts": len(reading.nll),
            "tokens": int(reading.nll[:, part].size),
            "full_nll": float(full.nll[:, part].mean()),
            **_interval("loss", found.loss),
            **_interval("agreement", found.agreement),
        }
        other = defaults.get(cell.capacity)
        if other is not None and other is not reading:
            row |= _interval("worse", differences(reading, other, part))
        rows.append(row)
    return rows


def _interval(name: str, found: Interval) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def label(row: Mapping[str, Any]) -> str:
    """Name of a row's cache, with its source where it is not budgetctl."""
    return str(row["name"]) if row["source"] == "budgetctl" else f"{row['source']} {row['name']}"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def cell(name: str, sign: str = "") -> str:
        if name not in row:
            return ""
        mean, low, high = (row[name + suffix] for suffix in ("", "_low", "_high"))
        return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

    slots = f"{row['capacity']} ({row['share']:.1%})"
    return slots, label(row), cell("loss"), cell("agreement"), cell("worse", "+")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows, least loss first at each capacity."""
    ordered = sorted(rows, key=lambda row: (row["capacity"], row["loss"]))
    lines = [HEADER, ("---",) * len(HEADER), *map(_cells, ordered)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows as a table of the terminal, a section for each capacity."""
    table = Table(*HEADER)
    ordered = sorted(rows, key=lambda row: (row["capacity"], row["loss"]))
    for at, row in enumerate(ordered):
        last = at + 1 == len(ordered) or ordered[at + 1]["capacity"] != row["capacity"]
        table.add_row(*_cells(row), end_section=last)
    console.print(table)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss and agreement against capacity, a line for each cache; kvpress's are dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    names = list(dict.fromkeys((row["source"], row["name"]) for row in rows))
    colours = pyplot.get_cmap("tab10")
    for at, (source, name) in enumerate(names):
        points = sorted(
            (r for r in rows if (r["source"], r["name"]) == (source, name)), key=lambda r: r["capacity"]
        )
        ours = source == "budgetctl"
        default = ours and name == DEFAULT
        style: dict[str, Any] = {
            "color": "black" if default else colours(at % 10),
            "linewidth": 2.4 if default else 1.2,
            "linestyle": "-" if ours else "--",
            "marker": "o" if ours else "x",
            "markersize": 4,
            "zorder": 3 if default else 2,
        }
        shares = [100 * r["share"] for r in points]
        for axes, key in zip(panels, ("loss", "agreement"), strict=True):
            axes.plot(shares, [r[key] for r in points], label=label(points[0]), **style)
            if default:
                axes.fill_between(
                    shares,
                    [r[f"{key}_low"] for r in points],
                    [r[f"{key}_high"] for r in points],
                    color="black",
                    alpha=0.12,
                    linewidth=0,
                )
    panels[0].set_ylabel("nats a token more than with the full cache")
    panels[0].set_yscale("symlog", linthresh=0.02)
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylabel("share of equal top-1 tokens")
    for axes in panels:
        axes.set_xlabel("slots, per cent of the text's length")
        axes.grid(alpha=0.25)
    panels[1].legend(fontsize=7, ncols=2, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
