"""A plan as data: the steps of a question, what each weighs, and how the budget is shared out to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any

from budgetctl.budget import check_tokens
from budgetctl.errors import BudgetError, PlanError
from budgetctl.plan.allocators import Allocator

#: More steps than this are no plan: their shares would be too small to say anything in.
MAX_STEPS = 32
#: Least part of an even share (total / steps) that a step gets, unless the plan says otherwise.
FLOOR = 0.25
#: Part of the shares of the steps to come that a step may not take, unless the plan says otherwise.
FIRMNESS = 0.5
#: Shares in proportion to the weights.
WEIGHTED = Allocator("weighted")
#: Where a plan comes from: given as data, written by a planner, or what is used where the planner wrote none.
SOURCES = ("given", "planned", "fallback")


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Args:
        text: what is to be done.
        weight: how much of the work it is, against the other steps; not negative.
        after: numbers (from 1) of the steps that must come before.
        heading: the line that begins it in the thought, written where the model does not move on by itself; None for
            "Step N: text" in a line of its own, "" for none, which only the first step may have.
        least_tokens: that it gets whatever its weight, its heading included, where the budget has as many for all steps.
        marks: texts that begin it where a line begins with them; None for the heading, or for usual ways to write "Step N:".

    Raises:
        PlanError: for a text, weight, heading or mark that is none.
    """

    text: str
    weight: float = 1.0
    after: tuple[int, ...] = ()
    heading: str | None = None
    marks: tuple[str, ...] | None = None
    least_tokens: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise PlanError(f"a step with text {self.text!r}: expected some text; say what is to be done")
        number = isinstance(self.weight, Real) and not isinstance(self.weight, bool)
        if not number or not 0 <= self.weight < math.inf:
            raise PlanError(
                f"step {self.text!r} has weight {self.weight!r}: expected a number >= 0; correct the weight"
            )
        if any(isinstance(n, bool) or not isinstance(n, Integral) for n in self.after):
            raise PlanError(
                f"step {self.text!r} comes after {list(self.after)!r}: expected numbers of steps, from 1; correct them"
            )
        check_tokens(self.least_tokens, "least_tokens", "leave it out for none")
        texts = [self.heading or "", *(self.marks or ())]
        if not all(isinstance(text, str) for text in texts) or any(not m.strip() for m in texts[1:]):
            raise PlanError(
                f"step {self.text!r} with heading {self.heading!r} and marks {self.marks!r}: expected texts; correct them"
            )

    @classmethod
    def of(cls, value: object) -> Step:
        """A step from its text, or from its fields by name (``credit`` is another name of ``weight``).

        Raises:
            PlanError: for anything else.
        """
        if isinstance(value, Step):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping):
            raise PlanError(
                f"a step of type {type(value).__name__}: expected a text, or an object with text and weight"
            )
        given = {("weight" if name == "credit" else name): part for name, part in value.items()}
        unknown = [name for name in given if name not in cls.__dataclass_fields__]
        if unknown or "text" not in given:
            came = f"unknown field {unknown[0]!r}" if unknown else "no text"
            raise PlanError(f"a step with {came}: expected {', '.join(cls.__dataclass_fields__)}; correct it")
        for name in ("after", "marks"):
            part = given.get(name)
            if part is not None:
                if isinstance(part, str) or not isinstance(part, Sequence):
                    raise PlanError(f"a step with {name}={part!r}: expected a list; correct it")
                given[name] = tuple(part)
        if given.get("after", ()) is None:
            given["after"] = ()
        try:
            return cls(**given)
        except BudgetError as error:
            raise PlanError(str(error)) from None


@dataclass(frozen=True)
class Plan:
    """The steps of a question, each after those that it needs.

    Args:
        steps: 1 to ``MAX_STEPS``; they are put in an order that respects ``after``, the given one as far as possible.
        schedule: how the budget is shared out, as :class:`~budgetctl.plan.allocators.Allocator` reads it.
        floor: least part of an even share that each step gets, in [0, 1].
        firmness: what is kept for the steps to come when a step takes longer: this part of their shares, in [0, 1], and
            their floors in any case. 1 ends every step at its share.
        source: one of ``SOURCES``.
        planner_tokens: written by the planner, thought and retries included.

    Raises:
        PlanError: for no steps or too many, weights that are all zero, steps that wait for each other or for none, a first
            step alone without heading, or a value out of range.
        BudgetError: for an unknown schedule.
    """

    steps: tuple[Step, ...]
    schedule: Allocator = WEIGHTED
    floor: float = FLOOR
    firmness: float = FIRMNESS
    source: str = "given"
    planner_tokens: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.steps) <= MAX_STEPS:
            raise PlanError(
                f"a plan of {len(self.steps)} steps: expected 1 to {MAX_STEPS}; join steps that belong together"
            )
        if not any(step.weight for step in self.steps):
            raise PlanError("a plan in which every weight is 0: expected one above 0; weigh the steps")
        for name in ("floor", "firmness"):
            part = getattr(self, name)
            number = isinstance(part, Real) and not isinstance(part, bool)
            if not number or not 0 <= part <= 1:
                raise PlanError(
                    f"a plan with {name} {part!r}: expected a part of a share, from 0 to 1; correct it"
                )
        if self.source not in SOURCES:
            raise PlanError(f"a plan from {self.source!r}: expected one of {', '.join(SOURCES)}")
        check_tokens(self.planner_tokens, "planner_tokens", "leave it out for a plan that cost none")
        object.__setattr__(self, "schedule", Allocator.parse(self.schedule))
        object.__setattr__(self, "steps", _ordered(self.steps))
        if any(step.heading is not None and not step.heading.strip() for step in self.steps[1:]):
            raise PlanError(
                "a step without heading: expected one for all steps but the first; leave it unset or give it"
            )

    @classmethod
    def of(cls, value: object) -> Plan:
        """A plan from its fields by name, or from a list of steps.

        Raises:
            PlanError: for anything else, or values that make no sense.
        """
        if isinstance(value, Plan):
            return value
        fields: dict[str, Any] = {"steps": value}
        if isinstance(value, Mapping):
            fields = dict(value)
        unknown = [name for name in fields if name not in cls.__dataclass_fields__]
        steps = fields.get("steps")
        if unknown or isinstance(steps, str) or not isinstance(steps, Sequence):
            came = f"unknown field {unknown[0]!r}" if unknown else f"steps of type {type(steps).__name__}"
            raise PlanError(
                f"a plan with {came}: expected a list of steps, or an object that has them; correct it"
            )
        fields["steps"] = tuple(Step.of(step) for step in steps)
        try:
            return cls(**fields)
        except BudgetError as error:
            raise PlanError(str(error)) from None

    @classmethod
    def single(cls, question: str, planner_tokens: int = 0) -> Plan:
        """What stands for a plan that could not be made: the question as its only step, which writes no heading."""
        return cls((Step(question, heading=""),), source="fallback", planner_tokens=planner_tokens)

    def shares(self, total: int, least: Sequence[int] = ()) -> list[int]:
        """Tokens of each step; they sum to ``total``.

        The floor of a step is ``floor`` of an even share, its ``least_tokens``, or its part of ``least``, whichever is most;
        where the total is less than all floors, they are scaled down to it.
        """
        return self.schedule([step.weight for step in self.steps], total, self.floors(total, least))

    def floors(self, total: int, least: Sequence[int] = ()) -> list[int]:
        """The floors of :meth:`shares` in tokens."""
        even = int(self.floor * total / len(self.steps))
        more = least or [0] * len(self.steps)
        floors = [max(even, step.least_tokens, own) for step, own in zip(self.steps, more, strict=True)]
        if sum(floors) > total:
            floors = [low * total // sum(floors) for low in floors]
        return floors

    def limits(self, total: int, least: Sequence[int] = ()) -> list[int]:
        """Tokens of the thought after which each step is ended whatever it is at: what is kept for the steps to come is left
        then. The last is ``total``."""
        shares, floors = self.shares(total, least), self.floors(total, least)
        kept = [max(low, int(self.firmness * share)) for share, low in zip(shares, floors, strict=True)]
        return [total - sum(kept[step + 1 :]) for step in range(len(kept))]

    def with_schedule(self, schedule: str | Allocator, **changes: float) -> Plan:
        """The same steps under another schedule, and perhaps another ``floor`` or ``firmness``."""
        return replace(self, schedule=Allocator.parse(schedule), **changes)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """JSON values from which :meth:`of` makes the same plan."""
        fields = asdict(self) | {"schedule": str(self.schedule)}
        fields["steps"] = [
            {
                name: part
                for name, part in asdict(step).items()
                if part not in (None, ()) and (name, part) != ("least_tokens", 0)
            }
            for step in self.steps
        ]
        return fields


def _ordered(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps so that each comes after those that it needs, with ``after`` in the new numbers."""
    count = len(steps)
    for number, step in enumerate(steps, start=1):
        wrong = [n for n in step.after if not 1 <= n <= count or n == number]
        if wrong:
            raise PlanError(
                f"step {number} ({step.text!r}) comes after step {wrong[0]}: expected numbers of other steps, 1 to {count}"
            )
    order: list[int] = []
    while len(order) < count:
        ready = (n for n in range(1, count + 1) if n not in order and set(steps[n - 1].after) <= set(order))
        following = next(ready, None)
        if following is None:
            stuck = sorted(set(range(1, count + 1)) - set(order))
            raise PlanError(
                f"steps {', '.join(map(str, stuck))} wait for each other: expected an order in which they can be done; "
                "take one of their dependencies out"
            )
        order.append(following)
    place = {number: at for at, number in enumerate(order, start=1)}
    return tuple(
        replace(steps[n - 1], after=tuple(sorted({place[m] for m in steps[n - 1].after}))) for n in order
    )
