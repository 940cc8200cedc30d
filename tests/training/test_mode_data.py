"""The command on the embedded reasoner: right rows of every kind, the same after an interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

from budgetctl.reasoner.load import load_reasoner
from budgetctl.training import mode_data
from budgetctl.training.budget_prompts import MODES
from budgetctl.training.completions import CompletionReader
from budgetctl.training.tasks import embedded_tasks

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
OPTIONS = {"model_id": "r", "samples": 2, "batch_size": 8, "max_new_tokens": 128, "answer_tokens": 12}


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_reasoner()


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, loaded: Loaded) -> Path:
    """Thoughts, sampled once."""
    out = tmp_path_factory.mktemp("traces") / "m.jsonl"
    mode_data.build(out, "l1-exact", *loaded, embedded_tasks(8, seed=4), **OPTIONS)
    return out.with_name("m.jsonl.traces.jsonl")


def build(out: Path, kind: str, loaded: Loaded, traces: Path) -> list[dict[str, Any]]:
    shutil.copy(traces, out.with_name(f"{out.name}.traces.jsonl"))
    count = mode_data.build(out, kind, *loaded, embedded_tasks(8, seed=4), **OPTIONS)
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(found) == count > 0
    return found


def test_mode_rows_are_right_and_as_long_as_their_mode(tmp_path: Path, loaded: Loaded, traces: Path) -> None:
    rows = build(tmp_path / "m.jsonl", "modes", loaded, traces)
    tokenizer = loaded[1]
    reader = CompletionReader(tokenizer)
    longest: dict[str, int] = {}
    for row in rows:
        part = reader.read(tokenizer.encode(row["completion"], add_special_tokens=False))
        assert part.closed
        assert part.finished
        assert mode_data.judge(part.answer, row)
        assert row["prompt"][0]["content"] == MODES[row["mode"]].system
        if row["mode"] == "high":
            longest[row["question_id"]] = max(longest.get(row["question_id"], 0), row["thinking_tokens"])
    assert {row["mode"] for row in rows} >= {"high"}
    for row in rows:
        connective = len(tokenizer.encode(MODES[row["mode"]].connective))
        bound = MODES[row["mode"]].share * longest[row["question_id"]] + connective
        assert row["thinking_tokens"] <= bound


def test_an_interrupted_collection_ends_with_the_same_file(
    tmp_path: Path, loaded: Loaded, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "whole.jsonl", "modes", loaded, traces)
    rows = mode_data.mode_rows
    calls = 0

    def stops(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return rows(*arguments, **options)

    monkeypatch.setattr(mode_data, "mode_rows", stops)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cut.jsonl", "modes", loaded, traces)
    assert not (tmp_path / "cut.jsonl").exists()
    build(tmp_path / "cut.jsonl", "modes", loaded, traces)
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["l1-exact", "effort"])
def test_hindsight_rows(tmp_path: Path, loaded: Loaded, traces: Path, kind: str) -> None:
    rows = build(tmp_path / "m.jsonl", kind, loaded, traces)
    reader = CompletionReader(loaded[1])
    for row in rows:
        part = reader.read(loaded[1].encode(row["completion"], add_special_tokens=False))
        assert mode_data.judge(part.answer, row)
        if kind == "l1-exact":
            assert part.total_tokens == row["target_tokens"]
            assert row["prompt"][-1]["content"].endswith(f"Think for {part.total_tokens} tokens.")


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    app = mode_data.typer.Typer()
    app.command()(mode_data.main)
    for options, message in (
        (["--kind", "l2"], "kind 'l2': expected l1-exact"),
        (["--kind", "hbpo"], "give --budgets"),
        (["--tasks", "embedded", "--count", "0"], "0 questions of embedded"),
    ):
        result = CliRunner().invoke(app, ["--out", str(tmp_path / "x.jsonl"), *options])
        assert result.exit_code == 2
        assert message in result.output
    assert not list(tmp_path.iterdir())
