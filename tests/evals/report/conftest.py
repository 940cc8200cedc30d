"""Run directories made of made-up answers, and a page taken apart."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.report.page import write_report
from tests.evals.measures.fixture import synthetic_run

#: What would break a page that did not escape it.
HOSTILE = "</think></script><script>alert('x')</script><!-- <b>\"q\" & &amp; \N{GRINNING FACE}\U00020bb7 \u2028\ud800"
VOID = {"meta", "link", "input", "br", "img", "hr"}


def write_run(folder: Path, answers: Iterable[Answer], **about: object) -> Path:
    """A run directory as ``budgetctl eval`` leaves it, without a summary."""
    folder.mkdir(parents=True)
    rows = "".join(json.dumps(answer.as_dict()) + "\n" for answer in answers)
    (folder / "records.jsonl").write_text(rows, encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def few_answers() -> list[Answer]:
    """One task, three methods, two budgets; the first question's texts are hostile, and so is a method's name."""
    kept = []
    for one in synthetic_run(questions=3, seeds=(0,)):
        if one.task != "dial" or one.budget in (8, 64) or one.method not in ("hard-cut", "budgetctl", "full"):
            continue
        if one.item == "dial-0":
            thought = HOSTILE + one.thought
            one = replace(one, thought=thought, answer=HOSTILE, expected=HOSTILE, prompt=HOSTILE)
        kept.append(replace(one, method="<i>'\"&$x$" if one.method == "full" else one.method))
    return kept


class Page(HTMLParser):
    """Elements of a page: checks that tags are balanced, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[int, str] = {}  # by place in elements, own text only
        self._stack: list[int] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
            self._stack.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> inside <{self.open[-1]}>"
        self.open.pop()
        self._stack.pop()

    def handle_data(self, data: str) -> None:
        if self._stack:
            self.texts[self._stack[-1]] = self.texts.get(self._stack[-1], "") + data

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of every such element."""
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, name: str) -> str:
        """Own text of the element with an id."""
        (place,) = [at for at, (_, attributes) in enumerate(self.elements) if attributes.get("id") == name]
        return self.texts[place]


@pytest.fixture(scope="session")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of the few answers."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("runs") / "one"
    return write_report(write_run(folder, few_answers(), command="budgetctl eval", model=HOSTILE))


@pytest.fixture(scope="session")
def report_text(report_path: Path) -> str:
    return report_path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def page(report_text: str) -> Page:
    return Page(report_text)
