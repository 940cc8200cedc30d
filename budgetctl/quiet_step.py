"""Steps at which all rows are in the middle of a thought: guidance and the end of sequence are all there is to do.

Such are most steps. Nothing can be closed, cut in two or begin there, so that what the controller asks of every row at
other steps need not be asked. Only where the host may look at values, which is on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from budgetctl.close_record import CloseNote, note_close
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.forecast import LengthForecast
from budgetctl.guided_step import CANDIDATES, CERTAIN, MOST_GAIN
from budgetctl.kernels import gamma_guidance_numpy
from budgetctl.kernels.candidates import LARGE_VOCABULARY, top_candidates
from budgetctl.kernels.host_reads import array_of, may_look
from budgetctl.kernels.row_state import LEAST_TEMPERATURE, MOST_STRENGTH, MOST_TEMPERATURE
from budgetctl.limits import RowTensors
from budgetctl.protect import MOST_BYTES, Spans
from budgetctl.state import ThinkingState

Array = np.ndarray[Any, Any]

#: Rows that are folded one by one.
FEW = 8
#: Of logits, and the lowest number of each.
_LEAST = {dtype: torch.finfo(dtype).min for dtype in gamma_guidance_numpy.DTYPES}


class QuietStep:
    """What is done at a quiet step.

    Args:
        delimiters: the markers.
        forecast: the remaining-length forecast, None where nothing is steered.
        strength: of guidance.
    """

    def __init__(
        self, delimiters: ThinkingDelimiters, forecast: LengthForecast | None, strength: float
    ) -> None:
        self._forecast = forecast if strength > 0 else None
        self._strength = min(strength, MOST_STRENGTH)
        ends = (*delimiters.all_ends, delimiters.forced_end_ids)
        #: Tokens after which a close may be half-written.
        self.begun = frozenset(token for marker in ends for token in marker[:-1])
        self._begun = np.array(sorted(self.begun), dtype=np.int64)
        #: Tokens of the longest close.
        self.longest = max(map(len, ends))
        #: [c], the tokens that begin to close the thought.
        self.closing = np.array([marker[0] for marker in delimiters.all_ends], dtype=np.int64)
        self._eos_ids, self._forced = delimiters.eos_ids, delimiters.forced_end_ids[0]
        self._folded: dict[int, tuple[int, ...]] = {}

    def takes(self, scores: torch.Tensor) -> bool:
        """Whether this is made for logits [B, V] like these: few rows in the CPU's memory, float32 or float64."""
        fits = may_look(scores.device) and scores.dtype in _LEAST
        if self._forecast is None or not fits:
            return fits
        head = self._forecast.head
        few = len(scores) * min(CANDIDATES, scores.shape[1]) <= gamma_guidance_numpy.MOST_CANDIDATES
        return few and self._forecast.dtype in _LEAST and head.table.dtype in _LEAST

    def rows(
        self, input_ids: torch.Tensor, state: ThinkingState, limits: RowTensors
    ) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """[B] bool: limited rows in a thought that has its least length, with no half-written close at the end. At a quiet
        step all rows are such, and have more than :meth:`margin` tokens left.

        Args:
            input_ids: [B, T] int64.
            state: of the rows.
            limits: of the rows.
        """
        quiet = array_of(state.thinking) & array_of(limits.limited)
        least = array_of(limits.minimum)
        quiet &= (least == 0) | (array_of(state.used) - self.longest >= least)
        if self._begun.size:
            quiet &= ~np.isin(array_of(input_ids)[:, -1], self._begun)
        return quiet

    def margin(self, window: torch.Tensor, spans: Spans | None) -> Array:
        """[B] int64 tokens left with which a row is near its end, from the length of its closing ``window`` [B] int64 and of
        what a close may not cut in two."""
        if spans is None:
            return array_of(window)
        return np.maximum(array_of(window), len(spans.fence_end) + MOST_BYTES)

    def warmth(self, temperature: float | torch.Tensor, rows: int) -> Warmth:
        """Of ``rows`` rows, from the ``temperature`` of the sampling that follows, a number or [B, 1]."""
        if isinstance(temperature, torch.Tensor):
            values = temperature.flatten().tolist()
        else:
            values = [float(temperature)] * rows
        values = [min(max(value, LEAST_TEMPERATURE), MOST_TEMPERATURE) for value in values]
        apart = CERTAIN + MOST_GAIN * self._strength
        return Warmth(values, [value * apart for value in values])

    def __call__(
        self,
        scores: torch.Tensor,
        left: Sequence[int] | Array,
        warmth: Warmth,
        raw: torch.Tensor | None = None,
        *,
        in_place: bool,
    ) -> torch.Tensor:
        """Logits [B, V] of rows that are all in the middle of a thought.

        Args:
            scores: [B, V] logits.
            left: [B] thinking tokens left.
            warmth: of the rows.
            raw: [B, V] the model's own logits, where ``scores`` are others.
            in_place: write into ``scores``.
        """
        result = scores if in_place else scores.clone()
        if self._forecast is not None:
            self._guide(self._forecast, result, left, warmth, scores if raw is None else raw)
        self._fold(result.numpy(), warmth, _LEAST[scores.dtype])
        return result

    def note(
        self,
        keys: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        forced: torch.Tensor,
        temperature: float | torch.Tensor,
        *,
        greedy: bool,
    ) -> CloseNote:
        """How a close would come about, as :func:`~budgetctl.close_record.note_close` has it."""
        closing = torch.from_numpy(self.closing).expand(len(before), -1)
        return note_close(keys, before, after, closing, forced, temperature, None, greedy=greedy)

    def _guide(
        self,
        forecast: LengthForecast,
        scores: torch.Tensor,
        left: Sequence[int] | Array,
        warmth: Warmth,
        raw: torch.Tensor,
    ) -> None:
        """Guide [B, V] in place, but for rows whose next token is certain."""
        count, vocab = scores.shape
        found = None
        if vocab >= LARGE_VOCABULARY:
            found = top_candidates(scores, CANDIDATES)
        two = (scores if found is None else found[0]).topk(min(2, vocab), dim=1).values.tolist()
        gaps = zip(two, warmth.apart, strict=True)
        rows = [row for row, (best, apart) in enumerate(gaps) if not best[0] - best[-1] > apart]
        if not rows:
            return
        some, of_rows, temperature = scores, np.asarray(left), warmth.column
        every = len(rows) == count
        if not every:
            values = scores.numpy()
            some, of_rows, temperature = torch.from_numpy(values[rows]), of_rows[rows], temperature[rows]
            if found is not None:
                found = torch.from_numpy(found[0].numpy()[rows]), torch.from_numpy(found[1].numpy()[rows])
        top, ids = found or top_candidates(some, min(CANDIDATES, vocab))
        own = raw.numpy() if every else raw.numpy()[rows]
        features = forecast.features.of_few(own)
        if features is None:
            features = forecast.outlook(torch.from_numpy(own)).features.numpy()
        gamma_guidance_numpy.guide_every_row(
            some,
            features,
            forecast.head,
            top,
            ids,
            self.closing,
            of_rows,
            temperature,
            self._strength,
            some,
        )
        if not every:
            values[rows] = some.numpy()

    def _fold(self, values: Array, warmth: Warmth, least: float) -> None:
        """``fold_end_of_sequence`` of all rows [B, V], in place."""
        known = self._folded.get(values.shape[1])
        if known is None:
            known = tuple(token for token in self._eos_ids if token < values.shape[1])
            self._folded[values.shape[1]] = known
        if not known:
            return
        if len(values) <= FEW:
            for row, temperature in zip(values, warmth.values, strict=True):
                _fold_row(row, self._forced, known, temperature)
            return
        both, column = values.take((self._forced, *known), axis=1).astype(np.float64), warmth.column
        base = np.maximum(np.maximum.reduce(both, axis=1, keepdims=True), least)
        both -= base
        both /= column
        with np.errstate(divide="ignore"):
            joined = np.log(np.add.reduce(np.exp(both, out=both), axis=1, keepdims=True))
        joined *= column
        joined += base
        for token in known:
            values[:, token] = -np.inf
        # Should they be one token, the close is what counts.
        values[:, self._forced] = joined[:, 0]


@dataclass(frozen=True)
class Warmth:
    """Temperatures of B rows in the bounds that the kernel takes them in, and by how much the likeliest token's logit has to
    be above the second to be certain."""

    values: list[float]
    apart: list[float]

    @cached_property
    def column(self) -> Array:
        """[B, 1] float64."""
        return np.array(self.values)[:, None]


def _fold_row(row: Array, forced: int, eos_ids: tuple[int, ...], temperature: float) -> None:
    """The same of one row [V]: few numbers, of which Python makes less than calls of NumPy cost."""
    both = [row.item(token) for token in (forced, *eos_ids)]
    base = max(both)
    for token in eos_ids:
        row[token] = -math.inf
    if base > -math.inf:
        base += temperature * math.log(sum([math.exp((logit - base) / temperature) for logit in both]))
    row[forced] = base
