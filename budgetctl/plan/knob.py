"""What ``generate(plan=..., budget_notes=...)`` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from budgetctl.budget import NO_CAP, as_list
from budgetctl.errors import BudgetError, PlanError
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


def one_plan(value: Any) -> Plan | None:
    """The plan of one request.

    Raises:
        PlanError: for what :func:`read_plans` refuses, or several plans.
    """
    plans = read_plans(value)
    if plans is not None and len(plans) != 1:
        raise PlanError(f"{len(plans)} plans in one request: expected one; give each request its own")
    return None if plans is None else plans[0]


def _is_plan(item: Any) -> bool:
    if item is None or isinstance(item, Plan):
        return True
    if isinstance(item, Mapping):
        return "steps" in item
    return isinstance(item, Sequence) and not isinstance(item, str)


def follow_plans(
    controller: BudgetController,
    plan: Any,
    tokenizer: Any,
    prompts: int | None = None,
    known: dict[Plan, Any] | None = None,
) -> None:
    """Give a controller the plans of its rows, as ``plan`` says (:func:`read_plans`).

    Args:
        controller: with line ends, before its first call.
        plan: None for none.
        tokenizer: of the model.
        prompts: of the call, None where they are not counted.
        known: plans that have been spelled before, which is added to.

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
    row_plans = RowPlans.build(plans, tokenizer, controller.boundaries, known)
    controller.steps = StepGuide(row_plans, controller.limits)


def write_notes(
    controller: BudgetController, budget_notes: Any, tokenizer: Any, prompts: int | None = None
) -> None:
    """Have a controller tell its rows what is left (:meth:`~budgetctl.plan.notes.BudgetNotes.of`), after their plans are set.

    Args:
        controller: with line ends, before its first call.
        budget_notes: one value for all prompts, or a list with one a prompt.
        tokenizer: of the model.
        prompts: of the call, None where they are not counted.

    Raises:
        BudgetError: for a value that is none, not one a prompt, nothing that it could be told by (neither a plan nor a
            tracker), or a template that cannot be told from what begins a step.
    """
    values = as_list(budget_notes)
    if not any(value is not None and value is not False for value in values):
        return
    from budgetctl.plan.note_guide import NoteGuide
    from budgetctl.plan.notes import BudgetNotes, SpelledNotes

    notes = [BudgetNotes.of(value) for value in values]
    limits, boundaries = controller.limits, controller.boundaries
    count = max(len(limits.room), 1 if prompts is None else prompts)
    if len(notes) not in (1, count):
        raise BudgetError(
            f"budget_notes has {len(notes)} values for {count} prompts: expected one for all or one a prompt; give as many"
        )
    if boundaries is None:
        raise BudgetError("budget_notes for a controller without boundaries: pass those of the tokenizer")
    row_plans = None if controller.steps is None else controller.steps.plans
    if row_plans is None and not any(one is not None and one.tracker is not None for one in notes):
        raise BudgetError(
            "budget_notes without a plan: expected a plan, at whose steps it is told what is left, or a BudgetTracker; give one"
        )
    caps, room, requests = limits.budgets.caps.tolist(), limits.room.tolist(), limits.budgets.requests
    spelled: list[SpelledNotes | None] = []
    for at in range(count):
        one = notes[at % len(notes)]
        plan = None if row_plans is None else row_plans.plans[at % len(row_plans.plans)]
        if one is None:
            spelled.append(None)
            continue
        total: int | None = min(caps[at % len(caps)], room[at % len(room)])
        if total is not None and (total >= NO_CAP or requests[at % len(requests)].effort.needs_prediction):
            total = None
        found = SpelledNotes.spell(one, total, plan is not None, tokenizer, controller.delimiters)
        for ids in filter(None, (found.opening, *found.levels)):
            if not boundaries.line[ids[-1]]:
                raise BudgetError(
                    "budget_notes need a token that ends a line: the tokenizer has none; leave them out"
                )
            headings = [] if row_plans is None else row_plans.spelled[at % len(row_plans.spelled)]
            if any(step.heading[:1] == ids[:1] for step in headings):
                raise BudgetError(
                    f"budget_notes with template {one.template!r}: expected one that begins unlike the headings of the plan; "
                    "put it in brackets"
                )
        spelled.append(found)
    controller.notes = NoteGuide(spelled, limits, controller.steps)
