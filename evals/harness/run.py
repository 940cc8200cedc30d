"""Runs every method on every task, in batches that are kept as they come; an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budgetctl.errors import EvalError
from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.config import MOST_QUESTIONS, Cell, RunConfig, cells, noise_seed
from budgetctl.evals.harness.directory import open_directory
from budgetctl.evals.harness.method import Engine, Item, Method
from budgetctl.evals.harness.processes import Processes
from budgetctl.evals.harness.records import RECORDS, append_records, merge_shards, read_records, shard


@dataclass(frozen=True)
class Batch:
    """Questions of one cell that are answered together, by their places in the task."""

    cell: Cell
    places: tuple[int, ...]


@dataclass(frozen=True)
class Progress:
    """What is told of a run.

    Args:
        begin: called with the number of questions that are to be answered by this process.
        batch: called with the cell before each batch.
        done: called with the number of questions of each batch.
    """

    begin: Callable[[int], None] = lambda total: None
    batch: Callable[[Cell], None] = lambda cell: None
    done: Callable[[int], None] = lambda count: None


def run(
    config: RunConfig,
    tasks: Mapping[str, Sequence[Item]],
    methods: Sequence[Method],
    engine: Callable[[], Engine],
    folder: Path,
    *,
    batch_size: int = 64,
    session: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> int:
    """Answer what has not been answered yet.

    Args:
        config: of the run.
        tasks: questions by name of the task.
        methods: in the order of ``config.methods``.
        engine: makes it; called only if there is something to answer.
        folder: the run directory.
        batch_size: questions at once, at most.
        session: what this session is made with, for ``run.json``.
        processes: of this run; alone by default.
        progress: is told.

    Returns:
        Answers that were there before.

    Raises:
        EvalError: the directory has another run or is in use, or a method does not answer as asked.
    """
    here, tell = processes or Processes(), progress or Progress()
    asked = cells(config, list(tasks), methods)
    by_name = {method.name: method for method in methods}
    if here.main:
        with open_directory(folder, config, session or {}):
            here.wait()  # the others read the records once they are whole
            before = _answer(config, tasks, asked, by_name, engine, folder, batch_size, here, tell)
            here.wait()
            merge_shards(folder)
            return before
    here.wait()
    before = _answer(config, tasks, asked, by_name, engine, folder, batch_size, here, tell)
    here.wait()
    return before


def _answer(
    config: RunConfig,
    tasks: Mapping[str, Sequence[Item]],
    asked: Sequence[Cell],
    methods: Mapping[str, Method],
    engine: Callable[[], Engine],
    folder: Path,
    batch_size: int,
    here: Processes,
    tell: Progress,
) -> int:
    kept = read_records(folder / RECORDS)
    here.wait()  # nobody writes before all have read
    mine = here.share(pending(tasks, asked, kept, batch_size))
    tell.begin(sum(len(batch.places) for batch in mine))
    if not mine:
        return len(kept)
    runs = engine()
    path = folder / (RECORDS if here.count == 1 else shard(here.rank))
    for batch in mine:
        tell.batch(batch.cell)
        cell = batch.cell
        items = [tasks[cell.task][place] for place in batch.places]
        seeds = None if config.greedy else [noise_seed(cell.seed, place) for place in batch.places]
        answers = methods[cell.method].answer(runs, items, cell.setting, seeds, config.max_new_tokens)
        append_records(path, _settled(answers, items, cell))
        tell.done(len(batch.places))
    return len(kept)


def pending(
    tasks: Mapping[str, Sequence[Item]], asked: Sequence[Cell], kept: Sequence[Answer], batch_size: int
) -> list[Batch]:
    """What is still to be answered, in batches.

    Raises:
        EvalError: an answer of a cell or question that is not asked, or twice the same.
    """
    wanted = {cell.key: {item.id for item in tasks[cell.task]} for cell in asked}
    seen: dict[tuple[object, ...], set[str]] = {}
    for number, answer in enumerate(kept, start=1):
        there = seen.setdefault(answer.cell, set())
        if answer.item not in wanted.get(answer.cell, ()):
            what = f"item {answer.item!r} of {answer.cell}, which is not asked"
        elif answer.item in there:
            what = f"item {answer.item!r} of {answer.cell} once more"
        else:
            there.add(answer.item)
            continue
        raise EvalError(
            f"{RECORDS}, line {number} has {what}: expected each answer of the run once; remove the line"
        )
    batches = []
    for cell in asked:
        there = seen.get(cell.key, set())
        left = [place for place, item in enumerate(tasks[cell.task]) if item.id not in there]
        batches += [Batch(cell, tuple(left[at : at + batch_size])) for at in range(0, len(left), batch_size)]
    return batches


def _settled(answers: Sequence[Answer], items: Sequence[Item], cell: Cell) -> list[Answer]:
    """The answers under their cell: a record's seed is that of the run, its noise follows from seed and question."""
    if [answer.item for answer in answers] != [item.id for item in items]:
        raise EvalError(
            f"method {cell.method!r} answered {[a.item for a in answers][:3]}... to {[i.id for i in items][:3]}...: expected "
            "one answer an item, in order; correct the method"
        )
    return [
        replace(
            answer,
            task=cell.task,
            method=cell.method,
            budget=cell.budget,
            effort=cell.effort,
            seed=cell.seed,
        )
        for answer in answers
    ]


def check_tasks(tasks: Mapping[str, Sequence[Item]]) -> None:
    """Check that questions can be told apart.

    Raises:
        EvalError: an id stands twice, or there are none or too many questions.
    """
    for name, items in tasks.items():
        if not 0 < len(items) < MOST_QUESTIONS:
            raise EvalError(
                f"task {name!r} has {len(items)} questions: expected 1 to {MOST_QUESTIONS - 1}; correct the task"
            )
        ids = [item.id for item in items]
        twice = next((one for one in ids if ids.count(one) > 1), None) if len(set(ids)) < len(ids) else None
        if twice is not None:
            raise EvalError(
                f"task {name!r} has the id {twice!r} twice: expected distinct ids; correct the task"
            )
