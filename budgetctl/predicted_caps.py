"""The thinking budget of each row in tokens: absolute, or a share of the length predicted at its first thinking token."""

from __future__ import annotations

import numpy as np
import torch

from budgetctl.budget import NO_CAP
from budgetctl.compiled_step import compile_once
from budgetctl.forecast import LengthForecast, Outlook
from budgetctl.kernels.host_reads import array_of, may_look
from budgetctl.ledger import PredictionTable
from budgetctl.limits import RowLimits, RowTensors
from budgetctl.on_device import may_hold
from budgetctl.prefix_reader import Reading

#: Of predicted lengths that NumPy has.
DTYPES = frozenset({torch.float32, torch.float64})


class ForecastOfStep:
    """The outlook of one step, made when it is first asked for: where no row is in a thought, it is not.

    Args:
        forecast: the remaining-length forecast.
        scores: [B, V] the model's own logits.
        own_logits: they are known to be so.
        compiled: by ``torch.compile``, which makes the outlook, the length and whether it is one in a few launches.
    """

    def __init__(
        self, forecast: LengthForecast, scores: torch.Tensor, own_logits: bool, compiled: bool = False
    ) -> None:
        self._forecast = forecast
        self._length: torch.Tensor | None = None
        self._real: torch.Tensor | None = None
        self.scores, self.own_logits = scores, own_logits
        self._outlook: Outlook | None = None
        #: In which it is computed.
        self.dtype = forecast.dtype
        self.compiled = compiled
        if compiled:
            features, self._length, self._real = compile_once(_look_ahead)(forecast, scores, own_logits)
            self._outlook = Outlook(features, forecast.head)

    def outlook(self) -> Outlook:
        """State-level parameters of the rows."""
        if self._outlook is None:
            self._outlook = self._forecast.outlook(self.scores, own_logits=self.own_logits)
        return self._outlook

    def natural_length(self) -> torch.Tensor:
        """[B] thinking tokens still to come that suffice for most thoughts."""
        if self._length is None:
            self._length = self._forecast.natural_length(self.outlook())
        return self._length

    def real(self) -> torch.Tensor:
        """[B] bool: constant logits are no forecast, some decoding modes call processors with a placeholder."""
        return _differ(self.scores) if self._real is None else self._real


def _look_ahead(
    forecast: LengthForecast, scores: torch.Tensor, own_logits: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features [B, n], predicted length [B] and :meth:`ForecastOfStep.real` from the model's logits [B, V]."""
    features = forecast.features(scores, own_logits)
    return features, forecast.length_of(*forecast.head.state_parameters(features)), _differ(scores)


def _differ(scores: torch.Tensor) -> torch.Tensor:
    return scores.amax(1) > scores.amin(1)


def caps_at_step(
    limits: RowLimits,
    rows: RowTensors,
    reading: Reading,
    forecast: ForecastOfStep | None,
    predictions: PredictionTable,
) -> torch.Tensor:
    """[B] int64 thinking budget in tokens of each row at this step, ``NO_CAP`` without one.

    The length predicted at the first thinking token is kept in ``predictions``; where it is not known, it is derived
    from what is used and the forecast of this step.
    """
    if forecast is None:
        return rows.caps
    state = reading.state
    if may_hold(state.at_start):
        predictions.store(reading.start_key, forecast.natural_length(), state.at_start & forecast.real())
    if not limits.budgets.needs_prediction:
        return rows.caps
    predicted = predicted_length(reading, forecast, predictions)
    share = compile_once(_smaller_share) if forecast.compiled else _smaller_share
    caps: torch.Tensor = share(predicted, rows.fractions, rows.minimum, rows.caps)
    return caps


def _smaller_share(
    predicted: torch.Tensor, fractions: torch.Tensor, minimum: torch.Tensor, caps: torch.Tensor
) -> torch.Tensor:
    return torch.minimum(caps, share_of(predicted, fractions, minimum))


def predicted_length(
    reading: Reading, forecast: ForecastOfStep, predictions: PredictionTable
) -> torch.Tensor:
    """[B] natural length of each row's thought in tokens, as it was predicted at its first token; where that is not known,
    what is used and the forecast of this step."""
    known = predictions.all_of(reading.start_key)
    if known is not None:
        return known
    used = reading.state.used
    predicted = predictions.lookup(
        reading.start_key, torch.full(used.shape, torch.nan, dtype=forecast.dtype, device=used.device)
    )
    unknown = predicted.isnan()
    if may_hold(unknown):
        predicted = torch.where(unknown, used + forecast.natural_length(), predicted)
    return predicted


def share_of(predicted: torch.Tensor, fractions: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    """[B] int64 tokens: at least one and ``minimum`` [B], ``NO_CAP`` for an infinite fraction."""
    if may_look(predicted.device) and predicted.dtype in DTYPES:
        lengths, wanted = array_of(predicted), array_of(fractions)
        with np.errstate(invalid="ignore"):
            parts = np.where(np.isfinite(wanted), wanted.astype(lengths.dtype) * lengths, float(NO_CAP))
            tokens = np.minimum(np.maximum(np.rint(parts), 1), NO_CAP).astype(np.int64)
        return torch.from_numpy(np.maximum(tokens, array_of(minimum)))
    share = fractions.to(predicted.dtype) * predicted  # an infinite one is cut off with the rest
    return torch.maximum(share.round().clamp(1, NO_CAP).to(torch.int64), minimum)
