"""How a method looks: a colour and a marker that stay its own in every plot, on light and on dark ground.

The colours differ with the common forms of colour blindness as far as eight can, and each has a marker beside it, so that
none has to be told by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from budgetctl.evals.measures.shape import Cell, Section
from budgetctl.evals.report.run import Run

#: Colours on light ground and, at the same place, on dark ground.
LIGHT = ("#0072b2", "#d55e00", "#00916a", "#b8418f", "#665200", "#38237a", "#878787", "#7a1024")
DARK = ("#56b4e9", "#ff8f45", "#1fbf92", "#ee7cc4", "#f2dd6e", "#8f86ff", "#a3a3a3", "#ffc9cf")
#: Stand-ins in the drawings for what depends on the ground.
INK, FAINT, GROUND = "#1c1e21", "#d5d8dd", "#fefefe"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
#: Line styles of the first, second, … run of a comparison.
DASHES = ("-", "--", "-.", ":")
#: How a thought ended, in the order of the bars, and the bars' colours.
CLOSES = {
    "natural": "#1b7f5c",
    "steered": "#7fc8a9",
    "early": "#3f7fbf",
    "forced": "#d9622b",
    "none": "#9aa0a8",
}


@dataclass(frozen=True)
class Series:
    """One method of one run.

    Args:
        run: the run's place in the report, from 0.
        method: its name.
        place: the method's place among all methods of the report.
        label: for the legend.
    """

    run: int
    method: str
    place: int
    label: str

    @property
    def key(self) -> str:
        """Class of its marks in the page."""
        return f"s{self.place}-{self.run}"

    @property
    def colour(self) -> str:
        """On light ground; the page replaces it on dark ground."""
        return LIGHT[self.place % len(LIGHT)]

    @property
    def marker(self) -> str:
        """Of its points."""
        return MARKERS[self.place % len(MARKERS)]

    @property
    def dash(self) -> Any:
        """Line style."""
        return DASHES[self.run % len(DASHES)]


def series_of(runs: Sequence[Run], reference: str | None) -> list[Series]:
    """Every method of every run; ``reference`` is drawn in the first colour, the others by name."""
    names = {record.method for run in runs for record in run.records}
    order = sorted(names, key=lambda name: (name != reference, name))
    found = []
    for place, method in enumerate(order):
        for number, run in enumerate(runs):
            if method in run.summary["overall"]["methods"]:
                label = method if len(runs) == 1 else f"{method} · {run.label}"
                found.append(Series(number, method, place, label))
    return found


def cells_of(section: Section, method: str) -> list[Cell]:
    """The settings of one method."""
    return [cell for cell in section["cells"] if cell["method"] == method]


def setting_name(budget: int | None, effort: str | float | None) -> str:
    """A setting in words."""
    told = [] if budget is None else [f"budget {budget}"]
    if effort is not None:
        told.append(f"effort {effort}")
    return ", ".join(told) or "no setting"


def kinds(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Settings that are joined by one line: budgets, efforts, and those with neither."""
    found: dict[str, list[Cell]] = {"budget": [], "effort": [], "none": []}
    for cell in cells:
        kind = "budget" if cell["budget"] is not None else "none" if cell["effort"] is None else "effort"
        found[kind].append(cell)
    return found
