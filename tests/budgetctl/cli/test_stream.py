from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from budgetctl.cli import stream
from budgetctl.cli.load import choose_device, open_model, open_predictor
from budgetctl.cli.requests import Settings, make_request

Run = Callable[..., Any]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_piped_output_has_thought_answer_and_summary(run: Run, seed: int) -> None:
    common = ("generate", "x", "--thinking-budget", "6", "--seed", seed)
    (answer,) = json.loads(run(*common, "--json").stdout)["results"]
    result = run(*common, "--stream")
    assert result.exit_code == 0, result.stderr
    shown, summary = result.stdout.rstrip().rsplit("\n\n", 1)
    parts = [part for part in (answer["thinking"], answer["answer"]) if part]
    assert shown.strip() == "\n\n".join(parts)
    assert summary == f"thinking {answer['thinking_tokens']} of 6 tokens · closed {answer['close']}"


def test_a_terminal_shows_the_count_while_it_thinks(
    model_dir: str, predictor_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(stream, "out", lambda: console)
    loaded = open_model(model_dir, open_predictor(model_dir, predictor_dir), choose_device("cpu"))
    settings = Settings()
    limits = {"thinking_budget": 9, "min_thinking_tokens": 8}
    request = make_request("x", limits, settings, has_predictor=True)
    told: list[tuple[int, int | None, float | None]] = []
    tell = stream.LiveView.tell

    def record(view: stream.LiveView, *values: Any) -> None:
        told.append(values)
        tell(view, *values)

    monkeypatch.setattr(stream.LiveView, "tell", record)
    answer = stream.stream_answer(loaded, request, settings)
    assert [used for used, _, _ in told] == list(range(1, answer.thinking_tokens + 1))
    assert {budget for _, budget, _ in told} == {9}
    assert {round(predicted or 0, 1) for _, _, predicted in told} == {answer.predicted_tokens}
    assert stream.summary_line(answer) in console.file.getvalue()  # type: ignore[attr-defined]
