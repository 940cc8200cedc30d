"""Tables and figure of ``budgetctl bench guidance``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from budgetctl.evals.guidance_bench import Timing

#: In the order of the table.
METHODS = (
    "hard cut",
    "dict state machine",
    "guidance",
    "guidance, compiled",
    "guidance, reference",
    "guidance, CUDA graph",
    "controller",
    "controller, by lines",
    "published predictor",
)


def tables(timings: Sequence[Timing]) -> str:
    """Markdown: one table a subject, a row a batch size; milliseconds, and per cent of the decode step."""
    return "\n\n".join(
        _table([timing for timing in timings if timing.subject == name])
        for name in dict.fromkeys(timing.subject for timing in timings)
    )


def _table(timings: list[Timing]) -> str:
    names = [name for name in METHODS if any(timing.method == name for timing in timings)]
    stepped = any(timing.step_ms is not None for timing in timings)
    versus = "published predictor" in names and "guidance" in names
    head = [
        "batch",
        *(["decode step"] if stepped else []),
        *names,
        *(["published / guidance"] if versus else []),
    ]
    lines = [
        f"{timings[0].subject}, ms a step (per cent of the decode step)"
        if stepped
        else f"{timings[0].subject}, ms a step",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for batch in dict.fromkeys(timing.batch for timing in timings):
        row = {timing.method: timing for timing in timings if timing.batch == batch}
        cells = [str(batch)]
        if stepped:
            cells.append(f"{next(iter(row.values())).step_ms:.2f}")
        cells += [_cell(row.get(name)) for name in names]
        if versus:
            both = row.get("published predictor"), row.get("guidance")
            cells.append(f"{both[0].ms / both[1].ms:.0f}x" if both[0] and both[1] else "not measured")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(timing: Timing | None) -> str:
    if timing is None:
        return "not measured"
    share = "" if timing.step_ms is None else f" ({timing.ms / timing.step_ms:.1%})"
    return f"{timing.ms:.3f}{share}"


def draw(sweeps: dict[str, list[Timing]], path: Path) -> None:
    """Cost against the length of the thought, rows times candidates, and the vocabulary, as PNG at ``path``.

    Args:
        sweeps: ``thinking_tokens``, ``rows`` and ``vocab``, the timings of each.
        path: written whole or not at all.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: list[tuple[str, str, Any]] = [
        ("thinking_tokens", "thinking tokens so far", lambda t: t.thinking_tokens),
        ("rows", "rows x candidates", lambda t: t.batch * t.candidates),
        ("vocab", "vocabulary", lambda t: t.vocab),
    ]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    for axis, (name, label, value) in zip(axes, panels, strict=True):
        timings = sweeps[name]
        for method in dict.fromkeys(timing.method for timing in timings):
            points = sorted((value(t), t.ms) for t in timings if t.method == method)
            axis.plot(*zip(*points, strict=True), marker="o", label=method)
        if name == "thinking_tokens" and all(timing.thinking_tokens > 0 for timing in timings):
            axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(label)
        axis.set_ylabel("ms a step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(partial, dpi=130, format="png")
    pyplot.close(figure)
    partial.replace(path)
