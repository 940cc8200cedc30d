"""The systems that :mod:`budgetctl.evals.plan` compares, on questions with plans, and what each did step by step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from budgetctl.controller import BudgetController
from budgetctl.evals.load import LoadedModel
from budgetctl.evals.runner import Record, ask
from budgetctl.limits import RowLimits
from budgetctl.plan.enforce import StepGuide
from budgetctl.plan.plan import Plan
from budgetctl.plan.prompts import show_plan
from budgetctl.plan.report import StepUse, step_use
from budgetctl.plan.row_plans import RowPlans
from budgetctl.reasoner.tasks import Question

#: Words that a token of the embedded reasoner's free thoughts comes to (3,798 words in 11,162 tokens).
WORDS_A_TOKEN = 0.34

#: A line of a thought that stops before its result.
_BROKEN = re.compile(r"\d?[-+\d]*=?|We are.*[^.]|check \d [-+]?\d?( is)?( \d)?|S\w* ?\d?\+?\d?=?")


@dataclass(frozen=True)
class Arm:
    """One system.

    Args:
        name: in the table.
        limit: ``steered`` by the length predictor, ``cut`` by force, or None for no limit.
        shown: the prompt shows the plan.
        budgets: the prompt shows what each ``step`` may take, what ``all`` may, or None for neither.
        schedule: of the steps' shares, which are kept; None where the plan's steps are not enforced.
        firmness: how firmly, as a plan has it; 1 ends every step at its share.
        parts_only: the plan is without its last step, which joins the parts: the answer may do that as well.
        by_model: the plan is a planner's, and not the rule's.
    """

    name: str
    limit: str | None = None
    shown: bool = False
    budgets: str | None = None
    schedule: str | None = None
    firmness: float = 1.0
    parts_only: bool = False
    by_model: bool = False


def arm_records(
    loaded: LoadedModel,
    arm: Arm,
    questions: Sequence[Question],
    plans: Sequence[Plan],
    budgets: Sequence[int],
    seeds: Sequence[int],
    **options: Any,
) -> list[Record]:
    """Answers of one system, each question with its ``budgets`` in thinking tokens."""
    plans = [
        plan.with_schedule(arm.schedule, firmness=arm.firmness) if arm.schedule else plan for plan in plans
    ]

    def controller(width: int, rows: Sequence[int]) -> BudgetController:
        steered = arm.limit == "steered"
        made = BudgetController(
            loaded.delimiters,
            thinking_budget=[budgets[i] for i in rows] if arm.limit else None,
            forecast=loaded.forecast if steered else None,
            boundaries=loaded.boundaries if steered or arm.schedule else None,
            prompt_length=width,
        )
        if arm.schedule:
            row_plans = RowPlans.build([plans[i] for i in rows], loaded.tokenizer, loaded.boundaries)
            made.steps = StepGuide(row_plans, made.limits)
        return made

    asked = list(questions)
    if arm.shown:
        texts = (
            shown_prompt(q, p, b, arm.budgets) for q, p, b in zip(questions, plans, budgets, strict=True)
        )
        asked = [replace(q, prompt=text) for q, text in zip(questions, texts, strict=True)]
    records = ask(loaded.model, loaded.tokenizer, asked, controller, seeds=seeds, **options)
    # A limit in the prompt is one as well.
    return [replace(r, thinking_budget=budget) for r, budget in zip(records, budgets, strict=True)]


def shown_prompt(question: Question, plan: Plan, budget: int, budgets: str | None) -> str:
    """The question with its plan and, as ``budgets`` says, with limits in words."""
    words = [max(1, round(share * WORDS_A_TOKEN)) for share in plan.shares(budget)]
    return show_plan(
        question.prompt,
        plan,
        words if budgets == "step" else None,
        sum(words) if budgets == "all" else None,
    )


def uses_of(loaded: LoadedModel, records: Sequence[Record], plans: Sequence[Plan]) -> list[list[StepUse]]:
    """What each thought spent on the steps of its plan, by the marks in its tokens, against the shares of its budget."""
    row_plans = RowPlans.build(list(plans), loaded.tokenizer, loaded.boundaries)
    totals = [record.thinking_budget or 0 for record in records]
    # An empty prompt that has opened the thought.
    opening = (*loaded.delimiters.turn_start_ids, *loaded.delimiters.open_ids, *loaded.delimiters.lead_ids)
    width = max(len(record.new_ids) for record in records)
    ids = torch.tensor(
        [[*opening, *r.new_ids, *[loaded.delimiters.eos_ids[0]] * (width - len(r.new_ids))] for r in records]
    )
    limits = RowLimits.build(thinking_budget=totals)
    return step_use(row_plans, limits, ids, len(opening), loaded.delimiters, totals)


def breaks_off(loaded: LoadedModel, record: Record) -> bool:
    """Whether a line of the thought other than its last one stops before its result, so that what follows lacks it."""
    text = loaded.tokenizer.decode(list(record.new_ids[: record.thinking_tokens]))
    return any(_BROKEN.fullmatch(line) for line in text.rstrip("\n").split("\n")[:-1] if line)
