"""Methods by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    "hard-cut": HardCutAtBudget,
    "budgetctl": BudgetctlBudget,
    "budgetctl-effort": BudgetctlEffort,
    "budgetctl-kv": BudgetctlKV,
    "budgetctl-plan": BudgetctlPlan,
    "budgetctl-exit": BudgetctlExit,
    "no-thinking": NoThinking,
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
}

#: Methods that need of an engine what transformers alone has, and what that is.
NEEDS_TRANSFORMERS = {
    "budgetctl-kv": "kv_budget",
    "budgetctl-plan": "plan",
    "budgetctl-exit": "early_exit",
    "deer": "early_exit",
    "deer-cap": "early_exit",
    "dynasor": "early_exit",
    "dynasor-cap": "early_exit",
    "gamma-published": "a logits processor of its own",
}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        EvalError: there is none.
    """
    if name not in METHODS:
        raise EvalError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}; correct the name")
    return METHODS[name]()


def check_engine(methods: Sequence[Method], engine: str) -> None:
    """Check that ``engine`` can run the methods.

    Raises:
        EvalError: there is one that it cannot.
    """
    for method in methods:
        if engine != "transformers" and method.name in NEEDS_TRANSFORMERS:
            able = ", ".join(name for name in METHODS if name not in NEEDS_TRANSFORMERS)
            raise EvalError(
                f"method {method.name!r} on {engine} needs {NEEDS_TRANSFORMERS[method.name]}: expected one of {able}; leave "
                "it out, or use --engine transformers"
            )
