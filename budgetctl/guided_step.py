"""From the logits of a step to guided ones, as one function of tensors: run as it is, or compiled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from budgetctl.kernels.candidates import top_candidates
from budgetctl.kernels.host_reads import array_of, may_look
from budgetctl.kernels.reference import HOPELESS_FIT
from budgetctl.kernels.row_state import (
    LEAST_TEMPERATURE,
    MOST_STRENGTH,
    MOST_TEMPERATURE,
    Action,
    pack_rows,
)

if TYPE_CHECKING:
    from budgetctl.forecast import LengthForecast, Outlook

#: Candidates for which the predictor's token term is evaluated; the others take the state's value.
CANDIDATES = 64
#: What the host has as arrays.
DTYPES = frozenset({torch.float32, torch.float64})
#: A next token is certain when all others together have e^-40 of its probability for each token of the vocabulary, and would
#: however much guidance raised them. The host leaves such a row alone: it saves the work, and no draw can tell.
CERTAIN = 40.0
#: Most that guidance raises one token over another, times its strength and the temperature.
MOST_GAIN = -math.log(HOPELESS_FIT)


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
    top, candidates = top_candidates(scores, min(CANDIDATES, scores.shape[1]))
    if may_look(scores.device) and top.dtype in DTYPES:
        warmth = temperature if isinstance(temperature, int | float) else array_of(temperature)[:, None]
        spared = certain(array_of(top), warmth, strength)
        if np.count_nonzero(spared):
            guided = array_of(action) == int(Action.GUIDE)
            action = torch.from_numpy(np.where(spared & guided, int(Action.EVALUATE), array_of(action)))
    rows = pack_rows(action, left, closing_ids, strength=strength, temperature=temperature, lower=lower)
    return forecast.guide(scores, outlook, top, candidates, rows, interval=lower is not None, out=out)


def certain(top: np.ndarray[Any, Any], temperature: Any, strength: float) -> np.ndarray[Any, Any]:
    """[B] bool, rows whose next token is certain whatever guidance does.

    Args:
        top: [B, k] the highest logits of each row, in any order.
        temperature: of the sampling that follows, a number or [B, 1].
        strength: of guidance.
    """
    warmth = np.clip(temperature, LEAST_TEMPERATURE, MOST_TEMPERATURE, dtype=np.float64)
    apart = (CERTAIN + MOST_GAIN * min(strength, MOST_STRENGTH)) * warmth
    least = np.maximum.reduce(top, axis=1, keepdims=True).astype(np.float64) - apart
    found: np.ndarray[Any, Any] = np.add.reduce(top >= least, axis=1, dtype=np.intp) == 1
    return found


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
