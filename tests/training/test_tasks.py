"""Task datasets: right by their own verifiers, disjoint splits, and clear refusals."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import Dataset

from budgetctl.errors import TrainingError
from budgetctl.training import verifiers
from budgetctl.training.tasks import (
    BOXED,
    answer_tasks,
    embedded_tasks,
    load_tasks,
    reasoning_gym_tasks,
    sft_rl_split,
    split_by_question,
)
from budgetctl.training.verifiers import final_answer, is_correct, same_mathematics, score_answer

#: Of the ``evals`` extra.
gym = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")
mathematics = pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")
COLUMNS = {"prompt", "answer", "difficulty", "task", "entry", "question_id"}


def judged(dataset: Dataset, text: str = "The answer is \\boxed{%s}.") -> list[bool]:
    """Whether each reference answer, said in a sentence, is right by the row's verifier."""
    return [is_correct(text % row["answer"], row["answer"], row["task"], row["entry"]) for row in dataset]


def test_embedded_questions() -> None:
    dataset = embedded_tasks(40, seed=3)
    assert set(dataset.column_names) == COLUMNS
    assert len(set(dataset["question_id"])) == 40
    assert all(judged(dataset, "Answer: %s"))
    assert {row["task"] for row in dataset} == {f"embedded/{f}" for f in ("dial", "walk", "cups", "pair")}
    first = dataset[0]
    assert first["prompt"][0]["role"] == "user"
    assert not is_correct("Answer: Z99", first["answer"], first["task"])
    assert list(embedded_tasks(5, seed=3)["question_id"]) == dataset["question_id"][:5]
    assert set(embedded_tasks(9, min_level=7)["difficulty"]) <= {7, 8, 9, 10}


@gym
def test_reasoning_gym_questions_have_its_verifiers() -> None:
    dataset = reasoning_gym_tasks(
        {"leg_counting": {}, "chain_sum": {"min_terms": 3}, "letter_counting": {}}, 7, seed=2
    )
    assert [row["task"].split("/")[1] for row in dataset] == (
        ["leg_counting"] * 3 + ["chain_sum"] * 2 + ["letter_counting"] * 2
    )
    assert all(judged(dataset))
    assert not any(is_correct("-7", row["answer"], row["task"], row["entry"]) for row in dataset)
    assert all(row["prompt"][0]["content"].endswith(BOXED) for row in dataset)
    assert json.loads(dataset[4]["entry"])["config"] == {"min_terms": 3}


@gym
def test_a_verifier_of_reasoning_gym_takes_other_right_answers() -> None:
    (row,) = reasoning_gym_tasks(["countdown"], 1, seed=5)
    turned = f"{row['answer']} + 0"
    assert is_correct(f"\\boxed{{{row['answer']}}}", "", row["task"], row["entry"])
    # Uses a number that was not given: wrong, and worth a part at most.
    assert score_answer(f"\\boxed{{{turned}}}", "", row["task"], row["entry"]) < 1
    with pytest.raises(TrainingError, match="reasoning-gym 'no_such'"):
        reasoning_gym_tasks(["no_such"], 2)


@mathematics
def test_files_with_answers(tmp_path: Path) -> None:
    rows = [
        {"problem": f"What is {i}+1?", "solution": f"Add. #### {i + 1}", "level": i, "note": "x"}
        for i in range(4)
    ]
    source = Dataset.from_list(rows)
    cache = str(tmp_path / "cache")
    source.to_parquet(tmp_path / "q.parquet")
    source.to_csv(tmp_path / "q.csv")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [
        answer_tasks(tmp_path / f"q.{kind}", difficulty_column="level", cache_dir=cache)
        for kind in ("jsonl", "parquet", "csv")
    ]
    assert found[0].to_list() == found[1].to_list() == found[2].to_list()
    assert list(found[0]["answer"]) == ["1", "2", "3", "4"]
    assert list(found[0]["difficulty"]) == [0, 1, 2, 3]
    assert all(judged(found[0]))
    few = load_tasks(str(tmp_path / "q.jsonl"), 2, instruction="", cache_dir=cache)
    assert [row["prompt"][0]["content"] for row in few] == ["What is 0+1?", "What is 1+1?"]


@mathematics
def test_messages_stay_messages(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": messages, "answer": 2}) + "\n")
    (row,) = answer_tasks(tmp_path / "q.jsonl", cache_dir=str(tmp_path / "cache"))
    assert row["prompt"] == [messages[0], {"role": "user", "content": f"1+1?\n{BOXED}"}]
    assert row["answer"] == "2"
    (tmp_path / "q.jsonl").write_text('{"prompt": "1+1?", "answer": null, "level": null}\n')
    (row,) = answer_tasks(tmp_path / "q.jsonl", difficulty_column="level", cache_dir=str(tmp_path / "cache"))
    assert row["answer"] is None
    assert row["difficulty"] is None


def test_splits_share_no_question_and_do_not_depend_on_the_order() -> None:
    dataset = embedded_tasks(200)
    doubled = Dataset.from_list([*dataset.to_list(), *dataset.to_list()[::-1]], features=dataset.features)
    train, held_out = split_by_question(doubled, 0.25, seed=1)
    assert len(train) + len(held_out) == 400
    assert not set(train["question_id"]) & set(held_out["question_id"])
    assert 60 <= len(held_out) <= 140
    once = split_by_question(dataset, 0.25, seed=1)
    assert set(once[1]["question_id"]) == set(held_out["question_id"])
    assert set(split_by_question(dataset, 0.25, seed=2)[1]["question_id"]) != set(held_out["question_id"])
    more = split_by_question(embedded_tasks(300), 0.25, seed=1)
    assert set(once[1]["question_id"]) <= set(more[1]["question_id"])


def test_a_small_share_goes_to_the_warm_up() -> None:
    warm_up, rest = sft_rl_split(embedded_tasks(500))
    assert 25 <= len(warm_up) <= 75
    assert len(warm_up) + len(rest) == 500
    assert not set(warm_up["question_id"]) & set(rest["question_id"])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}} or \\boxed{3}", "3"),
        ("The Answer is: **7**", "7"),
        ("x", "x"),
        ("\\boxed{a", "\\boxed{a"),
    ],
)
def test_the_answer_inside_a_text(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@mathematics
@pytest.mark.parametrize(
    ("text", "answer", "same"),
    [
        ("\\boxed{\\frac{1}{2}}", "0.5", True),
        ("Answer: 1/2", "\\frac{1}{2}", True),
        ("Answer: 1,000", "1000", True),
        ("It is 12", "13", False),
        ("", "4", False),
        ("Answer: Paris.", "paris", True),
        ("\\boxed{B}", "A", False),
    ],
)
def test_answers_are_compared_as_mathematics_or_as_text(text: str, answer: str, same: bool) -> None:
    assert same_mathematics(text, answer) is same


@mathematics
def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"text": "1+1?", "answer": "2"}\n')
    cache = str(tmp_path / "cache")
    with pytest.raises(TrainingError, match="columns text, answer: expected one of prompt, question"):
        answer_tasks(tmp_path / "q.jsonl", cache_dir=cache)
    with pytest.raises(TrainingError, match="expected 'gold' for the answers"):
        answer_tasks(tmp_path / "q.jsonl", question_column="text", answer_column="gold", cache_dir=cache)
    (tmp_path / "broken.jsonl").write_text('{"question": "1+1?", "answer": \n')
    with pytest.raises(TrainingError, match=r"broken\.jsonl cannot be read"):
        answer_tasks(tmp_path / "broken.jsonl", cache_dir=cache)
    with pytest.raises(TrainingError, match=r"missing\.jsonl cannot be read"):
        answer_tasks(tmp_path / "missing.jsonl", cache_dir=cache)


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="expected at least one; write its name"):
        load_tasks("reasoning-gym:", 2)
    with pytest.raises(TrainingError, match="None questions of embedded"):
        load_tasks("embedded")
    with pytest.raises(TrainingError, match="stream 'dev'"):
        embedded_tasks(2, split="dev")
    with pytest.raises(TrainingError, match="share 2: expected 0 to 1"):
        split_by_question(embedded_tasks(2), 2)
    with pytest.raises(TrainingError, match="expected JSON with seed"):
        is_correct("1", "1", "reasoning-gym/chain_sum", "{}")
    with pytest.raises(TrainingError, match="expected a family of"):
        is_correct("1", "1", "embedded/chess")
    monkeypatch.setattr(verifiers, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="math_verify is not installed"):
        answer_tasks("q.jsonl")
    with pytest.raises(TrainingError, match="reasoning_gym is not installed"):
        reasoning_gym_tasks(["chain_sum"], 1, seed=99)
