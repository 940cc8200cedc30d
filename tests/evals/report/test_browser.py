"""The page in a headless browser: no errors, no requests, no horizontal scrolling on a phone; sorting, filters, thoughts.

Runs where playwright is installed (``pip install playwright``) and finds a Chromium: its own (``playwright install
chromium``), or one on the path, such as Debian's ``apt-get install chromium``. Skipped otherwise.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evals.report.conftest import HOSTILE

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as reason:
            pytest.skip(f"needs a Chromium: {str(reason).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(params=[("light", 375), ("dark", 375), ("light", 1280), ("dark", 1280)], ids=str)
def shown(request: pytest.FixtureRequest, browser: Any, report_path: Path) -> Iterator[Any]:
    """The page at the width of a phone and of a desktop; fails at its end if there were errors or requests."""
    scheme, width = request.param
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda one: told.append(one.url))
    page.goto(report_path.as_uri())
    yield page
    page.close()
    assert [one for one in told if not one.startswith("data:")] == [report_path.as_uri()]


def column(page: Any, number: int) -> list[str]:
    cells = page.locator(f"#numbers-table tbody tr:visible td:nth-child({number})")
    return cells.all_inner_texts()


def test_the_page_is_as_wide_as_its_window(shown: Any) -> None:
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert shown.evaluate(wide) == 0
    shown.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert shown.evaluate(wide) == 0


def test_a_click_sorts_and_another_reverses(shown: Any) -> None:
    head = shown.locator("#numbers-table th", has_text="accuracy, %")
    before = column(shown, 5)
    head.locator("button").click()
    numbers = [float(text.split()[0]) for text in column(shown, 5)]
    assert sorted(map(float, [text.split()[0] for text in before])) == numbers
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    again = [float(text.split()[0]) for text in column(shown, 5)]
    assert again == numbers[::-1]


def test_a_table_is_filtered(shown: Any) -> None:
    shown.locator("[data-table=numbers-table] select[name=method]").select_option("hard-cut")
    assert set(column(shown, 2)) == {"hard-cut"}
    assert "2 of " in shown.locator("[data-table=numbers-table] output").inner_text()


def test_a_legend_entry_hides_its_method(shown: Any) -> None:
    marks = shown.locator("#accuracy-thinking svg .s0-0")
    assert marks.first.is_visible()
    button = shown.locator("button[data-key=s0-0]")
    button.focus()
    shown.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert not marks.first.is_visible()
    shown.locator("[data-all=show]").click()
    assert marks.first.is_visible()
    shown.locator("[data-all=hide]").click()
    assert shown.locator("button[data-key][aria-pressed=true]").count() == 0


def test_a_thought_is_opened_with_its_marks_and_its_close(shown: Any) -> None:
    shown.locator("#by-method").select_option("budgetctl")
    shown.locator("#by-setting").select_option("budget 16")
    options = shown.locator("#question option").all_inner_texts()
    assert len(options) == 3
    steered = 0
    for _ in options:
        card = shown.locator(".answer")
        assert card.count() == 1
        steered += card.locator("mark").count()
        assert "at token" in card.locator(".close").inner_text()
        if not shown.locator("#after").is_disabled():
            shown.locator("#after").click()
    assert steered > 0


def test_hostile_text_is_shown_as_it_is(shown: Any) -> None:
    shown.locator("#question").select_option(index=0)
    visible = HOSTILE.replace("\ud800", "\N{REPLACEMENT CHARACTER}")
    assert (
        shown.locator("#asked .asked").text_content().replace("\ud800", "\N{REPLACEMENT CHARACTER}")
        == visible
    )
    assert shown.locator("#answers script, #answers b").count() == 0


def test_wrong_answers_only(shown: Any) -> None:
    shown.locator("#by-wrong").check()
    assert shown.locator("#answers .wrong").count() > 0
    assert shown.locator("#answers .right").count() == 0
