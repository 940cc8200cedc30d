"""One call each: no limit, the hard cut, and budgetctl by budget or by effort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.grade import grade
from budgetctl.evals.harness.method import Engine, Item, Setting


class OneCall:
    """A method that asks the engine once, with arguments that follow from the setting.

    Args:
        name: of the method.
        takes: which setting it can be given.
    """

    def __init__(self, name: str, takes: Literal["budget", "effort", "none"]) -> None:
        self.name = name
        self.takes = takes

    def arguments(self, setting: Setting) -> Mapping[str, Any]:
        """Of ``engine.generate``."""
        return {}

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order, all in one batch."""
        completions = engine.generate(
            [engine.prompt(item.prompt) for item in items],
            seeds=seeds,
            max_new_tokens=max_new_tokens,
            **self.arguments(setting),
        )
        noise: Sequence[int | None] = [None] * len(items) if seeds is None else seeds
        return [
            grade(engine, item, completion, method=self.name, setting=setting, seed=seed)
            for item, completion, seed in zip(items, completions, noise, strict=True)
        ]


class FullThinking(OneCall):
    """No limit but ``max_new_tokens``."""

    def __init__(self) -> None:
        super().__init__("full", "none")


class HardCutAtBudget(OneCall):
    """The thought is cut at the budget and the close written: s1's budget forcing (arXiv 2501.19393) without "Wait"."""

    def __init__(self) -> None:
        super().__init__("hard-cut", "budget")

    def arguments(self, setting: Setting) -> Mapping[str, Any]:
        return {"hard_cut": setting.budget}


class BudgetctlBudget(OneCall):
    """budgetctl with ``thinking_budget``."""

    def __init__(self) -> None:
        super().__init__("budgetctl", "budget")

    def arguments(self, setting: Setting) -> Mapping[str, Any]:
        return {"knobs": {"thinking_budget": setting.budget}}


class BudgetctlEffort(OneCall):
    """budgetctl with ``effort``; a level that is a share of the predicted length needs a length predictor."""

    def __init__(self) -> None:
        super().__init__("budgetctl-effort", "effort")

    def arguments(self, setting: Setting) -> Mapping[str, Any]:
        return {"knobs": {"effort": setting.effort}}
