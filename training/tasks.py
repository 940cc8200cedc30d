"""Questions with verifiable answers as datasets for training: the embedded family, reasoning-gym, or any file or hub id.

Every row has

* ``prompt``: messages, as TRL takes them, so that the model's chat template opens the thought;
* ``answer``: the reference answer, empty where the verifier of the row knows it otherwise, None where there is none
  (such a row gets no reward);
* ``difficulty``: a number, or None;
* ``task`` and ``entry``: which verifier judges it, with what (``training/verifiers.py``);
* ``question_id``: a hash of the prompt, the same in every run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from budgetctl.errors import TrainingError
from budgetctl.reasoner.tasks import SPLIT_SEED, take_questions
from budgetctl.training.sources import read_dataset
from budgetctl.training.verifiers import EMBEDDED, REASONING_GYM, gym_dataset, require_package

BOXED = "Put the final answer within \\boxed{}."
QUESTION_COLUMNS = ("prompt", "question", "problem", "instruction")
ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "final_answer")
_FEATURES = Features(
    {
        "prompt": [{"role": Value("string"), "content": Value("string")}],
        "answer": Value("string"),
        "difficulty": Value("float64"),
        "task": Value("string"),
        "entry": Value("string"),
        "question_id": Value("string"),
    }
)


def embedded_tasks(count: int, *, split: str = "train", seed: int = 0, min_level: int = 1) -> Dataset:
    """``count`` distinct questions of the embedded reasoner's family; the difficulty is the number of steps.

    Raises:
        TrainingError: an unknown stream of questions.
    """
    if split not in SPLIT_SEED:
        raise TrainingError(f"stream {split!r}: expected one of {', '.join(SPLIT_SEED)}; correct it")
    questions = take_questions(split, count, seed, min_level)
    return _dataset([_row(q.prompt, q.answer, q.level, EMBEDDED + q.family) for q in questions])


def reasoning_gym_tasks(
    names: Sequence[str] | Mapping[str, Mapping[str, Any]],
    count: int,
    *,
    seed: int = 0,
    instruction: str = BOXED,
) -> Dataset:
    """Questions of reasoning-gym, which makes them by seed, without network.

    Args:
        names: its datasets; or names with the settings of each.
        count: questions of all datasets together, each as many as the others or one more.
        seed: of the questions.
        instruction: added to each question; the verifier looks for ``\\boxed{}`` first.

    Raises:
        TrainingError: a name or a setting that it does not know.
    """
    settings = dict(names) if isinstance(names, Mapping) else {name: {} for name in names}
    if not settings:
        raise TrainingError("no dataset of reasoning-gym was named: expected at least one; write its name")
    rows = []
    for place, (name, config) in enumerate(settings.items()):
        size = len(range(place, count, len(settings)))
        entry = {"seed": seed, "size": max(size, 1), "config": dict(config)}
        try:
            dataset = gym_dataset(name, seed, max(size, 1), json.dumps(entry["config"], sort_keys=True))
        except (ValueError, TypeError, AssertionError) as error:
            raise TrainingError(
                f"reasoning-gym {name!r} ({error}): expected one of its datasets with its own settings; correct the name"
            ) from error
        for index in range(size):
            item = dataset[index]
            answer = "" if item["answer"] is None else str(item["answer"])
            settings_of_item = json.dumps(entry | {"index": index})
            rows.append(
                _row(item["question"], answer, None, REASONING_GYM + name, settings_of_item, instruction)
            )
    return _dataset(rows)


def answer_tasks(
    source: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    question_column: str | None = None,
    answer_column: str | None = None,
    difficulty_column: str | None = None,
    instruction: str = BOXED,
    cache_dir: str | None = None,
) -> Dataset:
    """A file (JSON lines, parquet, csv) or a dataset of the hub, with questions and answers; math-verify judges it.

    A reference answer that ends in ``#### x`` (GSM8K) is cut to ``x``.

    Args:
        source: path, or hub id.
        name: configuration of a dataset of the hub.
        split: its split.
        question_column: text or messages; by default the first there of ``QUESTION_COLUMNS``.
        answer_column: by default the first there of ``ANSWER_COLUMNS``.
        difficulty_column: numbers; None for none.
        instruction: added to each question.
        cache_dir: where the ``datasets`` library keeps its copy.

    Raises:
        TrainingError: the source cannot be read, a column is missing, or math-verify is not installed.
    """
    require_package("math_verify")
    loaded = read_dataset(source, name, split, cache_dir)
    question = _pick(loaded.column_names, question_column, QUESTION_COLUMNS, "questions", str(source))
    answer = _pick(loaded.column_names, answer_column, ANSWER_COLUMNS, "answers", str(source))
    if difficulty_column is not None:
        _pick(loaded.column_names, difficulty_column, (), "difficulties", str(source))
    rows = []
    for row in loaded:
        level = None if difficulty_column is None else row[difficulty_column]
        given = row[answer]
        reference = None if given is None else str(given).rsplit("####", 1)[-1].strip()
        rows.append(_row(row[question], reference, level, "answers", "", instruction))
    return _dataset(rows)


def load_tasks(source: str, count: int | None = None, *, seed: int = 0, **options: Any) -> Dataset:
    """Any of the above by one text: ``embedded``, ``reasoning-gym:name,name``, a path or a hub id.

    Args:
        source: as above.
        count: questions; needed for those that are made, the first of a file or dataset otherwise.
        seed: of those that are made.
        options: of the function that is meant.

    Raises:
        TrainingError: as of those, or without a count where one is needed.
    """
    family, _, names = source.partition(":")
    if family in ("embedded", "reasoning-gym"):
        if count is None or count < 1:
            raise TrainingError(
                f"{count} questions of {source}: expected at least 1; say how many are to be made"
            )
        if family == "embedded":
            return embedded_tasks(count, seed=seed, **options)
        chosen = [name for name in names.split(",") if name]
        return reasoning_gym_tasks(chosen, count, seed=seed, **options)
    found = answer_tasks(source, **options)
    return found if count is None else found.select(range(min(count, len(found))))


def split_by_question(dataset: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Two datasets without a common question, the second with about ``share`` of the questions.

    Which question goes where follows from its id and the seed: not from its place, nor from what else is there, so that
    a dataset that grows keeps its held-out questions apart.

    Args:
        dataset: with ``question_id``; rows of one question stay together.
        share: 0 to 1.
        seed: of the choice.

    Raises:
        TrainingError: a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise TrainingError(f"share {share}: expected 0 to 1; correct it")
    second = [_fraction(name, seed) < share for name in dataset["question_id"]]
    return (
        dataset.select([row for row, there in enumerate(second) if not there]),
        dataset.select([row for row, there in enumerate(second) if there]),
    )


def sft_rl_split(dataset: Dataset, sft_share: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Questions for a supervised warm-up, and those for reinforcement learning after it.

    Raghavendra, Kang and Ritter ("Balancing the Budget", ACL 2025, arXiv 2502.11284) divide one budget of training data
    between supervised and preference finetuning: beginning without the supervised part fails on mathematics (a cold
    start), less than 10 % of the budget spent on it first mends that and raises analytical benchmarks such as GSM8k by
    15 to 20 %; below some 1,000 examples all of it is better spent there. Their second stage is DPO; that the same holds
    for reinforcement learning is taken over here, not shown.

    Returns:
        (supervised, reinforcement), disjoint in questions.
    """
    rest, warm_up = split_by_question(dataset, sft_share, seed)
    return warm_up, rest


def question_id(prompt: Sequence[Mapping[str, str]]) -> str:
    """16 hex digits of the SHA-256 of the messages."""
    text = json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fraction(name: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") / 2**64


def _row(
    question: str | Sequence[Mapping[str, str]],
    answer: str | None,
    difficulty: float | None,
    task: str,
    entry: str = "",
    instruction: str = "",
) -> dict[str, Any]:
    messages = (
        [{"role": "user", "content": question}] if isinstance(question, str) else [dict(m) for m in question]
    )
    if instruction:
        messages[-1]["content"] = f"{messages[-1]['content'].rstrip()}\n{instruction}"
    level = None if difficulty is None else float(difficulty)
    return {
        "prompt": messages,
        "answer": answer,
        "difficulty": level,
        "task": task,
        "entry": entry,
        "question_id": question_id(messages),
    }


def _dataset(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list(rows, features=_FEATURES)


def _pick(there: Sequence[str], given: str | None, known: Sequence[str], what: str, source: str) -> str:
    """The column to use."""
    if given is not None and given in there:
        return given
    found = [name for name in known if name in there]
    if given is None and found:
        return found[0]
    wanted = repr(given) if given is not None else f"one of {', '.join(known)}"
    raise TrainingError(
        f"{source} has the columns {', '.join(there)}: expected {wanted} for the {what}; name the column"
    )
