"""``report.html``: one file that shows an evaluation, or several side by side, and asks nothing of a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from budgetctl.errors import EvalError
from budgetctl.evals.report import tables, words
from budgetctl.evals.report.about import facts
from budgetctl.evals.report.differences import difference_table
from budgetctl.evals.report.plots import PLOTS, Drawn, check_matplotlib, draw_key, draw_panels, write_plots
from budgetctl.evals.report.questions import BYTES, TEXT, embed_questions, safe_json
from budgetctl.evals.report.run import Run, open_runs
from budgetctl.evals.report.series import CLOSES, Series, series_of
from budgetctl.evals.report.svg import colours, inline

#: Of the page of one run, and of several, in the first one's directory.
REPORT, COMPARISON = "report.html", "comparison.html"


def write_report(run_dirs: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Draw the report of one run directory, or of several, and its plots.

    Args:
        run_dirs: directories that hold ``records.jsonl``; the first is what the others are compared with.
        out: file of the page; by default ``report.html`` in the directory, ``comparison.html`` in the first of several.
            The plots go beside it, as :func:`plots_folder` says.

    Returns:
        The page's path. It is written whole or not at all.

    Raises:
        EvalError: matplotlib is missing, a directory is no run, or ``out`` cannot be written; nothing is written then.
    """
    check_matplotlib()
    folders = [run_dirs] if isinstance(run_dirs, Path) else list(run_dirs)
    if out is not None:
        _check_out(out)
    runs = open_runs(folders)
    path = out if out is not None else folders[0] / (REPORT if len(runs) == 1 else COMPARISON)
    series = series_of(runs, _reference(runs))
    drawn = draw_panels(runs, series)
    html = render(runs, series, drawn, path.parent)
    write_plots(runs, series, drawn, plots_folder(path))
    partial = path.with_name(path.name + ".partial")
    try:
        # Lone surrogates, which UTF-8 has not, are written as question marks.
        partial.write_bytes(html.encode("utf-8", "replace"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def plots_folder(page: Path) -> Path:
    """Where a page's plots are: ``plots`` for ``report.html``, ``NAME-plots`` for ``NAME.html``."""
    return page.parent / ("plots" if page.name == REPORT else f"{page.stem}-plots")


def render(runs: Sequence[Run], series: Sequence[Series], drawn: Sequence[Drawn], folder: Path) -> str:
    """The page's text; ``folder`` is where it will be, from which the records are linked."""
    here = files("budgetctl.evals.report")
    texts = {
        name: (here / name).read_text(encoding="utf-8") for name in ("page.html.j2", "page.css", "page.js")
    }
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    questions = embed_questions(runs)
    return environment.from_string(texts["page.html.j2"]).render(
        runs=runs,
        facts=[facts(run) for run in runs],
        css=Markup(texts["page.css"]),
        script=Markup(texts["page.js"]),
        light=Markup(colours(dark=False)),
        dark=Markup(colours(dark=True)),
        series=[(one, _key(one)) for one in series],
        plots=_plots(drawn),
        closes=CLOSES,
        main=tables.main_table(runs),
        methods=tables.method_table(runs),
        calibration=tables.calibration_table(runs),
        comparisons=tables.comparison_table(runs),
        differences=difference_table(runs) if len(runs) > 1 else None,
        short=_short(runs),
        caution=words.caution,
        questions=questions,
        links=[_link(run.folder / "records.jsonl", folder) for run in runs],
        data=Markup(questions.json),
        page_data=Markup(_page_data(runs)),
        limits={"megabytes": BYTES / 1e6, "text": TEXT},
    )


def _check_out(out: Path) -> None:
    if out.is_dir() or not out.parent.is_dir():
        raise EvalError(f"--out {out}: expected a file in a folder that is there; correct the path")


def _link(file: Path, folder: Path) -> str:
    """Address of a file relative to a folder."""
    return quote(Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix())


def _reference(runs: Sequence[Run]) -> str | None:
    return runs[0].summary["reference"]


def _key(one: Series) -> Markup:
    return Markup(inline(draw_key(one), f"key-{one.key}", f"marker of {one.label}"))


def _plots(drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    """Each plot with its panels, ready for the page."""
    found = []
    for plot in PLOTS:
        shown = []
        for number, panel in enumerate(panel for panel in drawn if panel.plot is plot):
            alt = f"{plot.title}, {panel.task}. The numbers are in the tables below."
            shown.append({"task": panel.task, "svg": Markup(inline(panel.svg, f"{plot.name}-{number}", alt))})
        if shown:
            found.append({"plot": plot, "panels": shown})
    return found


def _short(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What each run says against its reference method, all tasks together."""
    found = []
    for run in runs:
        summary = run.summary
        section = next(iter(run.sections.values()))
        if summary["reference"] is not None and section["comparisons"]:
            sentences = words.matched_sentences(section, summary["reference"], summary["confidence"])
            note = words.caution(len(section["comparisons"]), summary["confidence"])
            found.append({"label": run.label, "sentences": sentences, "note": note})
    return found


def _page_data(runs: Sequence[Run]) -> str:
    return safe_json({"runs": [run.label for run in runs]})
