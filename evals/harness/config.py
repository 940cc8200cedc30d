"""What a run asks, and the cells that it comes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from budgetctl.errors import EvalError
from budgetctl.evals.harness.method import Item, Method, Setting

#: Seeds of a run are less than 2 ** 40, questions of a task less than this.
MOST_QUESTIONS = 2**20


@dataclass(frozen=True)
class Cell:
    """A task answered by a method under one setting and seed; seed -1 is greedy decoding."""

    task: str
    method: str
    budget: int | None
    effort: str | float | None
    seed: int

    @property
    def key(self) -> tuple[str, str, int | None, str | float | None, int]:
        """As ``Answer.cell``."""
        return self.task, self.method, self.budget, self.effort, self.seed

    @property
    def setting(self) -> Setting:
        return Setting(self.budget, self.effort)


@dataclass(frozen=True)
class RunConfig:
    """All that answers depend on; two runs of the same have the same answers.

    Args:
        tasks: as they were asked for.
        n: questions of each at most.
        question_seed: of the questions.
        methods: names.
        budgets: thinking budgets in tokens, for methods that take one.
        efforts: for methods that take one.
        seeds: of the noise; (-1,) is greedy decoding.
        max_new_tokens: thought and answer together.
        temperature: of sampling.
        model: directory or hub id, or the embedded reasoner's name.
        predictor: directory or hub id; None without one, or for the model's own.
        questions: hash of the questions of each task, by its name.
        engine: what runs the model; its noise is its own.
    """

    tasks: tuple[str, ...]
    n: int | None
    question_seed: int
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    efforts: tuple[str | float, ...]
    seeds: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    model: str
    predictor: str | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    engine: str = "transformers"

    @property
    def greedy(self) -> bool:
        return self.seeds == (-1,)

    def as_dict(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return dict(json.loads(json.dumps(asdict(self))))


def cells(config: RunConfig, tasks: Sequence[str], methods: Sequence[Method]) -> list[Cell]:
    """Task by task, method by method.

    Raises:
        EvalError: a method takes a budget or an effort and there is none, or no method takes those given.
    """
    given: dict[str, list[Setting]] = {
        "none": [Setting()],
        "budget": [Setting(budget=budget) for budget in config.budgets],
        "effort": [Setting(effort=effort) for effort in config.efforts],
    }
    for method in methods:
        if not given[method.takes]:
            raise EvalError(
                f"method {method.name!r} needs --{method.takes}s and none are given: expected some; give them, or leave the "
                "method out"
            )
    taken = {method.takes for method in methods}
    for what in ("budget", "effort"):
        if given[what] and what not in taken:
            names = ", ".join(method.name for method in methods)
            raise EvalError(
                f"--{what}s given and no method takes one (methods {names}): expected a method that does; add one, or leave "
                f"--{what}s out"
            )
    return [
        Cell(task, method.name, setting.budget, setting.effort, seed)
        for task in tasks
        for method in methods
        for setting in given[method.takes]
        for seed in config.seeds
    ]


def noise_seed(seed: int, index: int) -> int:
    """Of one question: the same for all methods, so that they are compared on the same noise.

    Args:
        seed: of the run, 0 to 2 ** 40.
        index: of the question in its task.
    """
    return seed * MOST_QUESTIONS + index


def digest(items: Sequence[Item]) -> str:
    """16 hex digits that change with any question or reference answer."""
    text = json.dumps([[i.id, i.prompt, i.answer, i.verifier, i.entry] for i in items], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
