"""Questions of an evaluation, by the name of their task."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from budgetctl.errors import EvalError, TrainingError
from budgetctl.evals.harness.hub_tasks import HUB_TASKS, hub_items
from budgetctl.evals.harness.method import Item
from budgetctl.evals.harness.task_files import file_items
from budgetctl.reasoner.tasks import FAMILIES, Question, questions, take_questions
from budgetctl.training.verifiers import EMBEDDED, REASONING_GYM, require_package

#: The stream of held-out questions.
SPLIT = "test"
FILES = (".jsonl", ".json", ".parquet", ".csv")


def load_tasks(names: Sequence[str], n: int | None, seed: int = 0) -> dict[str, list[Item]]:
    """Questions of several tasks, by their names; see :func:`load_task`.

    Raises:
        EvalError: a task is unknown, or two have one name.
    """
    tasks: dict[str, list[Item]] = {}
    for text in names:
        name = task_name(text)
        if name in tasks:
            raise EvalError(f"task {name!r} is given twice: expected distinct names; leave one out")
        tasks[name] = load_task(text, n, seed)
    return tasks


def task_name(text: str) -> str:
    """What a task is called in records: its name, of a file alone its name without its ending."""
    name, equals, _ = text.partition("=")
    return name if equals or not text.endswith(FILES) else Path(text).stem


def load_task(text: str, n: int | None, seed: int = 0) -> list[Item]:
    """Questions of one task; more of them begin with those of fewer.

    Args:
        text: ``embedded``, ``embedded/<family>``, ``reasoning-gym/<dataset>``, a data set of the hub by the names in
            ``HUB_TASKS``, a file of questions, or a hub data set's file as ``name=path``.
        n: how many at most; None for all of a file or data set.
        seed: of those that are made, and of which are taken of those that there are.

    Raises:
        EvalError: no such task, no such file, or one that has no questions and answers.
        TrainingError: a hub data set that cannot be read, or a package that is missing.
    """
    name, equals, path = text.partition("=")
    family, _, rest = name.partition("/")
    if equals:
        if name not in HUB_TASKS:
            raise EvalError(
                f"{text!r}: expected one of {', '.join(HUB_TASKS)} before the '='; correct the name, or give the path alone"
            )
        return hub_items(name, n, seed, Path(path))
    if name in HUB_TASKS:
        return hub_items(name, n, seed)
    if text.endswith(FILES):
        return file_items(Path(text), task_name(text), n, seed)
    if family == "embedded" and rest in ("", *FAMILIES):
        return _embedded(name, rest, _made(n, text), seed)
    if family == "reasoning-gym" and rest:
        return _reasoning_gym(name, rest, _made(n, text), seed)
    raise EvalError(
        f"unknown task {text!r}: expected {', '.join(KNOWN)}, or a file ({', '.join(FILES)}); correct the name"
    )


#: How tasks are named.
KNOWN = (
    "embedded",
    *(EMBEDDED + family for family in FAMILIES),
    REASONING_GYM + "<dataset>",
    *HUB_TASKS,
)


def _made(n: int | None, name: str) -> int:
    if n is None or n < 1:
        raise EvalError(f"{n} questions of {name}: expected at least 1, as they are made; say how many")
    return n


def _embedded(task: str, family: str, n: int, seed: int) -> list[Item]:
    chosen = take_questions(SPLIT, n, seed) if not family else _of_family(family, n, seed)
    return [
        Item(task, f"{seed}:{place}", q.prompt, q.answer, float(q.level), EMBEDDED + q.family)
        for place, q in enumerate(chosen)
    ]


def _of_family(family: str, n: int, seed: int) -> list[Question]:
    """The first distinct questions of one family."""
    found: dict[str, Question] = {}
    for question in questions(SPLIT, seed):
        if question.family == family:
            found.setdefault(question.prompt, question)
        if len(found) == n:
            break
    return list(found.values())


def _reasoning_gym(task: str, dataset: str, n: int, seed: int) -> list[Item]:
    require_package("reasoning_gym")
    require_package("datasets")
    from reasoning_gym.factory import DATASETS

    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS, 3) or sorted(DATASETS)[:3]
        raise EvalError(
            f"unknown reasoning-gym data set {dataset!r}: expected one of its {len(DATASETS)}, such as {', '.join(near)}; "
            "correct the name"
        )
    from budgetctl.training.tasks import reasoning_gym_tasks

    try:
        rows = reasoning_gym_tasks([dataset], n, seed=seed)
    except TrainingError as error:
        raise EvalError(str(error)) from error
    return [
        Item(
            task,
            f"{seed}:{place}",
            row["prompt"][-1]["content"],
            row["answer"],
            None,
            row["task"],
            row["entry"],
        )
        for place, row in enumerate(rows)
    ]
