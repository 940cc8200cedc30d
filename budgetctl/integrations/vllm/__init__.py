"""Thinking budgets inside vLLM: ``--logits-processors budgetctl.integrations.vllm:BudgetLogitsProcessor``.

``BudgetForcingLogitsProcessor`` does no more than write the close where a budget ends; rollouts of training use it.
vLLM is imported when a class is asked for, and not before: the parts of this package need torch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from budgetctl.integrations.vllm.budget_forcing import BudgetForcing as BudgetForcingLogitsProcessor
    from budgetctl.integrations.vllm.processor import BudgetProcessor as BudgetLogitsProcessor

__all__ = ["BudgetForcingLogitsProcessor", "BudgetLogitsProcessor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from budgetctl.integrations.vllm.budget_forcing import BudgetForcing
    from budgetctl.integrations.vllm.interfaces import processor_class
    from budgetctl.integrations.vllm.processor import BudgetProcessor

    parent = BudgetProcessor if name == "BudgetLogitsProcessor" else BudgetForcing
    found = globals()[name] = processor_class(parent, name)
    return found
