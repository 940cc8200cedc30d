"""What one request of vLLM asks for: budgetctl's knobs among its ``extra_args`` (``vllm_xargs`` over HTTP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from budgetctl.budget import NO_CAP
from budgetctl.checks import check_temperature, shown
from budgetctl.errors import BudgetError
from budgetctl.guidance import guided_temperature
from budgetctl.integrations.batching_support import CALL_KNOBS, REQUEST_KNOBS
from budgetctl.limits import RowLimits

#: Names under which other engines and interfaces know a knob; ignoring them would leave a thought without its limit.
OTHER_NAMES = {
    "reasoning_effort": "effort",
    "thinking_token_budget": "thinking_budget",
    "thinking_budget_tokens": "thinking_budget",
    "reasoning_budget": "thinking_budget",
    "budget_tokens": "thinking_budget",
    "max_thinking_tokens": "thinking_budget",
    "min_thinking_budget": "min_thinking_tokens",
}


def read_knobs(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The knobs that are set, by name. What belongs to other processors is left alone.

    Raises:
        BudgetError: for a knob under another engine's name, one that is none of a single request, or one that has
            several values.
    """
    given = extra_args or {}
    for name in given:
        if name in OTHER_NAMES:
            raise BudgetError(
                f"{name} in extra_args would be ignored: expected {OTHER_NAMES[name]}; give it under that name"
            )
        if name in CALL_KNOBS:
            raise BudgetError(
                f"{name} is no knob of a request here: expected one of {', '.join(REQUEST_KNOBS)}; drop it"
            )
    knobs = {name: given[name] for name in REQUEST_KNOBS if given.get(name) is not None}
    for name, value in knobs.items():
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            raise BudgetError(f"{name}={shown(value)} in one request: expected a single value; give it one")
    return {name: value for name, value in knobs.items() if value != "auto"}


def check_request(sampling_params: Any, *, has_predictor: bool) -> None:
    """Refuse a request whose knobs make no sense, before it is scheduled.

    Raises:
        BudgetError: for impossible or contradictory values, or an effort that needs a predictor when there is none.
    """
    knobs = read_knobs(sampling_params.extra_args)
    if not knobs:
        return
    limits = RowLimits.build(**knobs, max_new_tokens=sampling_params.max_tokens)
    if limits.budgets.needs_prediction and not has_predictor:
        raise BudgetError(
            f"effort={shown(knobs['effort'])} is a share of the predicted length and this server has no length "
            "predictor: expected BUDGETCTL_PREDICTOR in its environment; give thinking_budget=N instead"
        )
    if sampling_params.temperature:
        check_temperature(sampling_params.temperature)


@dataclass(frozen=True)
class RequestLimits:
    """The limits of one request as numbers.

    Args:
        cap: thinking budget in tokens, ``NO_CAP`` for none.
        fraction: of the predicted length, infinite for none.
        limited: anything bounds the thought.
        minimum: tokens before which the thought is not closed.
        room: new tokens before the close must begin, ``NO_CAP`` for no such limit.
        target: ``minimum`` and ``cap`` are the two ends of a target.
        temperature: that guidance acts on.
        needs_prediction: ``fraction`` is one of a predicted length.
        greedy: the likeliest token is taken.
    """

    cap: int
    fraction: float
    limited: bool
    minimum: int
    room: int
    target: bool
    temperature: float
    needs_prediction: bool
    greedy: bool

    @property
    def asked(self) -> bool:
        """Whether the controller has anything to do for the request."""
        return self.limited or self.minimum > 0


def limits_of(sampling_params: Any, close_tokens: int, most_new_tokens: int | None = None) -> RequestLimits:
    """The limits of a request that :func:`check_request` has let through.

    Args:
        sampling_params: vLLM's.
        close_tokens: length of a forced close.
        most_new_tokens: what the context leaves, None where that is not known.
    """
    knobs = read_knobs(sampling_params.extra_args)
    length = sampling_params.max_tokens
    if most_new_tokens is not None:
        length = most_new_tokens if length is None else min(length, most_new_tokens)
    if knobs.get("answer_reserve") is not None and length is not None:
        # The frontend does not know the length of the close; a reserve that does not fit takes what there is.
        knobs["answer_reserve"] = min(knobs["answer_reserve"], max(length - close_tokens, 0))
        length = max(length, close_tokens)
    greedy = sampling_params.temperature == 0
    temperature = guided_temperature(sampling_params.temperature)
    return _limits(tuple(knobs.items()), length, close_tokens, temperature, greedy)


@lru_cache(maxsize=1024, typed=True)
def _limits(
    knobs: tuple[tuple[str, Any], ...],
    length: int | None,
    close_tokens: int,
    temperature: float,
    greedy: bool,
) -> RequestLimits:
    """Most requests ask for what others have asked for."""
    rows = RowLimits.build(**dict(knobs), max_new_tokens=length, close_tokens=close_tokens)
    budget = rows.budgets.requests[0]
    return RequestLimits(
        cap=int(rows.budgets.caps[0]),
        fraction=float(rows.budgets.fractions[0]),
        limited=not budget.unlimited or bool(rows.reserved[0]),
        minimum=int(rows.minimum[0]),
        room=min(int(rows.room[0]), NO_CAP),
        target=bool(rows.target[0]),
        temperature=temperature,
        needs_prediction=budget.effort.needs_prediction,
        greedy=greedy,
    )
