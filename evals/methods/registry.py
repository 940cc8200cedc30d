"""Methods by name."""

from __future__ import annotations

from collections.abc import Callable

from budgetctl.errors import EvalError
from budgetctl.evals.harness.method import Method
from budgetctl.evals.methods.basic import BudgetctlBudget, BudgetctlEffort, FullThinking, HardCutAtBudget
from budgetctl.evals.methods.early_exits import BudgetctlExit, EarlyExitMethod, agreeing, confident
from budgetctl.evals.methods.forcing import BudgetForcing, BudgetForcingWithWait, TwoPass
from budgetctl.evals.methods.gamma_published import GammaPublished
from budgetctl.evals.methods.kv_budget import BudgetctlKV
from budgetctl.evals.methods.no_thinking import NoThinking
from budgetctl.evals.methods.planned import BudgetctlPlan
from budgetctl.evals.methods.prompted import PromptBudget, PromptLimit

#: Each makes a method; the key is its name.
METHODS: dict[str, Callable[[], Method]] = {
    "full": FullThinking,
    "no-thinking": NoThinking,
    "hard-cut": HardCutAtBudget,
    "s1": BudgetForcing,
    "s1-wait": BudgetForcingWithWait,
    "two-pass": TwoPass,
    "prompt-budget": PromptBudget,
    "prompt-limit": PromptLimit,
    "deer": lambda: EarlyExitMethod("deer", confident),
    "deer-cap": lambda: EarlyExitMethod("deer-cap", confident, capped=True),
    "dynasor": lambda: EarlyExitMethod("dynasor", agreeing),
    "dynasor-cap": lambda: EarlyExitMethod("dynasor-cap", agreeing, capped=True),
    "gamma-published": GammaPublished,
    "budgetctl": BudgetctlBudget,
    "budgetctl-effort": BudgetctlEffort,
    "budgetctl-kv": BudgetctlKV,
    "budgetctl-plan": BudgetctlPlan,
    "budgetctl-exit": BudgetctlExit,
}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        EvalError: there is none.
    """
    if name not in METHODS:
        raise EvalError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}; correct the name")
    return METHODS[name]()
