"""Throughput and the slowest requests against the rate of arrivals, a line for each policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from budgetctl.simulate.outcome import Outcome

COLOURS = ("#4d4d4d", "#c4562f", "#1b6ca8", "#3a8f5c", "#8a5ba6", "#b8860b")
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(outcomes: Sequence[Outcome], path: Path, limit: float | None = None) -> None:
    """Write a PNG with two panels, whole or not at all; ``limit`` is a line of the second, in seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    names = list(dict.fromkeys(outcome.policy for outcome in outcomes))
    for number, name in enumerate(names):
        points = sorted((o for o in outcomes if o.policy == name), key=lambda o: o.rate)
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        rates = [o.rate for o in points]
        left.plot(rates, [o.served for o in points], color=colour, marker=marker, markersize=5, label=name)
        right.plot(
            rates, [o.latency_p99 for o in points], color=colour, marker=marker, markersize=5, label=name
        )
    most = max(outcome.rate for outcome in outcomes)
    left.plot([0, most], [0, most], color="lightgrey", linewidth=1, zorder=0, label="all that arrive")
    if limit is not None:
        right.axhline(limit, color="lightgrey", linewidth=1, zorder=0)
    left.set_ylabel("requests per second served")
    right.set_ylabel("latency, 99th percentile (seconds)")
    right.set_yscale("log")
    for put in (right.yaxis.set_major_formatter, right.yaxis.set_minor_formatter):
        put(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    for axes in (left, right):
        axes.set_xlabel("requests per second that arrive")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
    left.set_ylim(bottom=0)
    left.legend(loc="upper left", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=130, format="png")
    pyplot.close(figure)
    partial.replace(path)
