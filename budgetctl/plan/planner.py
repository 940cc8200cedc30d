"""A planner: a question to its plan, by a model, with one retry, and a single step where no plan comes of it."""

from __future__ import annotations

import logging

from budgetctl.errors import PlanError
from budgetctl.plan.parse import parse_plan
from budgetctl.plan.plan import MAX_STEPS, Plan
from budgetctl.plan.plan_cache import PlanCache
from budgetctl.plan.prompts import VERSION, planning_prompt, retry_prompt
from budgetctl.plan.writers import Writer

_log = logging.getLogger(__name__)


class Planner:
    """Plans questions.

    A reply that is no plan is asked for once more, with what was wrong with it. If that fails too, the plan is the question
    as a single step, ``source`` "fallback", which changes nothing about the thought; its ``planner_tokens`` are counted all
    the same. A planner that does not answer at all is an error.

    Args:
        writer: the model that plans.
        cache: where plans are kept, None for nowhere.
        most_steps: asked for, 1 to ``MAX_STEPS``; a longer plan is refused.
        template: what is asked, as :func:`~budgetctl.plan.prompts.planning_prompt` takes it; None for its instructions.

    Raises:
        PlanError: for a number of steps out of range, or a template without the question.
    """

    def __init__(
        self,
        writer: Writer,
        cache: PlanCache | None = None,
        *,
        most_steps: int = 5,
        template: str | None = None,
    ) -> None:
        if not 1 <= most_steps <= MAX_STEPS:
            raise PlanError(f"most_steps={most_steps!r}: expected 1 to {MAX_STEPS}; correct it")
        planning_prompt("any", most_steps, template)  # refuses a template that makes no sense
        self.writer, self.cache, self.most_steps, self.template = writer, cache, most_steps, template

    def __call__(self, question: str) -> Plan:
        """The plan of a question.

        Raises:
            PlanError: for a question without text.
            BudgetctlError: when the planner does not answer, or the plan cannot be kept.
        """
        if not isinstance(question, str) or not question.strip():
            raise PlanError(f"a question {question!r} to plan: expected some text; give the question")
        asked = VERSION if self.template is None else self.template
        key = (question.strip(), self.writer.name, self.most_steps, asked)
        plan = None if self.cache is None else self.cache.load(*key)
        if plan is None:
            plan = self._ask(question)
            if self.cache is not None:
                self.cache.store(plan, *key)
        return plan

    def _ask(self, question: str) -> Plan:
        first = planning_prompt(question, self.most_steps, self.template)
        prompt, tokens, why = first, 0, ""
        for _ in range(2):
            reply = self.writer(prompt)
            tokens += reply.tokens
            try:
                plan = parse_plan(reply.text, planner_tokens=tokens)
                if len(plan.steps) > self.most_steps:
                    raise PlanError(f"{len(plan.steps)} steps: expected at most {self.most_steps}")
                return plan
            except PlanError as error:
                why = str(error)
                prompt = retry_prompt(first, why)
        _log.warning("no plan by %s, going on with a single step: %s", self.writer.name, why)
        return Plan.single(question, tokens)
