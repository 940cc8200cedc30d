"""What is asked of the model, checked before the model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from budgetctl.budget import ThinkingBudget, resolve_reserve
from budgetctl.checks import check_strength, check_temperature
from budgetctl.early_exit import EarlyExit
from budgetctl.errors import BudgetctlError, BudgetError, DelimiterError
from budgetctl.extension import Extension
from budgetctl.limits import RowLimits
from budgetctl.steering import GUIDED_STEPS

if TYPE_CHECKING:
    from budgetctl.cli.kv import KVSettings
    from budgetctl.cli.plan import PlanSettings

#: What each prompt may have of its own, by name.
LIMITS = ("effort", "thinking_budget", "thinking_target", "target_tolerance", "min_thinking_tokens")


@dataclass(frozen=True)
class Request:
    """One prompt with its own limits, in tokens; ``plan`` is that of the settings unless it has one, or none, of its own."""

    prompt: str
    budget: ThinkingBudget
    min_thinking_tokens: int | None = None
    thinking_target: int | None = None
    target_tolerance: int | None = None
    plan: PlanSettings | Literal["shared"] | None = "shared"


@dataclass(frozen=True)
class Settings:
    """What all requests of a run share, in tokens; ``temperature`` None is the model's own, 0 decodes greedily.

    Raises:
        BudgetError: for a value out of range, or a reserve that does not fit into ``max_new_tokens``.
        DelimiterError: for a transition phrase without text.
    """

    max_new_tokens: int = 512
    answer_reserve: int | None = None
    guidance_strength: float | None = None
    guided_steps: str | None = None
    max_extensions: int | None = None
    extension_phrase: str | None = None
    transition_phrase: str | None = None
    early_exit: EarlyExit | None = None
    plan: PlanSettings | None = None
    budget_notes: bool = False
    kv: KVSettings | None = None
    temperature: float | None = None
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        # A close has at least one token.
        resolve_reserve(self.answer_reserve, self.max_new_tokens, 1)
        if self.guidance_strength is not None:
            check_strength(self.guidance_strength)
        if self.temperature:
            if not self.temperature > 0:
                raise BudgetError(
                    f"temperature={self.temperature!r}: expected a number >= 0; 0 decodes greedily"
                )
            check_temperature(self.temperature)
        if self.guided_steps is not None and self.guided_steps not in GUIDED_STEPS:
            raise BudgetError(
                f"unknown guided_steps {self.guided_steps!r}: expected one of {', '.join(GUIDED_STEPS)}"
            )
        if self.max_extensions is not None:
            # The phrase's tokens are not known yet; only an empty one has none.
            Extension(() if self.extension_phrase == "" else (0,), self.max_extensions)
        elif self.extension_phrase is not None:
            raise BudgetError(
                f"extension_phrase={self.extension_phrase!r} is never written: expected max_extensions too; "
                "give it or drop the phrase"
            )
        if self.transition_phrase is not None and not self.transition_phrase.strip():
            raise DelimiterError(
                f"transition_phrase={self.transition_phrase!r} is empty: expected some text; leave it unset for none"
            )

    def knobs(self) -> dict[str, object]:
        """Those of the generation config that all requests share."""
        names = ("guidance_strength", "guided_steps", "max_extensions", "extension_phrase")
        return {name: getattr(self, name) for name in (*names, "transition_phrase", "early_exit")}


def read_early_exit(text: str | None) -> EarlyExit | None:
    """The early exit of a command line: a method, or its fields as a JSON object.

    Raises:
        BudgetError: for anything else.
    """
    if text is None or not text.lstrip().startswith("{"):
        return EarlyExit.of(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BudgetError(
            f"early_exit={text!r} is not JSON ({str(error).splitlines()[0]}): expected a method, or an object such as "
            '{"method": "confidence", "threshold": 0.9}; correct it'
        ) from None
    return EarlyExit.of(value)


def own_limits(fields: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """The limits of one line of a file: its own ``fields`` in place of those ``given`` for all lines. An effort, budget or
    target of the line replaces all three and the target's tolerance; a target also replaces the minimum."""
    own = {name: fields[name] for name in LIMITS if name in fields}
    kept = dict(given)
    if own.keys() & {"effort", "thinking_budget", "thinking_target"}:
        dropped = set(LIMITS) if own.get("thinking_target") is not None else {*LIMITS} - {LIMITS[-1]}
        kept = {name: value for name, value in kept.items() if name not in dropped}
    return kept | own


def make_request(
    prompt: object,
    limits: Mapping[str, object],
    settings: Settings,
    *,
    has_predictor: bool,
    plan: PlanSettings | Literal["shared"] | None = "shared",
) -> Request:
    """A checked request under the ``limits`` that are named in :data:`LIMITS`.

    Raises:
        BudgetctlError: when the prompt is no text, or a limit is impossible.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise BudgetctlError(f"the prompt is {_shown(prompt)}: expected text; give the question")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise BudgetctlError("the prompt is no valid Unicode: expected text; give it as UTF-8") from None
    effort, cap, target, tolerance, minimum = (limits.get(name) for name in LIMITS)
    budget = ThinkingBudget.parse(effort, cap)  # type: ignore[arg-type]
    # Each in a row of its own: a list as a value is no number.
    row: dict[str, Any] = {name: [limits.get(name)] for name in LIMITS}
    RowLimits.build(
        **row,
        max_new_tokens=settings.max_new_tokens,
        answer_reserve=settings.answer_reserve,
    )
    if budget.effort.needs_prediction and not has_predictor:
        raise BudgetError(
            f"effort={budget.effort.name!r} is a fraction of the predicted length and this model comes without a "
            "length predictor: expected one; pass --predictor, or a thinking budget in tokens instead"
        )
    return Request(prompt, budget, minimum, target, tolerance, plan)  # type: ignore[arg-type]


def _shown(prompt: object) -> str:
    if prompt is None:
        return "missing"
    return "empty" if isinstance(prompt, str) else f"of type {type(prompt).__name__}"
