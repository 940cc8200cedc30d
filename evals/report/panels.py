"""One panel of each curve, drawn from a section of ``summary.json`` on matplotlib axes.

A function that finds nothing to draw returns False, and its panel is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from budgetctl.evals.measures.shape import Cell, MeanInterval, Section
from budgetctl.evals.report.series import (
    FAINT,
    GROUND,
    INK,
    Series,
    cells_of,
    kinds,
)

#: A section of each run in which the task of the panel was asked, by the run's place.
Sections = dict[int, Section]
Panel = Callable[[Any, Sequence[Series], Sections], bool]


def thought_and_overhead(cell: Cell) -> float:
    """Mean tokens of a question before its answer."""
    return cell["thinking_tokens"]["mean"] + cell["overhead_tokens"]["mean"]


def accuracy_by_thinking(axes: Any, series: Sequence[Series], sections: Sections) -> bool:
    """Accuracy against mean thinking and overhead tokens."""
    return _accuracy_curve(
        axes, series, sections, thought_and_overhead, "thinking + overhead tokens, mean a question"
    )


def accuracy_by_tokens(axes: Any, series: Sequence[Series], sections: Sections) -> bool:
    """Accuracy against all that was generated."""
    return _accuracy_curve(
        axes, series, sections, lambda cell: cell["tokens"]["mean"], "all generated tokens, mean a question"
    )


def accuracy_by_budget(axes: Any, series: Sequence[Series], sections: Sections) -> bool:
    """Accuracy against the budget that was given; methods without a setting are level lines."""
    drawn = False
    for one, cells in each_cells(series, sections):
        chosen = kinds(cells)
        if chosen["budget"]:
            _line(axes, one, [(c["budget"], c["accuracy"]) for c in chosen["budget"]])  # type: ignore[misc]
            drawn = True
    for one, cells in each_cells(series, sections):
        for cell in kinds(cells)["none"] if drawn else ():
            level = axes.axhline(cell["accuracy"]["mean"], color=one.colour, linestyle=":", linewidth=1.3)
            level.set_gid(one.key)
    _share_axis(axes, "accuracy")
    axes.set_xlabel("thinking budget, tokens")
    return drawn


def used_by_budget(axes: Any, series: Sequence[Series], sections: Sections) -> bool:
    """Mean thinking tokens against the budget, beside the line on which they are equal."""
    budgets: list[int] = []
    for one, cells in each_cells(series, sections):
        chosen = kinds(cells)["budget"]
        budgets += [cell["budget"] for cell in chosen if cell["budget"] is not None]
        _line(axes, one, [(c["budget"], c["thinking_tokens"]) for c in chosen])  # type: ignore[misc]
    if not budgets:
        return False
    top = max(budgets)
    axes.plot([0, top], [0, top], color=INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        "used = budget",
        (top, top),
        (-4, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=INK,
    )
    axes.set(xlabel="thinking budget, tokens", ylabel="thinking tokens, mean", xlim=(0, None), ylim=(0, None))
    return True


def over_budget(axes: Any, series: Sequence[Series], sections: Sections) -> bool:
    """Share of thoughts over their limit, against the budget."""
    drawn = False
    for one, cells in each_cells(series, sections):
        points = [(c["budget"], c["violation"]) for c in kinds(cells)["budget"] if c["violation"] is not None]
        if points:
            at, shares = zip(*points, strict=True)
            _plot(axes, one, at, shares)
            drawn = True
    _share_axis(axes, "thoughts over their limit")
    axes.set_xlabel("thinking budget, tokens")
    return drawn


def calibration(axes: Any, series: Sequence[Series], sections: Sections) -> bool:
    """Shares of the probability integral transform in ten bins: level where the forecast is calibrated."""
    drawn = False
    for one, section in each_section(series, sections):
        told = section["methods"][one.method]["calibration"]
        if told is not None and told["n"]:
            bins = len(told["pit"])
            centres = ((np.arange(bins) + 0.5) / bins).tolist()
            _plot(axes, one, centres, told["pit"])
            axes.axhline(1 / bins, color=INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
            drawn = True
    axes.set(xlabel="predicted probability of at most the actual length", xlim=(0, 1), ylim=(0, None))
    axes.set_ylabel("share of thoughts")
    return drawn


def each_section(series: Sequence[Series], sections: Sections) -> Iterator[tuple[Series, Section]]:
    """The series that a panel has something of."""
    for one in series:
        section = sections.get(one.run)
        if section is not None and one.method in section["methods"]:
            yield one, section


def each_cells(series: Sequence[Series], sections: Sections) -> Iterator[tuple[Series, list[Cell]]]:
    """The same with their settings."""
    for one, section in each_section(series, sections):
        yield one, cells_of(section, one.method)


def _accuracy_curve(
    axes: Any, series: Sequence[Series], sections: Sections, across: Callable[[Cell], float], name: str
) -> bool:
    reached = []
    for one, cells in each_cells(series, sections):
        for kind, chosen in kinds(cells).items():
            points = sorted(((across(c), c["accuracy"]) for c in chosen), key=lambda point: point[0])
            reached += [x for x, _ in points]
            _line(axes, one, points, hollow=kind == "effort")
    if reached and max(reached) > 30 * min((x for x in reached if x > 0), default=1):
        axes.set_xscale("symlog", linthresh=min(x for x in reached if x > 0))
    axes.set_xlim(left=0)
    axes.set_xlabel(name)
    _share_axis(axes, "accuracy")
    return bool(reached)


def _line(axes: Any, one: Series, points: Sequence[tuple[float, MeanInterval]], hollow: bool = False) -> None:
    """Points with their intervals, joined."""
    if not points:
        return
    at = [x for x, _ in points]
    bars = axes.vlines(at, [y["low"] for _, y in points], [y["high"] for _, y in points], color=one.colour)
    bars.set(linewidth=1.0, alpha=0.55, gid=one.key)
    _plot(axes, one, at, [y["mean"] for _, y in points], hollow)


def _plot(axes: Any, one: Series, across: Sequence[float], up: Sequence[float], hollow: bool = False) -> None:
    axes.plot(
        across,
        up,
        color=one.colour,
        marker=one.marker,
        linestyle=one.dash,
        linewidth=1.1 if hollow else 1.7,
        markersize=5.5,
        markerfacecolor=GROUND if hollow else one.colour,
        gid=one.key,
        clip_on=False,
        zorder=3,
    )


def _share_axis(axes: Any, name: str) -> None:
    axes.set_ylim(0, 1)
    axes.set_ylabel(name)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
