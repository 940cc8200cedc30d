"""Pieces of thoughts, embedded questions, words, colours and drawings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.evals.measures.shape import Comparison, MeanInterval
from budgetctl.evals.report import words
from budgetctl.evals.report.bars import luminance
from budgetctl.evals.report.questions import embed_questions, pieces, safe_json
from budgetctl.evals.report.run import open_runs
from budgetctl.evals.report.series import DARK, LIGHT, Series, series_of
from budgetctl.evals.report.svg import inline
from tests.evals.measures.fixture import synthetic_run
from tests.evals.report.conftest import HOSTILE, few_answers, write_run

EDGES = st.lists(st.integers(0, 60), max_size=10).map(sorted)


@settings(deadline=None)
@given(st.text(max_size=50), EDGES)
def test_pieces_are_the_thought_and_every_second_one_is_steered(thought: str, edges: list[int]) -> None:
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    found = pieces(thought, spans)
    assert "".join(found) == thought
    assert len(found) % 2 == 1
    assert "".join(found[1::2]) == "".join(thought[start:stop] for start, stop in spans)


def test_of_a_long_thought_both_ends_are_kept_with_their_marks() -> None:
    thought = "a" * 40 + "b" * 100 + "c" * 40
    found = pieces(thought, [(5, 10), (30, 45), (170, 175)], longest=80)
    assert found[1::2] == ["aaaaa", "aaaaaaaaaa", "ccccc"]
    assert "100 characters left out" in found[4]
    assert "b" not in "".join(found)


@settings(deadline=None)
@given(st.text())
def test_embedded_json_is_read_back_and_holds_no_markup(text: str) -> None:
    for one in (text, text + HOSTILE):
        embedded = safe_json({"text": one})
        assert json.loads(embedded) == {"text": one}
        assert not set("<>&\u2028\u2029") & set(embedded)
        embedded.encode("utf-8")


def test_a_small_page_holds_whole_questions_of_each_task(tmp_path: Path) -> None:
    answers = synthetic_run(questions=3, seeds=(0,))
    runs = open_runs([write_run(tmp_path / "run", answers)])
    everything = embed_questions(runs)
    assert (everything.shown, everything.total, everything.shortened) == (6, 6, 0)
    some = embed_questions(runs, limit=len(everything.json.encode()) // 2)
    questions = json.loads(some.json)
    assert 2 <= some.shown == len(questions) < 6
    assert {question["task"] for question in questions} == {"chain", "dial"}
    asked = [one for one in answers if (one.task, one.item) == ("chain", "chain-0")]
    assert len(questions[0]["answers"]) == len(asked)
    assert embed_questions(runs, limit=0).shown == 1


def test_methods_look_different_on_both_grounds() -> None:
    looks = {(one.colour, one.marker) for one in (Series(0, "m", place, "m") for place in range(24))}
    assert len(looks) == 24
    for shades, ground in ((LIGHT, 1.0), (DARK, luminance("#1b1e23"))):
        for shade in shades:
            high, low = sorted((luminance(shade), ground), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 2.1, 1.4.11


def test_luminance_of_known_colours() -> None:
    assert luminance("#ffffff") == pytest.approx(1)
    assert luminance("#000000") == 0
    assert luminance("#ff0000") == pytest.approx(0.2126)
    assert luminance("#808080") == pytest.approx(0.21586, abs=1e-5)


def test_a_method_keeps_its_look_in_every_run(tmp_path: Path) -> None:
    answers = few_answers()
    one = write_run(tmp_path / "one", answers)
    two = write_run(tmp_path / "two", [a for a in answers if a.method == "hard-cut"])
    series = series_of(open_runs([one, two]), "hard-cut")
    assert [(s.method, s.run) for s in series[:2]] == [("hard-cut", 0), ("hard-cut", 1)]
    assert series[0].colour == series[1].colour
    assert series[0].dash != series[1].dash
    assert len({s.key for s in series}) == len(series)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.2, "ours is right more often"),
        (-0.2, -0.01, "theirs is right more often"),
        (-0.01, 0.2, "not told apart by these questions"),
        (0.0, 0.2, "not told apart by these questions"),
        (0.0, 0.0, "the same answers right"),
    ],
)
def test_words_say_no_more_than_the_interval(low: float, high: float, said: str) -> None:
    interval: MeanInterval = {"mean": (low + high) / 2, "low": low, "high": high}
    assert words.verdict(interval, "ours", "theirs") == said


def test_signs() -> None:
    assert words.signed(-0.04) == words.signed(0.0) == "0.0"
    assert words.signed(-1.26) == "\N{MINUS SIGN}1.3"
    assert words.points({"mean": 0.05, "low": -0.1, "high": 0.2}) == "+5.0 [\N{MINUS SIGN}10.0, +20.0]"


def test_a_sentence_counts_the_settings_that_can_be_compared() -> None:
    gains = [
        (0.1, 0.05, 0.2, True),
        (-0.1, -0.2, -0.05, True),
        (0.02, -0.1, 0.1, True),
        (0.9, 0.8, 1.0, False),
    ]
    rows = [_comparison(*gain) for gain in gains]
    (sentence,) = words.matched_sentences({"comparisons": rows}, "cut", 0.95)  # type: ignore[typeddict-item]
    assert "3 settings: better at 1, worse at 1, not told apart at 1" in sentence
    assert "between \N{MINUS SIGN}10.0 and +10.0 points" in sentence
    assert "1 more setting uses fewer or more tokens than cut" in sentence
    (alone,) = words.matched_sentences({"comparisons": rows[3:]}, "cut", 0.95)  # type: ignore[typeddict-item]
    assert alone == "ours uses fewer or more tokens than cut was measured at: not compared here."


def test_a_drawing_becomes_part_of_a_page() -> None:
    drawing = (
        '<?xml version="1.0"?><!DOCTYPE svg><svg xmlns:xlink="http://x" width="9pt" viewBox="0 0 9 9">'
        "<metadata>http://y</metadata><!-- note --><defs><path id='p'/></defs>"
        '<g id="s3-0"><path id="a" style="stroke: #0072b2; clip-path: url(#a)"/></g>'
        '<use xlink:href="#a"/><text style="font: 9px \'DejaVu Sans\', sans-serif; fill: #1c1e21">t</text></svg>'
    )
    found = inline(drawing, "plot", 'a "b" <c>')
    assert found.startswith('<svg viewBox="0 0 9 9" role="img" aria-label="a &quot;b&quot; &lt;c&gt;">')
    assert 'class="s3-0"' in found
    assert 'id="plot-a"' in found
    assert 'href="#plot-a"' in found
    assert "url(#plot-a)" in found
    assert "var(--series-0)" in found
    assert "font: 9px var(--font); fill: var(--ink)" in found
    assert "http" not in found


def _comparison(mean: float, low: float, high: float, inside: bool) -> Comparison:
    return {
        "method": "ours",
        "budget": 8,
        "effort": None,
        "reference": "cut",
        "pairs": 0,
        "gain": None,
        "token_gain": None,
        "matched": {
            "tokens": 1.0,
            "reference_tokens": 1.0,
            "inside": inside,
            "reference_accuracy": 0.5,
            "pairs": 9,
            "gain": {"mean": mean, "low": low, "high": high},
        },
    }
