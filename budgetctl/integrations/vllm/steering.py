"""One controller for all requests of an engine: what is a constant of a request is read from its slot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from budgetctl.closing import Boundaries
from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.forecast import LengthForecast
from budgetctl.integrations.vllm.counters import Counters
from budgetctl.integrations.vllm.memory import SlotPredictions, SlotReader
from budgetctl.integrations.vllm.quiet_terms import QuietRows, QuietTerms
from budgetctl.integrations.vllm.slots import SlotLimits, SlotRows
from budgetctl.integrations.vllm.step_rows import StepRows
from budgetctl.integrations.vllm.tally import Tally
from budgetctl.integrations.vllm.thought_ending import ThoughtEnding
from budgetctl.kernels.host_reads import array_of
from budgetctl.limits import RowTensors
from budgetctl.prefix_reader import Reading


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
        self._ending = ThoughtEnding(delimiters.forced_end_ids[0], boundaries.spans)
        self.keeps_log = False
        # vLLM's logits of a step are its processors' own.
        self.in_place = True
        self.tally: Tally | None = None
        #: Number and type of the latest logits that the quiet step takes.
        self._taken: tuple[int, torch.dtype] | None = None
        #: Of the rows of the latest step, for those that follow; None where it told nothing.
        self.terms: QuietTerms | None = None
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
        self.terms = None
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

    def takes(self, logits: torch.Tensor) -> bool:
        """Whether quiet rows of logits [B, V] may be told apart."""
        rows, kind = logits.shape[0], logits.dtype
        if self._taken != (rows, kind):
            if self.quiet_step is None or not self.quiet_step.takes(logits):
                return False
            self._taken = rows, kind
        return True

    def quietly(self, rows: QuietRows, scores: torch.Tensor) -> torch.Tensor:
        """Steered logits [B, V] of the ``rows`` with logits ``scores`` [B, V]."""
        assert self.quiet_step is not None
        steered = self.quiet_step(scores, rows.left, rows.warmth, in_place=self.in_place)
        if min(rows.left) <= self._ending.most:
            self._ending(steered, rows.left)
        if self.tally is not None:
            self.by_slot.slots = rows.slots
            limits = self._slot_limits.rows(rows.slots, rows.known)
            self.tally.greedy = limits.greedy
            forced = torch.tensor([left == 0 for left in rows.left])
            keys = torch.ones_like(rows.slots)
            note = self.quiet_step.note(
                keys, scores, steered, forced, limits.temperatures, greedy=self.greedy
            )
            self.close_log.record(*note)
        return steered

    def _is_quiet(
        self,
        input_ids: torch.Tensor,
        scores: torch.Tensor,
        reading: Reading,
        limits: RowTensors,
        left: torch.Tensor,
        window: torch.Tensor,
        caps: torch.Tensor,
    ) -> bool:
        self.terms = None
        if not self.takes(scores):
            return False
        assert self.quiet_step is not None
        assert self.boundaries is not None
        state = reading.state
        finished, limited = array_of(state.finished), array_of(limits.limited)
        thoughts = self.quiet_step.rows(input_ids, state, limits)
        margin = self.quiet_step.margin(window, self.boundaries.spans)
        answers = array_of(state.closed) & limited & ~finished
        lasting = thoughts
        if self.limits.budgets.needs_prediction:
            # A length that is not known is derived from the logits at each step, in an answer too.
            known = np.isinf(array_of(limits.fractions)) | self.by_slot.known(reading.start_key)
            lasting, answers = thoughts & known, answers & known
        self.terms = QuietTerms(
            lasting,
            array_of(left),
            array_of(state.used),
            array_of(window),
            margin,
            inside=array_of(reading.fence_marks) % 2 == 1,
            capped=array_of(caps) - array_of(state.used),
            room=array_of(limits.room) - array_of(state.generated),
            answers=answers,
            passes=finished | ~(array_of(state.thinking) | limited),
            finished=finished,
        )
        quiet = thoughts & (array_of(left) > margin)
        return np.count_nonzero(quiet) == len(quiet)

    def _temperature(self, rows: int, device: torch.device) -> float | torch.Tensor:
        return self._warmth
