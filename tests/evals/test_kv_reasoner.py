"""The reasoner under a KV budget: full capacity changes nothing, rows have their own slots, and differences are paired."""

from __future__ import annotations

import json
from pathlib import Path

from typer import Typer
from typer.testing import CliRunner

from budgetctl.evals import kv_reasoner
from budgetctl.evals.kv_reasoner import Answered, equal, similar
from budgetctl.evals.kv_reasoner_report import draw, markdown, summarise


def test_batches_are_of_similar_length_and_lose_nothing() -> None:
    batches = similar([5, 9, 4, 9, 1], 2)
    assert batches == [[4, 2], [0, 1], [3]]
    assert list(equal([1, 2, 1, 2, 2], [[0, 1, 2], [3, 4]])) == [[0, 2], [1], [3, 4]]


def test_with_all_slots_the_answers_are_those_of_the_full_cache(tmp_path: Path) -> None:
    app = Typer()
    app.command()(kv_reasoner.main)
    arguments = ["--questions", "6", "--shares", "0.25,1", "--policies", "decayed-max;tova", "--json"]
    arguments += ["--out", str(tmp_path)]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    rows = {(row["name"], row["share"]): row for row in json.loads(found.stdout)}
    full = rows["full cache", None]
    assert full["accuracy"] >= 5 / 6
    for name in ("decayed-max", "tova"):
        assert rows[name, 1.0]["longer_low"] == rows[name, 1.0]["longer_high"] == 0
        assert rows[name, 1.0]["accuracy"] == full["accuracy"]
        assert rows[name, 0.25]["accuracy"] < full["accuracy"]
        records = (tmp_path / "test-6" / f"{name}-0.25.jsonl").read_text(encoding="utf-8").splitlines()
        whole = (tmp_path / "test-6" / "full.jsonl").read_text(encoding="utf-8").splitlines()
        lengths = [row["prompt"] + row["written"] for row in map(json.loads, whole)]
        assert [json.loads(record)["slots"] for record in records] == [-(-length // 4) for length in lengths]


def test_differences_are_paired_by_question(tmp_path: Path) -> None:
    def answered(correct: tuple[bool, ...], thinking: int) -> list[Answered]:
        return [Answered(at, 20, 10, thinking, 30, True, right) for at, right in enumerate(correct)]

    full = answered((True, True, True, False), 20)
    found = {
        ("diverse-max", 0.5): answered((True, True, False, False), 22),
        ("window", 0.5): answered((True, False, False, False), 30),
    }
    rows = {row["name"]: row for row in summarise(found, full)}
    assert rows["full cache"]["accuracy"] == 0.75
    assert rows["diverse-max"]["lost"] == 0.25
    assert (rows["window"]["lost"], rows["window"]["worse"]) == (0.5, 0.25)
    assert (rows["window"]["longer"], rows["window"]["longer_low"]) == (10, 10)
    lines = markdown(list(rows.values())).splitlines()
    assert ["full cache" in lines[2], "diverse-max" in lines[3], "window" in lines[4]] == [True] * 3
    assert len({line.count("|") for line in lines}) == 1
    draw(list(rows.values()), tmp_path / "reasoner.png")
    assert (tmp_path / "reasoner.png").stat().st_size > 1000


def test_a_thought_is_counted_in_tokens() -> None:
    model, tokenizer = kv_reasoner.load_reasoner()
    asked = kv_reasoner.take_questions("test", 2, min_level=5)
    model.set_attn_implementation("sdpa")
    made: list[list[int]] = []

    def cache(slots: list[int]) -> kv_reasoner.DynamicCache:
        made.append(slots)
        return kv_reasoner.DynamicCache()

    records = kv_reasoner.answer(model, tokenizer, asked, [[1], [0]], [3, 4], cache)
    assert made == [[4], [3]]
    for record, question in zip(records, asked, strict=True):
        prompt = tokenizer(
            kv_reasoner.chat_prompts(tokenizer, [question]), add_special_tokens=False
        ).input_ids[0]
        assert record.prompt == len(prompt)
        # The close, an answer and the end of sequence follow the thought.
        assert record.thinking + 3 <= record.written < record.thinking + 12
