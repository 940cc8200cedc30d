"""``budgetctl explain``: what it tells of a generation, on the terminal, as JSON and as a figure."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from budgetctl.cli import explain_figure
from budgetctl.cli.answer import Answer
from budgetctl.cli.explain_chart import HEIGHT, chart, columns_of, top_of
from budgetctl.cli.explain_figure import write_figure
from budgetctl.cli.explain_style import FORCED_STYLE, SCALE
from budgetctl.cli.explain_view import show, thought_text
from budgetctl.cli.explanation import Explanation
from budgetctl.reasoner.load import WEIGHTS
from budgetctl.step_trace import StepTrace

Run = Callable[..., Any]
needs_weights = pytest.mark.skipif(
    not (WEIGHTS / "config.json").exists(), reason="needs the embedded reasoner's weights"
)
QUESTION = "A dial shows 6: turn -4 -2 -4 +3 +4 +1 -3. Where does it stop?"


def step(position: int, **changed: Any) -> StepTrace:
    """A token of a thought that was not steered, with 10 tokens of budget."""
    plain = StepTrace(
        position=position,
        token_id=5,
        token="x",
        thinking=True,
        closes=False,
        used=position,
        left=max(10 - position, 0),
        budget=10,
        remaining=(1.0, 6.0, 14.0),
        probability=0.5,
        guided_probability=0.5,
        push=0.0,
        kl=0.0,
        loser=None,
        loser_probability=0.0,
        loser_guided=0.0,
        boundary=False,
        window=False,
        forced=False,
    )
    return replace(plain, **changed)


def explanation(steps: list[StepTrace], close: str = "natural") -> Explanation:
    told = Answer("Why?", "x", "y", "x y", len(steps), 1, 10, 12.0, close, False, 2.0, 0, 0.1)
    return Explanation(told, "low", None, steps)


def printed(explained: Explanation, width: int = 80) -> str:
    console = Console(width=width, highlight=False, file=io.StringIO())
    show(console, explained)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_json_agrees_with_generate(run: Run, predictor_dir: str) -> None:
    options = ("How many?", "--effort", "low", "--predictor", predictor_dir, "--seed", "3", "--json")
    told = json.loads(run("explain", *options).stdout)
    (answer,) = json.loads(run("generate", *options).stdout)["results"]
    assert {**told["result"], "seconds": 0} == {**answer, "seconds": 0}
    steps = told["steps"]
    text = "".join(s["token"] for s in steps)
    assert text.removesuffix("<|im_end|>") == answer["text"]
    assert sum(s["thinking"] and not s["closes"] for s in steps) == answer["thinking_tokens"]
    assert {s["budget"] for s in steps} == {answer["thinking_budget"]}
    assert [s["position"] for s in steps] == list(range(len(steps)))
    assert all(s["remaining"] is None or len(s["remaining"]) == 3 for s in steps)
    assert told["limit"] == "effort low"
    assert told["steered_tokens"] == sum(s["thinking"] and s["kl"] >= 0.05 and not s["forced"] for s in steps)


def test_without_a_predictor(run: Run) -> None:
    told = json.loads(run("explain", "How many?", "--thinking-budget", "2", "--seed", "1", "--json").stdout)
    assert all(s["remaining"] is None for s in told["steps"])
    assert told["limit"] == "at most 2 tokens"
    result = run("explain", "How many?", "--thinking-budget", "9", "--seed", "1")
    assert result.exit_code == 0, result.stderr
    assert "forecast" not in result.stdout
    free = json.loads(run("explain", "How many?", "--seed", "1", "--json").stdout)
    assert {s["left"] for s in free["steps"]} == {None}
    assert {s["kl"] for s in free["steps"]} == {0}
    assert free["limit"] == "no limit"


@needs_weights
@pytest.mark.parametrize(("seed", "close"), [("1", "forced"), ("0", "natural")])
def test_the_embedded_reasoner_explains_itself(run: Run, seed: str, close: str, tmp_path: Path) -> None:
    png = tmp_path / "out.png"
    options = (QUESTION, "--effort", "low", "--seed", seed)
    result = run("explain", *options, "--png", png, embedded=True)
    assert result.exit_code == 0, result.stderr
    told = json.loads(run("explain", *options, "--json", embedded=True).stdout)
    assert told["result"]["close"] == close
    shown = " ".join(result.stdout.split())
    assert QUESTION in shown
    assert told["why"] in shown
    assert f"Steered: {told['steered_tokens']} of" in shown
    assert f"closed {close}" in shown
    for line in told["result"]["thinking"].splitlines():
        assert line in result.stdout
    with Image.open(png) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400


@pytest.mark.parametrize(
    ("close", "changed", "said"),
    [
        ("forced", {"used": 10, "left": 0}, "the budget of 10 tokens was spent"),
        ("forced", {"used": 1, "left": 0, "budget": 1}, "the budget of 1 token was spent"),
        ("forced", {"used": 3, "left": 0}, "the tokens kept for the answer begin there"),
        ("forced", {"used": 3, "left": 0, "budget": None}, "the tokens kept for the answer begin there"),
        ("forced", {"used": 9, "left": 1}, "a line or sentence ended with 1 token left"),
        ("natural", {"left": 7}, "itself with 7 tokens left: the close had a probability of 50 % with"),
        (
            "natural",
            {"left": None, "probability": 0.3},
            "itself: the close had a probability of 30 % without",
        ),
        (
            "steered",
            {"probability": 0.004, "guided_probability": 0.4},
            "tipped it with 8 tokens left: the close had a probability of below 1 % without guidance and 40 % with",
        ),
    ],
)
def test_why(close: str, changed: dict[str, Any], said: str) -> None:
    steps = [step(0), step(1), step(2, closes=True, **changed)]
    assert said in explanation(steps, close).why


def test_what_was_asked_for(run: Run) -> None:
    target = ("--thinking-target", "9", "--target-tolerance", "2", "--max-extensions", "2")
    told = json.loads(run("explain", "x", *target, "--json").stdout)
    assert told["limit"] == "a target of 9 ± 2 tokens, at most 2 times extended"
    assert 7 <= told["result"]["thinking_tokens"] <= 11
    rule = '{"threshold": 1e-9, "every": 3, "answer_prompt": "A:", "probe_tokens": 2}'
    told = json.loads(run("explain", "x", "--early-exit", rule, "--seed", "1", "--json").stdout)
    assert told["limit"] == "early exit by confidence"
    assert "tokens left: they showed that the answer was there; the close had a probability" in told["why"]
    assert (told["result"]["close"], told["result"]["thinking_tokens"]) == ("early", 3)
    assert [s["forced"] for s in told["steps"] if s["closes"]] == [True]


def test_why_not_closed() -> None:
    assert (
        "not closed: the generation ended after 2 new tokens" in explanation([step(0), step(1)], "none").why
    )
    assert explanation([step(0, thinking=False)], "none").why == "There was no thought."


def test_colours_of_the_thought() -> None:
    steps = [
        step(0),
        step(1, kl=0.06),
        step(2, kl=0.7, token="y\n"),
        step(3, kl=9.0, forced=True, token="\n"),
        step(4, kl=0.049),
    ]
    text = thought_text(steps)
    assert text.plain == "xxy\n⏎\nx"
    styles = [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]
    assert styles == [
        ("x", "dim"),
        ("x", f"black on {SCALE[0][1]}"),
        ("y", f"black on {SCALE[2][1]}"),
        ("⏎", FORCED_STYLE),
        ("x", "dim"),
    ]


@pytest.mark.parametrize("count", [1, 4, 30, 200, 1000])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_chart_fits(count: int, width: int) -> None:
    steps = [step(i, left=count - i, kl=0.3 * (i == count - 1)) for i in range(count)]
    lines = chart(steps, width).plain.splitlines()
    assert len(lines) == HEIGHT + 4
    assert max(map(len, lines)) <= width
    assert lines[-2].count("▲") == 1
    assert columns_of(steps, width)[-1].strongest.position == count - 1


def test_chart_heights() -> None:
    """What is left, the median and the band stand where they should, in twentieths and tenths of the top."""
    steps = [
        step(0, left=20, remaining=(2.0, 10.0, 20.0)),
        step(1, left=19, remaining=(2.0, 10.0, 20.0)),
        step(2, left=6, remaining=(2.0, 4.0, 16.0)),
        step(3, left=0, remaining=None),
    ]
    assert top_of(steps) == 20
    lines = chart(steps, 80).plain.splitlines()
    drawn = {10 - row: line[7:19:3] for row, line in enumerate(lines[: HEIGHT + 1])}
    for height, cells in drawn.items():
        expected = ""
        for one in steps:
            half = one.left
            low, median, high = one.remaining or (99, 99, -1)
            if half in (2 * height, 2 * height - 1):
                expected += "▀" if half == 2 * height else "▄"
            elif median / 2 == height:
                expected += "─"
            else:
                expected += "░" if low / 2 <= height <= high / 2 else " "
        assert cells.ljust(4) == expected, height


def test_a_far_limit_does_not_flatten_the_chart() -> None:
    assert top_of([step(0, left=4000, remaining=(5.0, 20.0, 28.0))]) == 28
    assert top_of([step(0, left=24, remaining=(5.0, 30.0, 400.0))]) == 45
    assert top_of([step(0, left=40, remaining=None)]) == 40
    assert top_of([]) == 1


def test_the_most_steered_are_told() -> None:
    steps = [step(i, kl=0.1 + i / 100, loser="loser", loser_probability=0.4) for i in range(10)]
    text = printed(explanation(steps))
    assert "Steered: 10 of 10 tokens, the 8 most of them" in text
    rows = [line for line in text.splitlines() if "loser" in line]
    assert [int(row.split("│")[1]) for row in rows] == list(range(2, 10))
    assert all("50 → 50 %" in row and "40 → 0 %" in row for row in rows)
    assert "Steered:" not in printed(explanation([step(0)]))
    assert "┤" not in printed(explanation([step(i) for i in range(3)]))
    assert "There was no thought." in printed(explanation([step(0, thinking=False)], "none"))


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [step(0, closes=True, forced=True, kl=7.0, left=0)],
        [step(i, left=None, remaining=None) for i in range(5)],
        [step(i, token="日$x_2$\n", kl=0.3, loser="$^", loser_probability=0.5) for i in range(12)],
        [step(i, left=200 - i) for i in range(200)],
    ],
)
def test_figure_of_any_thought(steps: list[StepTrace], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_figure(explanation(steps), path)
    with Image.open(path) as image:
        image.load()
        assert len(image.getcolors(1 << 20) or []) > 10
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_figure_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    path = tmp_path / "a.png"
    path.write_text("before")

    def fail(self: Figure, name: Path, **options: Any) -> None:
        name.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        write_figure(explanation([step(0)]), path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.usefixtures("no_model")
def test_a_bad_path_is_refused_before_the_model_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name, said in (
        ("a.svg", "ends in .png"),
        ("none/a.png", "a folder that is"),
        ("folder.png", "a file in"),
    ):
        result = run("explain", "x", "--thinking-budget", "2", "--png", tmp_path / name)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr


@pytest.mark.usefixtures("no_model")
def test_missing_matplotlib_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_figure, "find_spec", lambda name: None)
    result = run("explain", "x", "--thinking-budget", "2", "--png", tmp_path / "a.png")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "budgetctl-llm[evals]" in line


@pytest.mark.usefixtures("no_model")
def test_bad_requests(run: Run) -> None:
    assert "fraction of the predicted length" in run("explain", "x", "--effort", "low").stderr
    assert "not UTF-8" in run("explain", "-", stdin=b"\xff").stderr
    assert "expected text" in run("explain", "-", stdin="").stderr


def test_the_question_from_stdin(run: Run) -> None:
    told = json.loads(run("explain", "-", "--thinking-budget", "1", "--json", stdin="How many?\n").stdout)
    assert told["result"]["prompt"] == "How many?"
