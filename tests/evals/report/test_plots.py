"""The plots' files, and what a panel leaves out."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from budgetctl.evals.report.plots import PLOTS, draw_panels
from budgetctl.evals.report.run import open_runs
from budgetctl.evals.report.series import series_of
from tests.evals.report.conftest import few_answers, write_run

pytest.importorskip("matplotlib")


def test_every_plot_is_a_png_and_an_svg(report_path: Path) -> None:
    files = {path.name for path in (report_path.parent / "plots").iterdir()}
    assert files == {f"{plot.name}.{kind}" for plot in PLOTS for kind in ("png", "svg")}
    for name in files:
        path = report_path.parent / "plots" / name
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            texts = [element.text or "" for element in ElementTree.parse(path).iter()]
            assert any("dial" in text for text in texts)  # the panel's title


def test_without_budgets_predictor_and_levels_only_curves_and_closes_are_drawn(tmp_path: Path) -> None:
    from dataclasses import replace

    answers = [
        replace(one, level=None, predicted_cdf=None, predicted_tokens=None)
        for one in few_answers()
        if one.budget is None and one.effort is None
    ]
    runs = open_runs([write_run(tmp_path / "run", answers)])
    drawn = draw_panels(runs, series_of(runs, None))
    assert [panel.plot.name for panel in drawn] == ["accuracy-thinking", "accuracy-tokens", "closes"]
