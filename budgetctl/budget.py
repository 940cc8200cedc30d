"""What a request may spend: effort levels, thinking budgets, the answer's reserve, and their validation.

Effort is a fraction of *this model's predicted natural length for this question* (``forecast.NATURAL_COVERAGE``), read
at the first thinking token (the meaning of e1, arXiv 2510.27042, with no training); low, medium and high follow
ThinkDial's modes (arXiv 2508.18773).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from budgetctl.checks import check_tokens, shown
from budgetctl.errors import BudgetError

#: Fraction of the predicted natural length that a level allows. ``none`` forbids thinking, ``max`` sets no
#: limit but the room that the answer's reserve leaves in ``max_new_tokens``, ``auto`` leaves the decision to
#: ``thinking_budget`` (and the generation untouched when that is unset).
EFFORT_FRACTIONS: dict[str, float] = {
    "none": 0.0,
    "minimal": 0.125,
    "low": 0.25,
    "medium": 0.5,
    "high": 1.0,
    "xhigh": 2.0,
    "max": math.inf,
    "auto": math.inf,
}
EFFORT_LEVELS = tuple(EFFORT_FRACTIONS)

#: Stands for "no cap" in integer tensors of tokens.
NO_CAP = 2**40

_LEVELS_TEXT = ", ".join(EFFORT_LEVELS)


@dataclass(frozen=True)
class Effort:
    """How much of the predicted natural thinking length a question may use.

    ``fraction`` is 0 for no thinking and ``math.inf`` for no limit.
    """

    name: str
    fraction: float

    @classmethod
    def parse(cls, value: str | float | Effort | None) -> Effort:
        """Read a level name or a number in (0, 1]; ``None`` means ``auto``.

        Raises:
            BudgetError: for an unknown level, or a number outside (0, 1].
        """
        if isinstance(value, Effort):
            return value
        if value is None:
            value = "auto"
        if isinstance(value, str):
            name = value.strip().lower()
            if name in EFFORT_FRACTIONS:
                return cls(name, EFFORT_FRACTIONS[name])
            try:
                value = float(name)
            except ValueError:
                raise BudgetError(
                    f"unknown effort {shown(value)}: expected one of {_LEVELS_TEXT}, or a number in (0, 1]"
                ) from None
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= 1:
            raise BudgetError(
                f"effort {shown(value)} is out of range: expected a number in (0, 1] or one of {_LEVELS_TEXT}; "
                "use thinking_budget for an absolute number of tokens"
            )
        return cls(f"{float(value):g}", float(value))

    @property
    def needs_prediction(self) -> bool:
        """Whether this effort is a fraction of a predicted length, so that a length predictor is needed."""
        return 0 < self.fraction < math.inf


@dataclass(frozen=True)
class ThinkingBudget:
    """The limit of one request: an effort and/or an absolute cap in thinking tokens."""

    effort: Effort
    cap: int | None

    @classmethod
    def parse(cls, effort: str | float | Effort | None, thinking_budget: int | None) -> ThinkingBudget:
        """Validate both knobs together.

        With a fractional effort, ``thinking_budget`` caps what the effort allows.

        Raises:
            BudgetError: for a bad value, or for two knobs that contradict each other.
        """
        level = Effort.parse(effort)
        cap = check_tokens(thinking_budget, "thinking_budget", "leave it unset for no cap, 0 closes at once")
        if cap is not None:
            if level.name == "none" and cap > 0:
                raise BudgetError(
                    f"effort='none' contradicts thinking_budget={cap}: expected 0 or unset; drop one of the two"
                )
            if level.name == "max":
                raise BudgetError(
                    f"effort='max' (no limit) contradicts thinking_budget={cap}: expected only one; drop one of the two"
                )
            if cap == 0 and level.needs_prediction:
                raise BudgetError(
                    f"effort={level.name!r} contradicts thinking_budget=0 (no thinking): "
                    "expected a budget > 0; drop one of the two"
                )
        if level.name == "none":
            cap = 0
        return cls(level, cap)

    @property
    def unlimited(self) -> bool:
        """Whether nothing at all was asked for (``auto`` without a budget): such a thought is left untouched."""
        return self.cap is None and self.effort.name == "auto"


@dataclass(frozen=True)
class RowBudgets:
    """The limits of a batch as tensors [B]: ``caps`` int64 tokens, ``fractions`` float32 of the predicted length."""

    requests: tuple[ThinkingBudget, ...]
    caps: torch.Tensor
    fractions: torch.Tensor

    @classmethod
    def build(cls, effort: object = None, thinking_budget: object = None) -> RowBudgets:
        """From one value for all rows, or sequences with one value a row (both of one length)."""
        efforts, caps = as_list(effort), as_list(thinking_budget)
        rows = max(len(efforts), len(caps))
        if rows == 0:
            raise BudgetError(
                "effort and thinking_budget are empty: expected one value for all rows or one a row"
            )
        for name, given in (("effort", efforts), ("thinking_budget", caps)):
            if len(given) not in (1, rows):
                raise BudgetError(
                    f"{name} has {len(given)} values and the other knob {rows}: expected one value for all rows "
                    "or one a row; give both the same length"
                )
        if len(efforts) == 1:
            efforts *= rows
        if len(caps) == 1:
            caps *= rows
        requests = tuple(ThinkingBudget.parse(e, c) for e, c in zip(efforts, caps, strict=True))
        return cls(
            requests,
            torch.tensor(
                [NO_CAP if r.cap is None else min(r.cap, NO_CAP) for r in requests], dtype=torch.int64
            ),
            torch.tensor([r.effort.fraction for r in requests], dtype=torch.float32),
        )

    @property
    def unlimited(self) -> bool:
        return all(request.unlimited for request in self.requests)

    def limited(self, rows: int, device: torch.device) -> torch.Tensor:
        """[rows] bool: whether anything was asked for that row."""
        flags = torch.tensor([not request.unlimited for request in self.requests], device=device)
        return flags.repeat_interleave(rows // len(self.requests))

    @property
    def needs_prediction(self) -> bool:
        return any(request.effort.needs_prediction for request in self.requests)

    def check_rows(self, rows: int) -> None:
        """Raise unless the budgets fit ``rows`` prompts."""
        if len(self.requests) not in (1, rows):
            raise BudgetError(
                f"{len(self.requests)} budgets for {rows} prompts: expected one for all or one a prompt; "
                "give effort or thinking_budget as many values as the batch has rows"
            )

    def expanded(self, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """``caps`` and ``fractions`` for ``rows`` rows; each request is repeated for its beams or samples."""
        count = len(self.requests)
        if rows % count:
            raise BudgetError(
                f"{count} budgets cannot be shared among {rows} rows: expected a multiple; give one budget a prompt"
            )
        repeat = rows // count
        return (
            self.caps.to(device).repeat_interleave(repeat),
            self.fractions.to(device).repeat_interleave(repeat),
        )


def as_list(value: Any) -> list[Any]:
    """One value a row; a single value stands for all rows."""
    if isinstance(value, torch.Tensor):
        return value.reshape(-1).tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]


def resolve_reserve(answer_reserve: object, max_new_tokens: object, close_tokens: int) -> int:
    """Tokens kept for the answer inside ``max_new_tokens``; by default a quarter of it, at most 256.

    Raises:
        BudgetError: when one is no number of tokens, or the reserve and the close do not fit into ``max_new_tokens``.
    """
    reserve = check_tokens(answer_reserve, "answer_reserve", "leave it unset for the default")
    max_new_tokens = check_tokens(max_new_tokens, "max_new_tokens", "leave it unset for no limit")
    if max_new_tokens is None:
        return reserve or 0
    if reserve is None:
        return min(256, max_new_tokens // 4)
    if reserve + close_tokens > max_new_tokens:
        raise BudgetError(
            f"answer_reserve={reserve} plus {close_tokens} tokens to close the thought is more than "
            f"max_new_tokens={max_new_tokens}: expected a reserve of at most {max(max_new_tokens - close_tokens, 0)}; "
            "raise max_new_tokens or lower the reserve"
        )
    return reserve


def tokens_left(
    used: torch.Tensor, budget: torch.Tensor, generated: torch.Tensor, room: torch.Tensor | int | None
) -> torch.Tensor:
    """Thinking tokens that a row may still write, [B] int64: what budget and answer reserve both allow, >= 0.

    ``room`` is the number of new tokens before the close must begin ([B], or one for all), None for no such limit.
    """
    left = budget - used
    if room is not None:
        left = torch.minimum(left, room - generated)
    return left.clamp(min=0)
