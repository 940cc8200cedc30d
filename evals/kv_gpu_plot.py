"""One table and one figure of what ``kv_gpu`` timed: ``python -m budgetctl.evals.kv_gpu_plot kv_gpu.json ... --png FILE``.

A line a setting, a column a cache, so that what grows with the thought and what does not can be read down the columns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from budgetctl.errors import BudgetctlError
from budgetctl.evals.kv_bench import Timing
from budgetctl.evals.kv_report import KINDS, draw

app = typer.Typer(help=__doc__, add_completion=False)


def read(path: Path) -> list[Timing]:
    """The timings of one run.

    Raises:
        BudgetctlError: for a file that is none of ``kv_gpu``.
    """
    try:
        return [Timing(**timing) for timing in json.loads(path.read_text())["timings"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BudgetctlError(
            f"{path}: expected kv_gpu.json of budgetctl.evals.kv_gpu, found {type(error).__name__}; run that first"
        ) from None


def table(timings: Sequence[Timing], kind: str) -> str:
    """Milliseconds in Markdown: rows and tokens down, caches across, and what the budget's bytes take at least."""
    these = [timing for timing in timings if timing.kind == kind]
    methods = list(dict.fromkeys(timing.method for timing in these))
    by_cell = {(t.batch, t.tokens, t.method): t for t in these}
    held = [name for name in methods if name.startswith("diverse-max")]
    head = ["rows", "tokens", *methods, "limit: full cache, budget"]
    lines = [f"{KINDS[kind]}, ms", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for batch, tokens in dict.fromkeys((t.batch, t.tokens) for t in these):
        cells = [by_cell.get((batch, tokens, method)) for method in methods]
        limits = [
            next((t.least_ms for t in cells if t is not None and t.method in names and t.least_ms), None)
            for names in (methods[:1], held)
        ]
        shown = ["" if t is None else _ms(t.ms) for t in cells]
        bounds = ", ".join("" if limit is None else f"{limit:.3f}" for limit in limits)
        lines.append("| " + " | ".join([str(batch), f"{tokens:,}", *shown, bounds]) + " |")
    return "\n".join(lines)


def _ms(number: float) -> str:
    return f"{number:.3f}" if number < 1 else f"{number:.1f}"


@app.command()
def main(
    results: Annotated[list[Path], typer.Argument(help="kv_gpu.json of one or several runs on one device")],
    png: Annotated[Path | None, typer.Option(help="also draw, into this file", show_default=False)] = None,
) -> None:
    """Print the tables, and draw."""
    timings = [timing for path in results for timing in read(path)]
    for kind in dict.fromkeys(timing.kind for timing in timings):
        Console().print(table(timings, kind) + "\n", markup=False, highlight=False, soft_wrap=True)
    if png is not None:
        draw(timings, png, logarithmic=True)


if __name__ == "__main__":
    app()
