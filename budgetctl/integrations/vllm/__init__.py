"""Thinking budgets inside vLLM: ``--logits-processors budgetctl.integrations.vllm:BudgetLogitsProcessor``.

vLLM is imported when the class is asked for, and not before: the parts of this package need torch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from budgetctl.integrations.vllm.processor import BudgetProcessor as BudgetLogitsProcessor

__all__ = ["BudgetLogitsProcessor"]


def __getattr__(name: str) -> Any:
    if name != "BudgetLogitsProcessor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from budgetctl.integrations.vllm.interfaces import processor_class

    found = globals()[name] = processor_class()
    return found
