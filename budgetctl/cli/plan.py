"""The plan of a command: read before the model is loaded, or made by a planner once it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from budgetctl.controller import BudgetController
from budgetctl.errors import BudgetError, InputFileError, PlanError
from budgetctl.evals.load import LoadedModel
from budgetctl.plan.allocators import Allocator
from budgetctl.plan.plan import Plan
from budgetctl.plan.plan_cache import PlanCache
from budgetctl.plan.planner import Planner
from budgetctl.plan.prompts import show_plan
from budgetctl.plan.report import step_use
from budgetctl.plan.writers import EndpointWriter, ModelWriter, Writer
from budgetctl.reasoner.plans import plan_question
from budgetctl.telemetry import ThoughtReport

AUTO = "auto"


@dataclass(frozen=True)
class PlanSettings:
    """A plan given as data, or None for one that is made for each prompt.

    ``schedule``, ``floor`` and ``firmness`` replace those of the plan where they are given; ``shown`` says that the prompt shows the plan; ``planner`` and
    ``planner_url`` name a model behind an endpoint, None for the model that answers; ``cache`` is where made plans are kept. ``embedded`` says
    that the embedded reasoner answers.
    """

    given: Plan | None = None
    schedule: Allocator | None = None
    shown: bool = False
    planner: str | None = None
    planner_url: str | None = None
    cache: Path | None = None
    embedded: bool = True
    floor: float | None = None
    firmness: float | None = None

    def planner_for(self, loaded: LoadedModel) -> Callable[[str], Plan]:
        """What makes the plan of a prompt; the embedded reasoner's questions are planned by rule."""
        if self.given is not None:
            given = self.given
            return lambda prompt: self.scheduled(given)
        cache = None if self.cache is None else PlanCache(self.cache)
        writer: Writer
        if self.planner is not None:
            writer = EndpointWriter(self.planner, self.planner_url)
        elif self.embedded:
            return lambda prompt: self.scheduled(plan_question(prompt))
        else:
            writer = ModelWriter(loaded.model, loaded.tokenizer)
        planner = Planner(writer, cache)
        return lambda prompt: self.scheduled(planner(prompt))

    def scheduled(self, plan: Plan) -> Plan:
        """The plan with the schedule, floor and firmness that were asked for."""
        parts = {"floor": self.floor, "firmness": self.firmness}
        changes = {name: part for name, part in parts.items() if part is not None}
        return plan.with_schedule(plan.schedule if self.schedule is None else self.schedule, **changes)

    def prompt(self, question: str, plan: Plan) -> str:
        """What the model is asked."""
        return show_plan(question, plan) if self.shown and plan.source != "fallback" else question


def read_plan(
    text: str | None,
    schedule: str | None,
    shown: bool,
    planner: str | None,
    planner_url: str | None,
    cache: Path | None,
    *,
    embedded: bool,
    floor: float | None = None,
    firmness: float | None = None,
) -> PlanSettings | None:
    """The plan of a command line; None without one.

    Raises:
        PlanError: for a plan that makes no sense, or that is no JSON.
        InputFileError: for a file that cannot be read.
        BudgetError: for an unknown schedule, or one of the others without a plan that it is for.
    """
    others = {
        "--plan-schedule": schedule,
        "--plan-floor": floor,
        "--plan-firmness": firmness,
        "--show-plan": shown or None,
        "--planner": planner,
        "--planner-url": planner_url,
        "--plan-cache": cache,
    }
    made_alone = ("--planner", "--planner-url", "--plan-cache")
    for name, value in others.items():
        if value is not None and (text is None or (name in made_alone and text.strip() != AUTO)):
            needed = "--plan auto" if name in made_alone else "--plan"
            raise BudgetError(f"{name} without {needed}: expected {needed} too; give it or drop {name}")
    if planner_url is not None and planner is None:
        raise BudgetError("--planner-url without --planner: expected the model's name there; give it")
    if text is None:
        return None
    allocator = None if schedule is None else Allocator.parse(schedule)
    given = None if text.strip() == AUTO else Plan.of(_json(text))
    settings = PlanSettings(given, allocator, shown, planner, planner_url, cache, embedded, floor, firmness)
    settings.scheduled(Plan.single("any"))  # refuses parts out of range
    return settings


def own_plan(value: object, shared: PlanSettings | None, *, embedded: bool) -> PlanSettings | None:
    """The plan of one line of a file: auto, None for none, or a plan as data, under the schedule that is ``shared`` by all
    lines where the plan names none.

    Raises:
        PlanError: for a plan that makes no sense.
    """
    if value is None:
        return None
    shared = shared or PlanSettings(embedded=embedded)
    if isinstance(value, str):
        if value.strip() != AUTO:
            raise PlanError(
                f"plan {value!r}: expected auto, a list of steps, or an object that has them; correct it"
            )
        return replace(shared, given=None)
    named = value if isinstance(value, Mapping) else {}
    return replace(
        shared,
        given=Plan.of(value),
        schedule=None if "schedule" in named else shared.schedule,
        floor=None if "floor" in named else shared.floor,
        firmness=None if "firmness" in named else shared.firmness,
    )


class PlannedPrompt(NamedTuple):
    """What the model is asked, and the plan that its thought follows, None for none."""

    prompt: str
    plan: Plan | None


def plan_prompts(
    loaded: LoadedModel, settings: Sequence[PlanSettings | None], prompts: Sequence[str]
) -> list[PlannedPrompt]:
    """The prompts of one batch with their plans, each as its own ``settings`` say."""
    planners = {own: own.planner_for(loaded) for own in settings if own is not None}
    planned = []
    for prompt, own in zip(prompts, settings, strict=True):
        plan = None if own is None else planners[own](prompt)
        text = prompt if own is None or plan is None else own.prompt(prompt, plan)
        planned.append(PlannedPrompt(text, plan))
    return planned


def plan_accounts(
    controller: BudgetController,
    sequences: torch.Tensor,
    prompt_length: int,
    reports: Sequence[ThoughtReport],
) -> list[dict[str, object] | None]:
    """For each sequence [B, T] its plan, and what each step used; None without a plan."""
    if controller.steps is None:
        return [None] * len(reports)
    plans, limits = controller.steps.plans, controller.limits
    room = limits.on(len(reports), torch.device("cpu")).room.tolist()
    totals = [
        most if report.thinking_budget is None else min(report.thinking_budget, most)
        for report, most in zip(reports, room, strict=True)
    ]
    uses = step_use(plans, limits, sequences, prompt_length, controller.delimiters, totals)
    accounts: list[dict[str, object] | None] = []
    for row, steps in enumerate(uses):
        plan = plans.plans[row % len(plans.plans)]
        if plan is None:
            accounts.append(None)
            continue
        accounts.append(
            {
                "source": plan.source,
                "schedule": str(plan.schedule),
                "planner_tokens": plan.planner_tokens,
                "steps": [step.as_dict() for step in steps],
            }
        )
    return accounts


def _json(text: str) -> object:
    """The value of a JSON text, or of the file of that name."""
    where = "--plan"
    if not text.lstrip().startswith(("{", "[")):
        where = text
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise InputFileError(
                f"plan {where!r} cannot be read ({why}): expected auto, JSON, or a file of JSON; correct --plan"
            ) from None
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(
            f"{where} is not JSON ({str(error).splitlines()[0]}): expected a list of steps, or an object that has them; "
            "correct it"
        ) from None
    return value
