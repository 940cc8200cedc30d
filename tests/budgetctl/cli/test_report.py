"""``budgetctl report``: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from budgetctl.cli.app import app
from budgetctl.evals.report import page
from tests.evals.report.conftest import few_answers, write_run

pytest.importorskip("matplotlib")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "draw_panels", lambda runs, series: [])
    monkeypatch.setattr(page, "write_plots", lambda *arguments: [])
    folder = write_run(tmp_path / "run", few_answers()[:4])
    done = call(folder)
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, str(folder / "report.html"))
    out = tmp_path / "mine.html"
    done = call(folder, "--out", out, "--json")
    assert json.loads(done.stdout) == {"report": str(out), "plots": str(tmp_path / "mine-plots")}
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("case", ["no folder", "no records", "another version", "no place"])
def test_bad_input_is_one_line_and_status_2(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    extra: list[object] = []
    if case != "no folder":
        folder.mkdir()
    if case == "another version":
        (folder / "records.jsonl").write_text('{"task": "dial", "colour": 1}\n', encoding="utf-8")
    if case == "no place":
        (folder / "records.jsonl").write_text(json.dumps(few_answers()[0].as_dict()) + "\n", encoding="utf-8")
        extra = ["--out", tmp_path / "nowhere" / "page.html"]
    before = sorted(tmp_path.rglob("*"))
    done = call(folder, *extra)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("budgetctl: ")
    assert "expected" in line
    assert sorted(tmp_path.rglob("*")) == before
