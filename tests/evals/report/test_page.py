"""The page holds together, asks nothing of a network, escapes what it shows and shows what was measured."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from budgetctl.errors import EvalError
from budgetctl.evals.report import page as page_module
from budgetctl.evals.report.page import write_report
from tests.evals.report.conftest import HOSTILE, Page, few_answers, write_run


def test_nothing_is_fetched(report_text: str, page: Page) -> None:
    assert "http://" not in report_text
    assert "https://" not in report_text
    assert "@import" not in report_text
    for tag in ("img", "iframe", "object", "embed"):
        assert page.all(tag) == []
    assert [script.get("src") for script in page.all("script")] == [None] * 3
    assert [link["href"] for link in page.all("link")] == ["data:,"]


def test_references_inside_the_page_lead_somewhere(report_text: str, page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    body = report_text[: report_text.index('id="page-data"')]
    named = set(re.findall(r'href="#([^"]+)"', body)) | set(re.findall(r"url\(#([^)]+)\)", body))
    assert named
    assert named <= set(ids)


def test_headers_labels_and_alternatives_are_there(page: Page) -> None:
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    drawings = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(drawings) == len(page.all("svg"))
    assert all(svg["aria-label"] for svg in drawings)
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in page.all("meta")[1]["content"]


def test_the_records_are_linked_from_where_the_page_is(tmp_path: Path) -> None:
    for place, address in (("run #1", "records.jsonl"), (".", "run%20%231/records.jsonl")):
        assert page_module._link(tmp_path / "run #1" / "records.jsonl", tmp_path / place) == address


def test_hostile_text_stays_text(report_text: str, page: Page) -> None:
    assert "<script>alert" not in report_text
    assert page.all("i") == []
    questions = json.loads(page.text("questions-data"))
    told = next(question for question in questions if question["item"] == "dial-0")
    assert told["prompt"] == told["expected"] == HOSTILE
    assert all("".join(answer["thought"]).startswith(HOSTILE) for answer in told["answers"])
    labels = {row.get("data-method") for row in page.all("tr")}
    assert "<i>'\"&$x$" in labels


def test_the_numbers_are_those_of_the_summary(report_path: Path, page: Page) -> None:
    summary = json.loads((report_path.parent / "summary.json").read_text(encoding="utf-8"))
    (section,) = summary["tasks"].values()
    expected = [cell["accuracy"]["mean"] for cell in section["cells"]]
    expected_tokens = [cell["tokens"]["mean"] for cell in section["cells"]]
    rows = _rows(page, "numbers-table")
    heads = _heads(page, "numbers-table")
    accuracy, tokens = heads.index("accuracy, %"), heads.index("all tokens")
    assert [float(row[accuracy][0]["data-value"]) for row in rows] == expected
    assert [float(row[tokens][0]["data-value"]) for row in rows] == expected_tokens
    first = section["cells"][0]["accuracy"]
    shown = f"{100 * first['mean']:.1f} [{100 * first['low']:.1f}, {100 * first['high']:.1f}]"
    assert rows[0][accuracy][1] == shown


def test_a_failure_leaves_the_earlier_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", few_answers())
    (folder / "report.html").write_text("earlier", encoding="utf-8")
    monkeypatch.setattr(page_module, "draw_panels", lambda runs, series: [])
    monkeypatch.setattr(page_module, "write_plots", lambda *arguments: [])

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(page_module, "os", SimpleNamespace(replace=fail, path=os.path))
    with pytest.raises(OSError, match="disk full"):
        write_report(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == "earlier"
    assert list(folder.glob("*.partial")) == []


def test_two_runs_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All wrong against all right, with three more tokens of thought."""
    answers = [one for one in few_answers() if one.method == "hard-cut" and one.budget == 16]
    wrong = [replace(one, correct=False, score=0.0) for one in answers]
    right = [
        replace(one, correct=True, score=1.0, thinking_tokens=one.thinking_tokens + 3) for one in answers
    ]
    first, second = write_run(tmp_path / "a" / "run", wrong), write_run(tmp_path / "b" / "run", right)
    folders = []
    monkeypatch.setattr(page_module, "write_plots", lambda *arguments: folders.append(arguments[-1]))
    path = write_report([first, second])
    assert path == first / "comparison.html"
    shown = Page(path.read_text(encoding="utf-8"))
    (row,) = _rows(shown, "differences-table")
    texts = [text for _, text in row]
    assert texts[0] == "b/run"
    assert texts[-3:] == ["+100.0 [+100.0, +100.0]", "+3.0 [+3.0, +3.0]", "b/run is right more often"]
    keys = [button["data-key"] for button in shown.all("button") if "data-key" in button]
    assert keys == ["s0-0", "s0-1"]
    assert all(any(key == one.get("class") for _, one in shown.elements) for key in keys)
    assert folders == [first / "comparison-plots"]


@pytest.mark.parametrize("case", ["no folder", "no records", "empty records", "other fields", "twice"])
def test_what_is_no_run_is_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", few_answers()[:2])
    bad = tmp_path / "bad"
    if case != "no folder":
        bad.mkdir()
    if case == "empty records":
        (bad / "records.jsonl").touch()
    if case == "other fields":
        (bad / "records.jsonl").write_text('{"task": "dial"}\n', encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EvalError) as caught:
        write_report([good, good if case == "twice" else bad])
    assert "\n" not in str(caught.value)
    assert ": expected" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_summary_of_fewer_records_is_made_anew(tmp_path: Path) -> None:
    from budgetctl.evals.report.run import open_runs

    answers = few_answers()
    folder = write_run(tmp_path / "run", answers)
    (run,) = open_runs([folder])
    assert run.summary["n"] == len(answers)
    rows = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(rows[:-1]), encoding="utf-8")
    (run,) = open_runs([folder])
    assert run.summary["n"] == len(answers) - 1


def _rows(page: Page, table: str) -> list[list[tuple[dict[str, str], str]]]:
    """Entries of the body of a table, with attributes and text."""
    rows: list[list[tuple[dict[str, str], str]]] = []
    for at in _inside(page, table):
        tag, attributes = page.elements[at]
        if tag == "tr" and "data-task" in attributes:
            rows.append([])
        elif tag == "td":
            rows[-1].append((attributes, page.texts[at]))
    return rows


def _heads(page: Page, table: str) -> list[str]:
    return [page.texts[at] for at in _inside(page, table) if page.elements[at][0] == "button"]


def _inside(page: Page, table: str) -> list[int]:
    """Places of the elements between a table's start and the next table's."""
    tables = [at for at, (tag, _) in enumerate(page.elements) if tag == "table"]
    start = next(at for at in tables if page.elements[at][1].get("id") == table)
    stop = min([at for at in tables if at > start], default=len(page.elements))
    return list(range(start, stop))
