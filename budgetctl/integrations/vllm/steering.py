"""One controller for all requests of an engine: what is a constant of a request is read from its slot."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from budgetctl.closing import Boundaries
from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.forecast import LengthForecast
from budgetctl.integrations.vllm.counters import Counters
from budgetctl.integrations.vllm.memory import SlotPredictions, SlotReader
from budgetctl.integrations.vllm.slots import SlotLimits, SlotRows
from budgetctl.integrations.vllm.step_rows import StepRows
from budgetctl.integrations.vllm.tally import Tally


class EngineController(BudgetController):
    """A :class:`BudgetController` whose rows change from step to step.

    Args:
        delimiters: the markers.
        forecast: the remaining-length forecast, None for none.
        boundaries: line and sentence ends by token.
        limits: of the requests, by slot.
        device: of the logits.
    """

    def __init__(
        self,
        delimiters: ThinkingDelimiters,
        forecast: LengthForecast | None,
        boundaries: Boundaries,
        limits: SlotLimits,
        slots: int,
        device: torch.device,
    ) -> None:
        super().__init__(delimiters, thinking_budget=0, forecast=forecast, boundaries=boundaries)
        self._slot_limits = limits
        dtype = torch.float32 if forecast is None else forecast.dtype
        self.predictions = self.by_slot = SlotPredictions(slots, device, dtype)
        self._reader = self._slot_reader = SlotReader(delimiters)
        self._warmth = torch.zeros(0, 1)
        self.keeps_log = False
        # vLLM's logits of a step are its processors' own.
        self.in_place = True
        self.tally: Tally | None = None
        #: Where the rows of this step end, in the count that ``thought_start`` is in.
        self.ends: int | torch.Tensor | None = None

    def count(self, counters: Sequence[Counters], device: torch.device) -> Tally:
        """Note how each close comes about, for requests whose end is told to ``counters``."""
        tally = Tally(self.delimiters, counters, self.by_slot, device)
        self.close_log = self.tally = tally  # type: ignore[assignment]
        self.keeps_log = True
        # What the model itself wanted is read after guidance.
        self.in_place = False
        return tally

    def step(self, rows: StepRows, scores: torch.Tensor) -> torch.Tensor:
        """Steered logits [B, V] of the ``rows`` with logits ``scores`` [B, V] float32; rows without a limit are the same
        bits."""
        limits: SlotRows = self._slot_limits.rows(rows.slots, rows.known)
        self.limits = self.steering.limits = limits  # type: ignore[assignment]
        self._warmth = limits.temperatures
        self.by_slot.slots = rows.slots
        self._slot_reader.given = rows.reading
        if self.tally is not None:
            self.tally.greedy = limits.greedy
        # A reading counts from each row's first token, `PrefixReader` by the columns of the batch.
        self.ends = rows.input_ids.shape[1] if rows.reading is None else rows.lengths
        if rows.reading is None:
            assert rows.lengths is not None
            assert rows.prompts is not None
            width = rows.input_ids.shape[1]
            self.prompt_length = width - (rows.lengths - rows.prompts)
            self._slot_reader.padding, self._slot_reader.salts = width - rows.lengths, limits.salts
        return self(rows.input_ids, scores)

    def _temperature(self, rows: int, device: torch.device) -> float | torch.Tensor:
        return self._warmth
