"""What ``generate(plan=...)`` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from budgetctl.errors import PlanError
from budgetctl.plan.plan import Plan

if TYPE_CHECKING:
    from budgetctl.controller import BudgetController


def read_plans(value: Any) -> list[Plan | None] | None:
    """One plan for all prompts, or a list with one a prompt (None for none); None for no plans at all.

    A plan is a :class:`Plan`, an object with ``steps``, or a list of steps. A list is one plan if its items are steps (texts,
    or objects with a text), and one plan a prompt otherwise.

    Raises:
        PlanError: for anything else.
    """
    if value is None:
        return None
    if isinstance(value, Plan | Mapping):
        return [Plan.of(value)]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise PlanError(
            f"plan of type {type(value).__name__}: expected a Plan, an object with steps, a list of steps, or a list with one "
            "plan a prompt; give one of these"
        )
    items = list(value)
    if any(_is_plan(item) for item in items):
        return [None if item is None else Plan.of(item) for item in items]
    return [Plan.of(items)]


def _is_plan(item: Any) -> bool:
    if item is None or isinstance(item, Plan):
        return True
    if isinstance(item, Mapping):
        return "steps" in item
    return isinstance(item, Sequence) and not isinstance(item, str)


def follow_plans(controller: BudgetController, plan: Any, tokenizer: Any, prompts: int | None = None) -> None:
    """Give a controller the plans of its rows, as ``plan`` says (:func:`read_plans`).

    Args:
        controller: with line ends, before its first call.
        plan: None for none.
        tokenizer: of the model.
        prompts: of the call, None where they are not counted.

    Raises:
        PlanError: for a value that is no plan, not one plan a prompt, or a heading that cannot be written.
    """
    plans = read_plans(plan)
    if plans is None or not any(plans):
        return
    from budgetctl.plan.enforce import StepGuide
    from budgetctl.plan.row_plans import RowPlans

    limits = len(controller.limits.room)
    count = max(limits, 1 if prompts is None else prompts)
    if len(plans) not in (1, count):
        raise PlanError(
            f"{len(plans)} plans for {count} prompts: expected one for all or one a prompt; give as many"
        )
    if controller.boundaries is None:
        raise PlanError(
            "a plan for a controller without boundaries: expected those of the tokenizer; pass boundaries"
        )
    row_plans = RowPlans.build(plans, tokenizer, controller.boundaries)
    controller.steps = StepGuide(row_plans, controller.limits)
