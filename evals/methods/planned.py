"""budgetctl with a plan: the thinking budget is shared out to the steps of a question, and the planner is paid for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from budgetctl.errors import PlanError
from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.method import Engine, Item, Setting
from budgetctl.evals.methods.forcing import budget_of
from budgetctl.evals.methods.single_call import Besides, answer_in_one_call
from budgetctl.plan.parse import parse_plan
from budgetctl.plan.plan import Plan
from budgetctl.plan.prompts import planning_prompt, retry_prompt
from budgetctl.reasoner.plans import plan_question
from budgetctl.training.verifiers import EMBEDDED

#: A plan of each item, and what making it took.
Planning = Callable[[Engine, Sequence[Item]], list[tuple[Plan, Besides]]]
PLANNER_TOKENS = 1024


def plans_by_rule(engine: Engine, items: Sequence[Item]) -> list[tuple[Plan, Besides]]:
    """Plans of the embedded reasoner's questions, read from their text: two dials are two steps and their sum a third, any
    other question is a single step, which changes nothing. They take no tokens."""
    return [(plan_question(item.prompt), Besides()) for item in items]


def plans_by_model(engine: Engine, items: Sequence[Item]) -> list[tuple[Plan, Besides]]:
    """Plans that the model under evaluation writes itself, greedily; a reply that is no plan is asked for once more, and
    after that the question is a single step. Every reply, its thought included, is overhead."""
    plans: dict[int, Plan] = {}
    first = [planning_prompt(item.prompt) for item in items]
    asked = dict(enumerate(first))
    cost = [Besides() for _ in items]
    for _ in range(2):
        if not asked:
            break
        prompts = [engine.prompt(text) for text in asked.values()]
        replies = engine.generate(prompts, seeds=None, max_new_tokens=PLANNER_TOKENS)
        again: dict[int, str] = {}
        for at, prompt, reply in zip(list(asked), prompts, replies, strict=True):
            before = cost[at]
            cost[at] = Besides(
                before.overhead_tokens + len(reply.new_ids),
                before.read_tokens + (len(prompt) if before.overhead_tokens else 0),
                before.seconds + reply.seconds,
            )
            try:
                text = engine.tokenizer.decode(list(reply.answer), skip_special_tokens=True)
                plans[at] = parse_plan(text, planner_tokens=cost[at].overhead_tokens)
            except PlanError as why:
                again[at] = retry_prompt(first[at], str(why))
        asked = again
    return [
        (plans.get(at) or Plan.single(item.prompt, cost[at].overhead_tokens), cost[at])
        for at, item in enumerate(items)
    ]


def plans_for(engine: Engine, items: Sequence[Item]) -> list[tuple[Plan, Besides]]:
    """By rule for the embedded reasoner's tasks, by the model otherwise."""
    if all(item.verifier.startswith(EMBEDDED) for item in items):
        return plans_by_rule(engine, items)
    return plans_by_model(engine, items)


class BudgetctlPlan:
    """budgetctl with ``thinking_budget`` and ``plan``.

    Args:
        plans: makes the plans.
    """

    name = "budgetctl-plan"
    takes: Literal["budget", "effort", "none"] = "budget"

    def __init__(self, plans: Planning = plans_for) -> None:
        self.plans = plans

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order; the plans before, in one or two batches."""
        budget = budget_of(self.name, setting)
        planned = self.plans(engine, items)
        prompts = [engine.prompt(item.prompt) for item in items]
        knobs: list[dict[str, Any]] = [{"thinking_budget": budget, "plan": plan} for plan, _ in planned]
        besides = [
            Besides(
                cost.overhead_tokens,
                # The question is read again behind the planner's calls.
                cost.read_tokens + (len(prompt) if cost.overhead_tokens else 0),
                cost.seconds,
                {"plan_source": plan.source, "plan_steps": len(plan.steps)},
            )
            for (plan, cost), prompt in zip(planned, prompts, strict=True)
        ]
        return answer_in_one_call(
            self.name,
            engine,
            items,
            setting,
            seeds,
            max_new_tokens,
            prompts=prompts,
            besides=besides,
            knobs=knobs,
        )
