"""Tables and figure of ``budgetctl bench kv``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from budgetctl.evals.kv_bench import Timing

MIB = 2**20
#: Panels of the figure, a row.
COLUMNS = 3
KINDS = {"step": "a decode step", "call": "a call of attention, one layer"}


def sections(timings: Sequence[Timing]) -> list[tuple[str, list[str], list[list[str]]]]:
    """``(title, head, lines)`` of a table for each model and kind; a line a setting and method."""
    found = []
    for model, kind in dict.fromkeys((timing.model, timing.kind) for timing in timings):
        these = [timing for timing in timings if (timing.model, timing.kind) == (model, kind)]
        bounded = any(timing.least_ms is not None for timing in these)
        head = [
            "rows",
            "tokens",
            "cache",
            "ms",
            "of DynamicCache [95 %]",
            "MiB",
            "MiB moved",
            "least MiB moved",
        ]
        head += ["ms at the bandwidth"] * bounded
        lines = [
            [
                str(t.batch),
                f"{t.tokens:,}",
                t.method,
                f"{t.ms:.3g}" if t.ms < 100 else f"{t.ms:.0f}",
                "" if t.ratio is None else f"{t.ratio:.2f} [{t.low:.2f}, {t.high:.2f}]",
                _mib(t.allocated),
                _mib(t.moved),
                _mib(t.least),
                *([""] * bounded if t.least_ms is None else [f"{t.least_ms:.3f}"]),
            ]
            for t in these
        ]
        found.append((f"{model}, {KINDS[kind]}", head, lines))
    return found


def _mib(count: float) -> str:
    return f"{count / MIB:.2f}" if count < 10 * MIB else f"{count / MIB:,.0f}"


def markdown(timings: Sequence[Timing]) -> str:
    """The tables as Markdown."""
    return "\n\n".join(
        "\n".join([title, "", *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))])
        for title, head, lines in sections(timings)
    )


def draw(timings: Sequence[Timing], path: Path, *, logarithmic: bool = False) -> None:
    """Milliseconds a token against the tokens thought, a panel for each model, kind and number of rows, as PNG.

    Args:
        timings: at two lengths at least, to show anything.
        path: written whole or not at all.
        logarithmic: milliseconds too, where caches are too far apart to be seen together otherwise.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((t.model, t.kind, t.batch) for t in timings))
    rows = -(-len(panels) // COLUMNS)
    width = min(len(panels), COLUMNS)
    figure, axes = pyplot.subplots(
        rows, width, figsize=(4.2 * width, 3.4 * rows), constrained_layout=True, squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(t.method for t in timings))}
    for place, (axis, panel) in enumerate(zip(axes.flat, panels, strict=False)):
        these = [t for t in timings if (t.model, t.kind, t.batch) == panel]
        for method in dict.fromkeys(t.method for t in these):
            points = sorted((t.tokens, t.ms) for t in these if t.method == method)
            axis.plot(*zip(*points, strict=True), marker="o", label=method, color=colours[method])
        model, kind, batch = panel
        axis.set_title(f"{model}, {batch} row{'s' * (batch > 1)}", fontsize=10)
        axis.set_xscale("log", base=2)
        if logarithmic:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.set_xlabel("tokens thought so far")
        axis.set_ylabel("ms a token" if kind == "step" else "ms a call")
        axis.grid(alpha=0.3)
        if not logarithmic:
            axis.legend(fontsize=8)
        elif place % width == width - 1 or place == len(panels) - 1:
            # Lines are everywhere; a row's legend stands beside it.
            axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(partial, dpi=130, format="png")
    pyplot.close(figure)
    partial.replace(path)
