"""Every plot of a report: drawn once a panel for the page, and as one PNG and one SVG for a slide or a paper."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from budgetctl.errors import EvalError
from budgetctl.evals.report import bars, panels
from budgetctl.evals.report.run import ALL, Run
from budgetctl.evals.report.series import CLOSES, FAINT, GROUND, INK, Series

DPI = 150
#: Width and height of a curve's panel, inches; bars are as high as their rows.
WIDTH, HEIGHT, ROW = 4.3, 3.1, 0.2
#: Inches of a line of the legend.
LEGEND_LINE = 0.19
#: Most panels side by side in a file.
ACROSS = 3


@dataclass(frozen=True)
class Plot:
    """One kind of plot.

    Args:
        name: of its files.
        title: of its section.
        caption: what is to be seen, and how it was computed.
        draw: of one panel.
        rows: whether it has a row for each method and setting, and no curve.
    """

    name: str
    title: str
    caption: str
    draw: panels.Panel
    rows: bool = False


PLOTS = (
    Plot(
        "accuracy-thinking",
        "Accuracy against tokens of thought",
        "Mean thinking and overhead tokens a question (probes, planners and estimates count), by setting. "
        "Filled points are budgets or methods without a setting, hollow ones efforts.",
        panels.accuracy_by_thinking,
    ),
    Plot(
        "accuracy-tokens",
        "Accuracy against all generated tokens",
        "Thinking, overhead and answer tokens together, mean a question.",
        panels.accuracy_by_tokens,
    ),
    Plot(
        "accuracy-budget",
        "Accuracy against the budget",
        "At the budget that was asked for, kept or not. Dotted level lines are methods without a setting.",
        panels.accuracy_by_budget,
    ),
    Plot(
        "adherence",
        "Used against budget",
        "Mean thinking tokens. Below the dotted line a method leaves some of its budget, above it exceeds it.",
        panels.used_by_budget,
    ),
    Plot(
        "violations",
        "Thoughts over their limit",
        "Share of thoughts that were longer than the limit in force for them.",
        panels.over_budget,
    ),
    Plot(
        "closes",
        "How thoughts ended",
        "Natural: the model wanted to. Steered: guidance tipped it. Early: an early exit. Forced: cut. "
        "None: no thought, or one that was never closed. Shares in percent.",
        bars.close_kinds,
        rows=True,
    ),
    Plot(
        "calibration",
        "Is the predicted length right?",
        "Probability that the predictor gave, at the start of a thought, to a length of at most the actual one, in ten "
        "bins: level at the dotted line if calibrated. Only thoughts that ended by the model's own will have a length "
        "to compare with, so the plot is fair only where few are left out (table below).",
        panels.calibration,
    ),
    Plot(
        "levels-accuracy",
        "Accuracy by difficulty",
        "In percent.",
        bars.accuracy_by_level,
        rows=True,
    ),
    Plot(
        "levels-thinking",
        "Thinking tokens by difficulty",
        "Mean a question.",
        bars.thinking_by_level,
        rows=True,
    ),
)


@dataclass(frozen=True)
class Drawn:
    """A panel as SVG text, with the plot and the task that it shows."""

    plot: Plot
    task: str
    svg: str


def check_matplotlib() -> None:
    """Refuse before anything is read or written.

    Raises:
        EvalError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise EvalError(
            "the report needs matplotlib, which is not installed: expected the package; pip install 'budgetctl-llm[evals]'"
        )


def tasks_of(runs: Sequence[Run]) -> list[str]:
    """The sections of the runs, all tasks together first."""
    names = {name for run in runs for name in run.sections}
    return sorted(names, key=lambda name: (name != ALL, name))


def draw_panels(runs: Sequence[Run], series: Sequence[Series]) -> list[Drawn]:
    """Each panel that has something to show, in the order of ``PLOTS``."""
    found = []
    for plot in PLOTS:
        for task in tasks_of(runs):
            sections = _sections(runs, task)
            with _figure((WIDTH, _height(plot, series, sections))) as figure:
                axes = figure.subplots()
                if plot.draw(axes, series, sections):
                    found.append(Drawn(plot, task, _svg(figure)))
    return found


def draw_key(one: Series) -> str:
    """SVG of a method's line and marker, for the legend."""
    with _figure((0.5, 0.22), layout="none") as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.plot(
            [0, 1, 2],
            [0, 0, 0],
            color=one.colour,
            marker=one.marker,
            linestyle=one.dash,
            markevery=[1],
            linewidth=1.7,
        )
        axes.set(xlim=(0, 2), ylim=(-1, 1))
        return _svg(figure)


def write_plots(
    runs: Sequence[Run], series: Sequence[Series], drawn: Sequence[Drawn], folder: Path
) -> list[Path]:
    """Each plot with all of its ``drawn`` panels and a legend, as PNG and as SVG; files are whole or not written."""
    written = []
    for plot in PLOTS:
        tasks = [panel.task for panel in drawn if panel.plot is plot]
        if not tasks:
            continue
        columns = 2 if len(tasks) == 4 else min(len(tasks), ACROSS)
        rows = -(-len(tasks) // columns)
        height = max(_height(plot, series, _sections(runs, task)) for task in tasks)
        with _figure((WIDTH * columns, height * rows + 0.6)) as figure:
            grid = figure.subplots(rows, columns, squeeze=False).ravel()
            for axes, task in zip(grid, tasks, strict=False):
                plot.draw(axes, series, _sections(runs, task))
                axes.set_title(task, fontsize=10)
            for axes in grid[len(tasks) :]:
                axes.set_visible(False)
            figure.suptitle(plot.title, fontsize=12, fontweight="bold")
            _legend(figure, plot, series)
            folder.mkdir(parents=True, exist_ok=True)
            for kind in ("png", "svg"):
                written.append(_save(figure, folder / f"{plot.name}.{kind}"))
                figure.set_layout_engine("none")  # the layout is made; it is most of the time
    return written


def _sections(runs: Sequence[Run], task: str) -> panels.Sections:
    return {number: run.sections[task] for number, run in enumerate(runs) if task in run.sections}


def _height(plot: Plot, series: Sequence[Series], sections: panels.Sections) -> float:
    if not plot.rows:
        return HEIGHT
    rows = sum(len(section["cells"]) for section in sections.values())
    return 0.7 + ROW * (rows + 0.35 * len(series))


def _legend(figure: Any, plot: Plot, series: Sequence[Series]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any]
    if plot.name == "closes":
        handles = [Patch(color=colour, label=kind) for kind, colour in CLOSES.items()]
    elif plot.rows:
        return
    else:
        handles = [
            Line2D([], [], color=one.colour, marker=one.marker, linestyle=one.dash, label=one.label)
            for one in series
        ]
    width = figure.get_figwidth()
    longest = max(len(handle.get_label()) for handle in handles)
    columns = min(max(1, int(width / (0.6 + 0.075 * longest))), len(handles))
    lines = -(-len(handles) // columns)
    # The figure has room for two lines; with more it grows, so that the panels do not shrink.
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(lines - 2, 0))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


@contextmanager
def _figure(size: tuple[float, float], layout: Any = "constrained") -> Iterator[Any]:
    """A figure without a window, in the report's style."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "text.parse_math": False,
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "budgetctl",
        "figure.facecolor": GROUND,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
    }
    for part in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        style[part] = INK
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # A character that the font has not is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure = Figure(figsize=size, layout=layout)
        FigureCanvasAgg(figure)
        yield figure


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _save(figure: Any, path: Path) -> Path:
    partial = path.with_name(path.name + ".partial")
    try:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(partial, format=path.suffix[1:], dpi=DPI, metadata=metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
