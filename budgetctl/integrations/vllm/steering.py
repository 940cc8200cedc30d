"""One controller for all requests of an engine: what is a constant of a request is read from its slot."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from budgetctl.closing import Boundaries
from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.forecast import LengthForecast
from budgetctl.integrations.vllm.memory import SlotPredictions, SlotReader
from budgetctl.integrations.vllm.slots import SlotLimits, SlotRows


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

    def step(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        prompts: torch.Tensor,
        slots: torch.Tensor,
        known: Iterable[int],
        scores: torch.Tensor,
    ) -> torch.Tensor:
        """Steered logits [B, V]; rows without a limit are the same bits.

        Args:
            input_ids: [B, T] int64, left-padded.
            lengths: [B] int64, tokens of each row.
            prompts: [B] int64, tokens of each row's prompt.
            slots: [B] int64.
            known: all slots that may be among them, on the host.
            scores: [B, V] float32 logits.
        """
        width = input_ids.shape[1]
        rows: SlotRows = self._slot_limits.rows(slots, known)
        self.limits = self.steering.limits = rows  # type: ignore[assignment]
        self._warmth = rows.temperatures
        self.prompt_length = width - (lengths - prompts)
        self.by_slot.slots = slots
        self._slot_reader.padding, self._slot_reader.salts = width - lengths, rows.salts
        return self(input_ids, scores)

    def _temperature(self, rows: int, device: torch.device) -> float | torch.Tensor:
        return self._warmth
