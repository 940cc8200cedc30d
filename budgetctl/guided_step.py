"""From the logits of a step to guided ones, as one function of tensors: run as it is, or compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from budgetctl.kernels.candidates import top_candidates
from budgetctl.kernels.row_state import pack_rows

if TYPE_CHECKING:
    from budgetctl.forecast import LengthForecast, Outlook

#: Candidates for which the predictor's token term is evaluated; the others take the state's value.
CANDIDATES = 64


def guided_step(
    forecast: LengthForecast,
    scores: torch.Tensor,
    action: torch.Tensor,
    left: torch.Tensor,
    closing_ids: torch.Tensor,
    lower: torch.Tensor | None,
    strength: float,
    temperature: float | torch.Tensor,
    outlook: Outlook,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Guided scores [B, V], and the state's log P(fit) [B].

    Args:
        forecast: of the remaining length.
        scores: [B, V] logits.
        action: [B], values of :class:`~budgetctl.kernels.row_state.Action`.
        left: [B] int64 thinking tokens left.
        closing_ids: [B, c] int64, tokens that close, or go on closing, the thought.
        lower: [B] int64, the lower end of an interval, -1 for none; None where no row has one.
        strength: guidance strength.
        temperature: of the sampling that follows, a number or [B].
        outlook: the forecast at this step.
        out: where the guided scores go, ``scores`` itself to work in place; None for a new tensor.
    """
    rows = pack_rows(action, left, closing_ids, strength=strength, temperature=temperature, lower=lower)
    top, candidates = top_candidates(scores, min(CANDIDATES, scores.shape[1]))
    return forecast.guide(scores, outlook, top, candidates, rows, interval=lower is not None, out=out)


def guided_step_of_logits(
    forecast: LengthForecast,
    scores: torch.Tensor,
    raw: torch.Tensor,
    own_logits: bool,
    action: torch.Tensor,
    left: torch.Tensor,
    closing_ids: torch.Tensor,
    lower: torch.Tensor | None,
    strength: float,
    temperature: float | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with the forecast made from the logits ``raw`` [B, V]. This is what is compiled: a step that fuses with
    nothing before it."""
    outlook = forecast.outlook(raw, own_logits=own_logits)
    return guided_step(forecast, scores, action, left, closing_ids, lower, strength, temperature, outlook)
