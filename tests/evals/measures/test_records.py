"""Records read back, and what is wrong with a file said with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from budgetctl.errors import EvalError
from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures.records import ordered, read_records
from budgetctl.evals.output import write_jsonl
from tests.evals.measures.fixture import make_answer, synthetic_run


def _write(folder: Path, *lines: str) -> Path:
    (folder / "records.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    answers = synthetic_run(questions=2)
    write_jsonl(tmp_path / "records.jsonl", (one.as_dict() for one in answers))
    assert read_records(tmp_path) == answers


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    odd = make_answer(thought="one\u2028two\x85three\x0b", extra={"probes": 2})
    _write(tmp_path, json.dumps(odd.as_dict(), ensure_ascii=False))
    assert read_records(tmp_path) == [odd]


def _changed(**changes: Any) -> str:
    return json.dumps({**make_answer().as_dict(), **changes})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (_changed()[:-30], "records.jsonl:2: "),
        ("", "records.jsonl:2: "),
        ("[1, 2]", "records.jsonl:2: a JSON list: expected one answer a line"),
        ("\udcff", "records.jsonl:2: "),
        (_changed(colour="red"), "records.jsonl:2: a record differs in colour"),
        (_changed(close="abrupt"), "close 'abrupt' is none of natural, steered"),
        (_changed(thinking_tokens=-1), "thinking_tokens -1 is not a number"),
        (_changed(seconds="soon"), "seconds 'soon' is not a number"),
        (_changed(seconds=float("nan")), "seconds nan is not a number"),
        (_changed(item=7), "item 7 is no text"),
        (_changed(steered=[[1]]), "records.jsonl:2: "),
        (_changed(steered=None), "records.jsonl:2: "),
    ],
)
def test_a_line_that_is_no_answer(tmp_path: Path, line: str, says: str) -> None:
    data = "\n".join([_changed(), line, _changed()]) + "\n"
    (tmp_path / "records.jsonl").write_bytes(data.encode("utf-8", "surrogateescape"))
    with pytest.raises(EvalError) as error:
        read_records(tmp_path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_no_records(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"no records\.jsonl in"):
        read_records(tmp_path)
    with pytest.raises(EvalError, match="holds no answers"):
        read_records(_write(tmp_path))
    with pytest.raises(EvalError, match="no answers to summarise"):
        ordered([])


def test_a_question_answered_twice() -> None:
    one = make_answer(seed=4)
    with pytest.raises(
        EvalError, match=r"two answers of hard-cut to question 0 of dial at budget 16.* seed 4"
    ):
        ordered([one, make_answer(seed=5), make_answer(seed=4, correct=False)])
    assert len(ordered([one, make_answer(seed=5), make_answer(task="chain", seed=4)])) == 3


def test_order_is_by_budget_then_effort_none_last() -> None:
    settings: list[dict[str, Any]] = [
        {"budget": None, "effort": None},
        {"budget": 128, "effort": None},
        {"budget": None, "effort": "high"},
        {"budget": None, "effort": 0.5},
        {"budget": 16, "effort": None},
        {"budget": None, "effort": "low"},
        {"budget": 0, "effort": None},
        {"budget": None, "effort": 0.25},
        {"budget": 16, "effort": "low"},
    ]
    found = ordered(make_answer(**setting) for setting in settings)
    assert [(one.budget, one.effort) for one in found] == [
        (0, None),
        (16, "low"),
        (16, None),
        (128, None),
        (None, "low"),
        (None, "high"),
        (None, 0.25),
        (None, 0.5),
        (None, None),
    ]


def test_answers_keep_their_fields() -> None:
    one = make_answer(steered=((0, 3), (5, 9)))
    assert Answer.from_dict(json.loads(json.dumps(one.as_dict()))) == one
