"""One panel of each plot that has a row for every method and setting; as in :mod:`budgetctl.evals.report.panels`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from budgetctl.evals.measures.shape import Cell
from budgetctl.evals.report.panels import Sections, each_cells
from budgetctl.evals.report.series import CLOSES, GROUND, Series, setting_name

#: Longest name of a method and setting beside a bar, in characters.
NAME = 34


def close_kinds(axes: Any, series: Sequence[Series], sections: Sections) -> bool:
    """How the thoughts ended: one stacked bar a method and setting, with its shares."""
    rows = [(one, cell) for one, cells in each_cells(series, sections) for cell in cells]
    starts = np.zeros(len(rows))
    places = _row_places(rows)
    for kind, colour in CLOSES.items():
        shares = np.array([cell["close"][kind] for _, cell in rows])
        axes.barh(
            places,
            shares,
            left=starts,
            height=0.8,
            color=colour,
            label=kind,
            edgecolor=GROUND,
            linewidth=0.6,
        )
        for place, start, share in zip(places, starts, shares, strict=True):
            if share >= 0.08:
                axes.text(
                    start + share / 2,
                    place,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    in_layout=False,
                    color=ink_on(colour),
                )
        starts += shares
    _name_rows(axes, rows, places)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.grid(False)
    return bool(rows)


def accuracy_by_level(axes: Any, series: Sequence[Series], sections: Sections) -> bool:
    """Accuracy of each method and setting at each difficulty."""
    return _by_level(axes, series, sections, "accuracy", lambda value: f"{100 * value:.0f}", top=1.0)


def thinking_by_level(axes: Any, series: Sequence[Series], sections: Sections) -> bool:
    """Mean thinking tokens of each method and setting at each difficulty."""
    return _by_level(axes, series, sections, "thinking_tokens", lambda value: f"{value:.0f}", top=None)


def ink_on(colour: str) -> str:
    """Near black or white, whichever stands out more on a colour (relative luminance of WCAG 2).

    Not black itself: matplotlib leaves that out of an SVG, and the page would take its own colour.
    """
    return "#010101" if luminance(colour) > 0.179 else "#ffffff"


def luminance(colour: str) -> float:
    """Relative luminance of a hexadecimal sRGB colour, 0 to 1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _by_level(
    axes: Any,
    series: Sequence[Series],
    sections: Sections,
    field: str,
    told: Callable[[float], str],
    top: float | None,
) -> bool:
    rows = [(one, cell) for one, cells in each_cells(series, sections) for cell in cells if cell["levels"]]
    levels = sorted({level["level"] for _, cell in rows for level in cell["levels"]})
    if len(levels) < 2:
        return False
    values = np.full((len(rows), len(levels)), np.nan)
    for row, (_, cell) in enumerate(rows):
        for level in cell["levels"]:
            values[row, levels.index(level["level"])] = level[field]["mean"]  # type: ignore[literal-required]
    places = _row_places(rows)
    high = top or max(float(np.nanmax(values)), 1e-9)
    for row, place in enumerate(places):
        for column, value in enumerate(values[row]):
            if not np.isnan(value):
                colour = _shade(value / high)
                axes.barh(place, 1, left=column, height=0.92, color=colour, edgecolor=GROUND, linewidth=0.8)
                axes.text(
                    column + 0.5,
                    place,
                    told(value),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    in_layout=False,
                    color=ink_on(colour),
                )
    _name_rows(axes, rows, places)
    axes.set_xticks(np.arange(len(levels)) + 0.5, [f"{level:g}" for level in levels])
    axes.set(xlim=(0, len(levels)), xlabel="difficulty")
    axes.grid(False)
    return True


def _shade(share: float) -> str:
    """From pale to deep blue."""
    pale, deep = np.array([236, 242, 249]), np.array([8, 64, 129])
    red, green, blue = (pale + (deep - pale) * min(max(share, 0.0), 1.0)).round().astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _row_places(rows: Sequence[tuple[Series, Cell]]) -> list[float]:
    """Heights of the rows, downwards, with a gap between methods."""
    places, at = [], 0.0
    for _, group in groupby(rows, key=lambda row: row[0].key):
        for _ in group:
            places.append(at)
            at -= 1.0
        at -= 0.35
    return places


def _name_rows(axes: Any, rows: Sequence[tuple[Series, Cell]], places: Sequence[float]) -> None:
    names = [
        f"{one.label}, {setting_name(c['budget'], c['effort'])}"
        if c["budget"] is not None or c["effort"]
        else one.label
        for one, c in rows
    ]
    axes.set_yticks(places, [name if len(name) <= NAME else f"{name[: NAME - 1]}…" for name in names])
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.spines[["left"]].set_visible(False)
    if places:
        axes.set_ylim(places[-1] - 0.6, 0.6)
