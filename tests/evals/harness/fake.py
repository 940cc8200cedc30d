"""A method that answers at once, by arithmetic of question and noise, and a run of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.config import RunConfig, digest
from budgetctl.evals.harness.method import Item, Setting
from budgetctl.evals.harness.run import run


class Fake:
    """Its answers say what it was asked with."""

    def __init__(self, name: str, takes: Literal["budget", "effort", "none"]) -> None:
        self.name = name
        self.takes = takes
        self.calls: list[list[str]] = []

    def answer(
        self,
        engine: Any,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        self.calls.append([item.id for item in items])
        noise = [-1] * len(items) if seeds is None else list(seeds)
        return [
            Answer(
                task=item.task,
                item=item.id,
                method="?",
                budget=None,
                effort=None,
                seed=seed,
                level=None,
                correct=seed % 2 == 0,
                score=0.0,
                thinking_tokens=seed % 7,
                answer_tokens=1,
                overhead_tokens=0,
                read_tokens=0,
                close="natural",
                leaked=False,
                thinking_budget=setting.budget,
                predicted_tokens=None,
                predicted_cdf=None,
                seconds=0.0,
                kv_bytes=None,
                thought=f"{seed}",
                answer="ü\n",
                expected=item.answer,
                prompt=item.prompt,
                steered=((0, 1),),
            )
            for item, seed in zip(items, noise, strict=True)
        ]


def tasks_of(questions: int, names: Sequence[str] = ("a", "b")) -> dict[str, list[Item]]:
    return {name: [Item(name, f"q{i}", "?", "x") for i in range(questions)] for name in names}


def config_of(
    tasks: dict[str, list[Item]],
    *,
    budgets: tuple[int, ...] = (4, 8),
    seeds: tuple[int, ...] = (0, 1),
    **other: Any,
) -> RunConfig:
    settings: dict[str, Any] = {
        "tasks": tuple(tasks),
        "n": 3,
        "question_seed": 0,
        "methods": ("free", "capped"),
        "budgets": budgets,
        "efforts": (),
        "seeds": seeds,
        "max_new_tokens": 16,
        "temperature": 1.0,
        "model": "none",
        "questions": {name: digest(items) for name, items in tasks.items()},
    }
    return RunConfig(**(settings | other))


def methods() -> list[Fake]:
    return [Fake("free", "none"), Fake("capped", "budget")]


def run_all(
    folder: Path, questions: int = 3, batch_size: int = 2, names: str = "ab", **settings: Any
) -> list[Fake]:
    """One session; returns the methods, which know what they were asked."""
    tasks = tasks_of(questions, names)
    chosen = methods()
    run(config_of(tasks, **settings), tasks, chosen, object, folder, batch_size=batch_size)
    return chosen
