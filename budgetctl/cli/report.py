"""``budgetctl report``: an evaluation as one page, or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from budgetctl.cli.options import Json
from budgetctl.cli.render import clean_stdout, emit_json, out


def report(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR ...",
            help="Folder that `budgetctl eval` wrote; further ones are compared with the first.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File of the page.  [default: report.html in DIR, comparison.html in the first of several]",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw report.html, and its plots beside it as PNG and SVG, from the records of an evaluation."""
    with clean_stdout(as_json):
        from budgetctl.evals.report.page import plots_folder, write_report

        page = write_report(run_dirs, to)
    if as_json:
        emit_json({"report": str(page), "plots": str(plots_folder(page))})
        return
    out().print(f"{page}\n{plots_folder(page)}", markup=False, highlight=False, soft_wrap=True)
