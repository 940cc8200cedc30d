"""Questions by name: the same in every run, more of them begin with fewer, and whatever is wrong is named by its line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from budgetctl.errors import EvalError
from budgetctl.evals.harness.hub_tasks import HUB_TASKS
from budgetctl.evals.harness.tasks import load_task, load_tasks
from budgetctl.training.verifiers import is_correct

needs_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed"
)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "name", ["embedded", "embedded/dial", "embedded/walk", "embedded/cups", "embedded/pair"]
)
def test_the_graded_family(name: str) -> None:
    items = load_task(name, 12, seed=3)
    assert items == load_task(name, 12, seed=3)
    assert load_task(name, 5, seed=3) == items[:5]
    assert {i.prompt for i in load_task(name, 12, seed=4)} != {i.prompt for i in items}
    assert len({item.id for item in items}) == len({item.prompt for item in items}) == 12
    family = name.partition("/")[2]
    assert all(
        family in item.verifier and item.task == name and 1 <= (item.level or 0) <= 10 for item in items
    )
    for item in items:
        assert is_correct(f"Answer: {item.answer}", item.answer, item.verifier)
        assert not is_correct("Answer: 99 X", item.answer, item.verifier)


@needs_gym
def test_reasoning_gym_is_judged_by_its_own_scores() -> None:
    items = load_task("reasoning-gym/chain_sum", 4, seed=1)
    assert [item.id for item in items] == ["1:0", "1:1", "1:2", "1:3"]
    for item in items:
        assert "\\boxed{}" in item.prompt
        assert is_correct(f"so \\boxed{{{item.answer}}}", item.answer, item.verifier, item.entry)
        assert not is_correct("\\boxed{1e9}", item.answer, item.verifier, item.entry)
    with pytest.raises(EvalError, match=r"data set 'chain_sums': expected one of its \d+, such as chain_sum"):
        load_task("reasoning-gym/chain_sums", 4)


def test_a_file_of_questions(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "1 + 1?", "answer": 2, "level": 3},
        "",
        {"question": "2 + 2?", "solution": "First ... #### 4", "id": "second"},
        {"problem": "3 + 3?", "ground_truth": "6", "difficulty": 1.5, "task": "embedded/dial"},
    )
    items = {item.prompt: item for item in load_task(str(path), None)}
    assert {item.task for item in items.values()} == {"mine"}
    assert {p: (i.id, i.answer, i.level, i.verifier) for p, i in items.items()} == {
        "1 + 1?": ("0", "2", 3.0, ""),
        "2 + 2?": ("second", "4", None, ""),
        "3 + 3?": ("2", "6", 1.5, "embedded/dial"),
    }


def test_which_of_a_file_follows_from_the_seed(tmp_path: Path) -> None:
    path = str(write(tmp_path / "mine.jsonl", *({"prompt": f"{i}?", "answer": f"{i}"} for i in range(30))))
    taken = [load_task(path, n, seed=0) for n in (30, 10, 99)]
    assert taken[1] == taken[0][:10]
    assert taken[2] == taken[0]
    assert taken[0] != load_task(path, 30, seed=1)
    assert sorted(item.id for item in taken[0]) == sorted(str(i) for i in range(30))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ('"text"', "line 2 is a JSON str"),
        ({"prompt": "1?"}, "line 2 has no answer"),
        ({"prompt": "1?", "answer": None}, "line 2 has no answer"),
        ({"prompt": "1?", "answer": "  "}, "line 2 has no answer"),
        ({"answer": "1"}, "line 2 has no question"),
        ({"prompt": ["1?"], "answer": "1"}, "line 2 has no question"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, said: str) -> None:
    path = write(tmp_path / "mine.jsonl", {"prompt": "0?", "answer": "0"}, line)
    with pytest.raises(EvalError, match=f"mine.jsonl, {said}"):
        load_task(str(path), 4)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="no file"):
        load_task(str(tmp_path / "none.jsonl"), 4)
    with pytest.raises(EvalError, match="is empty"):
        load_task(str(write(tmp_path / "empty.jsonl")), 4)


def test_names_that_are_not_known() -> None:
    for name in ("embeded", "embedded/dice", "reasoning-gym", "gsm9k", "squad=x.jsonl"):
        with pytest.raises(EvalError, match="gsm8k, aime24"):
            load_task(name, 4)
    with pytest.raises(EvalError, match="'embedded' is given twice"):
        load_tasks(["embedded", "embedded"], 2)
    with pytest.raises(EvalError, match="expected at least 1"):
        load_task("embedded", None)


MATHEMATICS = {
    "math500": {"problem": "Half of 1?", "solution": "Long.", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 2, "unique_id": "test/a/1.json"},
    "gsm8k": {"question": "Half of 1?", "answer": "It is <<1/2=0.5>>0.5\n#### 1/2"},
    "aime24": {"id": 60, "problem": "Half of 1?", "solution": "Long.", "answer": "1/2", "url": "x", "year": "2024"},
    "aime25": {"problem": "Half of 1?", "answer": "1/2", "id": "0"},
}  # fmt: skip


@pytest.mark.parametrize("name", MATHEMATICS)
def test_benchmarks_of_mathematics(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", MATHEMATICS[name])
    (item,) = load_task(f"{name}={path}", 4)
    assert (item.task, item.prompt) == (name, "Half of 1?\nPut the final answer within \\boxed{}.")
    assert item.level == (2.0 if name == "math500" else None)
    assert is_correct("It is \\boxed{0.5}.", item.answer, item.verifier)
    assert not is_correct("It is \\boxed{2}.", item.answer, item.verifier)


GPQA = {
    "Question": "Which?",
    "Correct Answer": "right\n",
    **{f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)},
}


def test_choices_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *({**GPQA, "Record ID": f"rec{i}"} for i in range(40)))
    items = load_task(f"gpqa-diamond={path}", 40)
    assert {item.answer for item in items} == set("ABCD")
    for item in items:
        assert f"{item.answer}) right\n" in item.prompt
        assert is_correct(f"The answer is ({item.answer}), as A and B say.", item.answer, item.verifier)
        assert is_correct(f"\\boxed{{\\text{{{item.answer}}}}}", item.answer, item.verifier)
        other = "ABCD"["ABCD".index(item.answer) - 1]
        assert not is_correct(f"\\boxed{{{other}}}", item.answer, item.verifier)
        assert not is_correct("I cannot say.", item.answer, item.verifier)
    again = {item.id: item.answer for item in load_task(f"gpqa-diamond={path}", 40, seed=1)}
    assert again != {item.id: item.answer for item in items}
    short = {name: value for name, value in GPQA.items() if name != "Incorrect Answer 3"}
    with pytest.raises(EvalError, match="line 1 has no choice 3"):
        load_task(f"gpqa-diamond={write(path, short)}", 4)


def test_code_is_read_and_never_run(tmp_path: Path) -> None:
    row = {"question_id": 1, "id": "sample_0", "code": "def f(x):\n    return [x, 'a']", "input": "f(1)", "output": "[1, 'a']", "difficulty": "medium"}  # fmt: skip
    path = write(tmp_path / "rows.jsonl", row)
    (item,) = load_task(f"livecodebench={path}", 4)
    assert "`f(1)`" in item.prompt
    assert item.level == 2.0
    assert is_correct('Thinking.\nAnswer: [1,"a"]', item.answer, item.verifier)
    assert is_correct("Answer: `[1, 'a']`", item.answer, item.verifier)
    for wrong in (
        "Answer: [1, 'b']",
        "Answer: f(1)",
        "Answer: __import__('os').abort()",
        "no",
        "Answer: " + "(" * 500,
    ):
        assert not is_correct(wrong, item.answer, item.verifier)
    program = {"question_content": "Write it.", "starter_code": "", "public_test_cases": "[]"}
    with pytest.raises(EvalError, match="judged by running it, and code of a model is not run here"):
        load_task(f"livecodebench={write(path, program)}", 4)


def test_benchmarks_without_an_answer_are_refused(tmp_path: Path) -> None:
    for name in HUB_TASKS:
        path = write(tmp_path / "rows.jsonl", {"problem": "?", "Question": "?", "code": "f", "input": "f()"})
        with pytest.raises(EvalError, match=r"line 1 has no answer"):
            load_task(f"{name}={path}", 4)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
def test_tables_are_read_as_well(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("question,answer\n1 + 1?,2\n2 + 2?,4\n")
    assert {(i.prompt, i.answer) for i in load_task(str(path), 4)} == {("1 + 1?", "2"), ("2 + 2?", "4")}
    path.write_text("question,answer\n1 + 1?,\n")
    with pytest.raises(EvalError, match="row 1 has no answer"):
        load_task(str(path), 4)
