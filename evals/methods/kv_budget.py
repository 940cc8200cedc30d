"""budgetctl with both budgets: of thinking tokens, and of slots in the key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.method import Engine, Item, Setting
from budgetctl.evals.methods.forcing import budget_of
from budgetctl.evals.methods.single_call import Besides, answer_in_one_call
from budgetctl.kv.budget import LEAST_SLOTS

#: Slots by default, as a share of the longest prompt and the thinking budget together.
SHARE = 0.5


class BudgetctlKV:
    """budgetctl with ``thinking_budget`` and ``kv_budget``.

    Args:
        kv_budget: as the knob takes it; by default half of the tokens that prompt and thought may come to, for the longest
            prompt of the batch, and no fewer than 32 slots.
    """

    name = "budgetctl-kv"
    takes: Literal["budget", "effort", "none"] = "budget"

    def __init__(self, kv_budget: int | float | str | None = None) -> None:
        self.kv_budget = kv_budget

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order, all in one batch."""
        budget = budget_of(self.name, setting)
        prompts = [engine.prompt(item.prompt) for item in items]
        slots: Any = self.kv_budget
        if slots is None:
            slots = max(LEAST_SLOTS, round(SHARE * (max(map(len, prompts), default=0) + budget)))
        return answer_in_one_call(
            self.name,
            engine,
            items,
            setting,
            seeds,
            max_new_tokens,
            prompts=prompts,
            besides=[Besides(extra={"kv_budget": slots})] * len(items),
            knobs={"thinking_budget": budget, "kv_budget": slots},
        )
