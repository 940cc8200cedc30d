"""Methods by name."""

from __future__ import annotations

from collections.abc import Callable

from budgetctl.errors import EvalError
from budgetctl.evals.harness.method import Method
from budgetctl.evals.methods.basic import BudgetctlBudget, BudgetctlEffort, FullThinking, HardCutAtBudget

#: Each makes a method; the key is its name.
METHODS: dict[str, Callable[[], Method]] = {
    "full": FullThinking,
    "hard-cut": HardCutAtBudget,
    "budgetctl": BudgetctlBudget,
    "budgetctl-effort": BudgetctlEffort,
}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        EvalError: there is none.
    """
    if name not in METHODS:
        raise EvalError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}; correct the name")
    return METHODS[name]()
