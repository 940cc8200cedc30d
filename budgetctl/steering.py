"""Guidance at work: what one step adds to the logits, from the forecast of each row and its candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from budgetctl.checks import check_strength, shown
from budgetctl.closing import Boundaries
from budgetctl.errors import BudgetError
from budgetctl.forecast import LengthForecast
from budgetctl.guided_step import guided_step
from budgetctl.kernels.row_state import Action
from budgetctl.limits import RowLimits
from budgetctl.on_device import may_hold
from budgetctl.predicted_caps import ForecastOfStep
from budgetctl.state import ThinkingState

GUIDED_STEPS = ("every", "line", "first")


class Steering:
    """Guidance of one request.

    Args:
        forecast: the remaining-length forecast, None when nothing is steered.
        limits: of the rows; a target is aimed at from both sides.
        strength: overrides the predictor's default; 0 turns steering off.
        guided_steps: ``every`` step, only the first token of a ``line``, or only the ``first`` token of the thought.

    Raises:
        BudgetError: for a strength or ``guided_steps`` that is none.
    """

    def __init__(
        self, forecast: LengthForecast | None, limits: RowLimits, strength: Any, guided_steps: str
    ) -> None:
        if guided_steps not in GUIDED_STEPS:
            raise BudgetError(
                f"unknown guided_steps {shown(guided_steps)}: expected one of {', '.join(GUIDED_STEPS)}"
            )
        if strength is None:
            strength = forecast.guidance_strength if forecast is not None else 0.0
        self.forecast = forecast
        self.limits = limits
        self.strength = check_strength(strength)
        self.guided_steps = guided_steps
        #: What runs a step where the forecast is compiled.
        self.compiled: Callable[..., Any] | None = getattr(forecast, "compiled_step", None)

    def __call__(
        self,
        input_ids: torch.Tensor,
        scores: torch.Tensor,
        state: ThinkingState,
        forecast: ForecastOfStep,
        *,
        active: torch.Tensor,
        near: torch.Tensor,
        left: torch.Tensor,
        minimum: torch.Tensor,
        closing_ids: torch.Tensor,
        boundaries: Boundaries | None,
        temperature: float | torch.Tensor,
        in_place: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Guided scores [B, V], and [B] log probability by the state alone that the thought ends in time; None where
        no row is steered or ``near``, as far as that is known on the host.

        Rows that are not steered at this step keep their scores, and so do the tokens that close the thought.

        Args:
            input_ids: [B, T] prefixes.
            scores: [B, V] logits.
            state: of the rows.
            forecast: at this step.
            active: [B] bool, rows in a thought that is limited, which may be steered.
            near: [B] bool, rows of which the log probability is needed in any case.
            left: [B] int64 thinking tokens left.
            minimum: [B] int64, the lower end of a target.
            closing_ids: [B, c] int64, tokens that close, or go on closing, the thought.
            boundaries: line ends, for guidance by lines.
            temperature: a number or [B, 1].
            in_place: write the guided scores into ``scores``, unless guidance is compiled.
        """
        assert self.forecast is not None
        if self.strength == 0:
            steered = torch.zeros_like(active)
        elif self.guided_steps == "every":
            steered = active
        else:
            steered = active & self.guided(input_ids, state, boundaries)
        if not (may_hold(steered) or may_hold(near)):
            return scores, None
        action = torch.where(steered, int(Action.GUIDE), near.to(torch.int8) * Action.EVALUATE)
        lower = None
        if self.limits.has_target:
            missing = minimum - state.used  # content that a thought of the smallest size still needs
            aims = self.limits.on(len(scores), scores.device).target & (missing > 0)
            lower = torch.where(aims, missing - 1, -1)
        warmth = temperature if isinstance(temperature, int | float) else temperature[:, 0]
        step = (action, left, closing_ids, lower, self.strength, warmth)
        if self.compiled is None:
            out = scores if in_place else None
            return guided_step(self.forecast, scores, *step, forecast.outlook(), out)
        return self.compiled(self.forecast, scores, forecast.scores, forecast.own_logits, *step)

    def guided(
        self, input_ids: torch.Tensor, state: ThinkingState, boundaries: Boundaries | None
    ) -> torch.Tensor:
        """[B] bool: rows [B, T] that are steered at this step, as ``guided_steps`` says."""
        if self.guided_steps == "first":
            return state.at_start
        if self.guided_steps == "line" and boundaries is not None:
            return state.at_start | boundaries.line[input_ids[:, -1]]
        return torch.ones_like(state.thinking)
