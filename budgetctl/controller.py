"""``BudgetController``: a logits processor that makes the thought end inside its budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessor

from budgetctl.budget import NO_CAP, RowBudgets, as_list, tokens_left
from budgetctl.checks import check_temperature
from budgetctl.close_record import CloseNote, note_close
from budgetctl.closing import Boundaries, closing_window, ends_early, fold_end_of_sequence, next_marker_ids
from budgetctl.compiled_step import compile_once, covers, read_compiled, tail_of
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetError
from budgetctl.exit_probe import ExitProbe
from budgetctl.extension import Extension
from budgetctl.forecast import LengthForecast
from budgetctl.kernels.host_reads import array_of
from budgetctl.leak_guard import guard_answer
from budgetctl.ledger import CloseLog, PredictionTable
from budgetctl.limits import RowLimits, RowTensors, repeat_to
from budgetctl.minimum import Minimum
from budgetctl.on_device import but_not, constant, may_hold
from budgetctl.phrases import check_phrase
from budgetctl.predicted_caps import ForecastOfStep, caps_at_step, predicted_length, share_of
from budgetctl.prefix_hash import hash_of, prefix_totals
from budgetctl.prefix_reader import PrefixReader, Reading
from budgetctl.quiet_step import QuietStep
from budgetctl.raw_logits import RawLogits
from budgetctl.score_edits import force_tokens
from budgetctl.state import thinking_state
from budgetctl.steering import Steering

if TYPE_CHECKING:
    from budgetctl.kv.coupling import KVCoupling
    from budgetctl.plan.enforce import StepGuide, StepNow
    from budgetctl.plan.note_guide import NoteGuide


class BudgetController(LogitsProcessor):
    """Steers the thinking phase of every row into its budget and closes the thought where steering was not enough.

    What it does at a step is a function of the row's token prefix and its logits, so it is right in every decoding
    mode that calls logits processors. Rows without any limit are returned bit for bit.

    Args:
        delimiters: open and close markers of this tokenizer.
        effort: level name or number in (0, 1]; needs ``forecast``.
        thinking_budget: absolute cap in thinking tokens.
        forecast: the remaining-length forecast; without it nothing is steered, thoughts are closed at a line or
            sentence end near the budget's end and at the latest when it is spent.
        boundaries: line and sentence ends by token; without it there is no closing window.
        prompt_length: padded width of the prompt in tokens; derived from the chat template when None.
        max_new_tokens: limit of the generation, from which ``answer_reserve`` tokens are kept for the answer.
        answer_reserve: tokens; by default a quarter of ``max_new_tokens``, at most 256.
        min_thinking_tokens: the thought is not closed before this many tokens.
        thinking_target: the thought aims at this many tokens, with both ends held.
        target_tolerance: tokens around the target that are as good; by default a tenth of it, at least 1.
        extension: writes a phrase such as "Wait" where the thought would close too early.
        early_exit: ends the thought where the answer is already there; costs a host sync a step, and its probes.
        guidance_strength: overrides the predictor's default; 0 turns steering off.
        guided_steps: ``every`` step, only the first token of a ``line``, or only the ``first`` token of the thought.
        temperature: of the sampling that follows; guidance acts on the sampled distribution alike at any value. For
            greedy decoding give :data:`budgetctl.guidance.GREEDY_TEMPERATURE`.
        greedy: decoding takes the most likely token (only used to tell natural closes from steered ones).
        compiled: run the step by ``torch.compile`` where the host cannot look at values, on a GPU; the first step then
            takes seconds. By default where the forecast is compiled.

    The knobs from ``effort`` to ``target_tolerance`` and ``temperature`` are one value for all prompts or a sequence
    with one a prompt; ``prompt_length`` is one width or an int64 tensor with one a row.

    Raises:
        BudgetError: for values out of range, contradictions, an extension that would end the thought, or a relative effort
            without a forecast.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        delimiters: ThinkingDelimiters,
        *,
        effort: object = None,
        thinking_budget: object = None,
        forecast: LengthForecast | None = None,
        boundaries: Boundaries | None = None,
        prompt_length: int | torch.Tensor | None = None,
        max_new_tokens: object = None,
        answer_reserve: object = None,
        min_thinking_tokens: object = None,
        thinking_target: object = None,
        target_tolerance: object = None,
        extension: Extension | None = None,
        early_exit: ExitProbe | None = None,
        guidance_strength: float | None = None,
        guided_steps: str = "every",
        temperature: float | Sequence[float] | torch.Tensor = 1.0,
        greedy: bool = False,
        compiled: bool | None = None,
    ) -> None:
        self.limits = RowLimits.build(
            effort=effort,
            thinking_budget=thinking_budget,
            min_thinking_tokens=min_thinking_tokens,
            thinking_target=thinking_target,
            target_tolerance=target_tolerance,
            max_new_tokens=max_new_tokens,
            answer_reserve=answer_reserve,
            close_tokens=len(delimiters.forced_end_ids),
        )
        if self.budgets.needs_prediction and forecast is None:
            raise BudgetError(
                "an effort that is a fraction of the predicted length needs a length predictor and none is installed: "
                "pass predictor=... to install, or give thinking_budget=N instead"
            )
        if extension is not None:
            check_phrase(extension.phrase_ids, delimiters, "the extension phrase")
        self.steering = Steering(forecast, self.limits, guidance_strength, guided_steps)
        self.delimiters = delimiters
        self.forecast = forecast
        self.boundaries = boundaries
        self.prompt_length = prompt_length
        self.extension = extension
        self.early_exit = early_exit
        self.temperature = temperature
        self.greedy = greedy
        self.compiled = self.steering.compiled is not None if compiled is None else compiled
        #: Keeps the model's own logits where other processors come before this one.
        self.raw: RawLogits | None = None
        #: Whether the logits of a step may be written to; what was given is gone then.
        self.in_place = False
        #: Whether no other processor comes before this one, so that it gets the model's own logits.
        self.first = False
        #: What the latest call returned, for a processor further down that finds every token banned.
        self.latest: torch.Tensor | None = None
        #: Whether ``latest`` is kept, as a copy that nobody writes to.
        self.keeps_latest = False
        #: Keeps the thinking budget and the KV budget in step, where there is one.
        self.kv: KVCoupling | None = None
        #: Holds the thought to the steps of a plan, where there is one.
        self.steps: StepGuide | None = None
        #: Writes into the thought what is left of its budgets, where that was asked for.
        self.notes: NoteGuide | None = None
        if not self.idle:
            for value in as_list(temperature):
                check_temperature(value)
        self._reader = PrefixReader(delimiters)
        compiled = self.steering.compiled is not None or (self.strength > 0 and guided_steps != "every")
        #: What is done at steps with nothing but guidance to do; None where there is always more.
        self.quiet_step = None if compiled else QuietStep(delimiters, forecast, self.strength)
        self._temperatures: dict[tuple[int, torch.device], torch.Tensor] = {}
        self.predictions = PredictionTable()
        self.close_log = CloseLog()
        #: Whether it is noted for a report how each close came about.
        self.keeps_log = True

    @property
    def strength(self) -> float:
        """Guidance strength; 0 when nothing is steered."""
        return self.steering.strength

    @property
    def budgets(self) -> RowBudgets:
        return self.limits.budgets

    @property
    def idle(self) -> bool:
        """Whether nothing was asked for, so that every call returns its scores as they came."""
        asked = any(part is not None for part in (self.extension, self.early_exit, self.steps, self.notes))
        return self.limits.idle and not asked and (self.kv is None or self.kv.max_loss is None)

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Steered logits [B, V] for prefixes [B, T] and logits [B, V], which are not written to."""
        self.latest = None
        if self.idle and (self.kv is None or not self.kv.due(input_ids.shape[1])):
            return scores
        rows, device = scores.shape[0], scores.device
        if self.boundaries is not None and self.boundaries.line.device != device:
            self.boundaries = self.boundaries.to(device)
        spans = self.boundaries.spans if self.boundaries is not None else None
        temperature = self._temperature(rows, device)
        limits = self.limits.on(rows, device)
        limited = limits.limited
        if self.extension is not None or self.early_exit is not None:
            limited = torch.ones_like(limited)
        whole = self.compiled and covers(device)
        if whole and self.prompt_length is not None:
            reading = read_compiled(input_ids, self.delimiters, self.prompt_length, spans)
        else:
            reading = self._reader.read(input_ids, self.prompt_length, spans)
        forecast = None
        if self.forecast is not None:
            raw = scores if self.raw is None else self.raw.take(scores)
            own = self.first or self.raw is not None
            forecast = ForecastOfStep(self.forecast, raw, own_logits=own, compiled=whole)
        caps = caps_at_step(self.limits, limits, reading, forecast, self.predictions)
        if self.kv is not None:
            caps = self.kv.observe(input_ids.shape[1], reading.state, caps, limits, forecast)
            if self.idle:
                return scores
            if self.kv.caps is not None:
                limited = limited | (self.kv.caps < NO_CAP)
        step: Callable[..., Any] = BudgetController._edit
        if whole and self.early_exit is None and self.steps is None and self.notes is None:
            step = compile_once(step)
            if self.extension is None:
                input_ids = tail_of(input_ids, self.delimiters, spans)
            else:  # which counts its phrases in the whole row
                torch._dynamo.maybe_mark_dynamic(input_ids, 1)
        result, note = step(self, input_ids, scores, reading, forecast, limits, limited, caps, temperature)
        if note is not None:
            self.close_log.record(*note)
        if self.keeps_latest:
            self.latest = result.clone()
        return result

    def _edit(
        self,
        input_ids: torch.Tensor,
        scores: torch.Tensor,
        reading: Reading,
        forecast: ForecastOfStep | None,
        limits: RowTensors,
        limited: torch.Tensor,
        caps: torch.Tensor,
        temperature: float | torch.Tensor,
    ) -> tuple[torch.Tensor, CloseNote | None]:
        """Steered logits [B, V] of rows whose reading and thinking budgets ``caps`` [B] are known, and what is noted of the
        step. It keeps nothing, so that it can be compiled."""
        state, device = reading.state, scores.device
        window = closing_window(caps, limits.room) if self.boundaries is not None else torch.zeros_like(caps)
        left = tokens_left(state.used, caps, state.generated, limits.room)
        now = None
        if self.steps is not None:
            now = self.steps.now(input_ids, reading, left)
            limited = limited | now.planned
        if self.notes is not None:
            limited = limited | self.notes.on(len(scores), device).noted

        if self._is_quiet(input_ids, scores, reading, limits, left, window, caps):
            return self._quietly(scores, reading, forecast, limits, left, temperature)
        result, note = scores, None
        if may_hold(state.thinking & limited) or (self.limits.has_minimum and may_hold(state.thinking)):
            result, note = self._think(
                input_ids, scores, reading, forecast, limits, limited, caps, left, window, now, temperature
            )
        answering = but_not(limited, state.thinking | state.finished)
        if may_hold(answering):
            room = limits.room - state.generated
            own = self.in_place or result is not scores
            result = guard_answer(
                result, input_ids, state, self.delimiters, answering, left, window, room, in_place=own
            )
        return result, note

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
        """Whether all rows are known to be in the middle of their thoughts."""
        more = (self.extension, self.early_exit, self.steps, self.notes, self.kv)
        if self.quiet_step is None or self.boundaries is None or any(part is not None for part in more):
            return False
        if not self.quiet_step.takes(scores):
            return False
        rows = self.quiet_step.rows(input_ids, reading.state, limits)
        rows &= array_of(left) > self.quiet_step.margin(window, self.boundaries.spans)
        return np.count_nonzero(rows) == len(rows)

    def _quietly(
        self,
        scores: torch.Tensor,
        reading: Reading,
        forecast: ForecastOfStep | None,
        limits: RowTensors,
        left: torch.Tensor,
        temperature: float | torch.Tensor,
    ) -> tuple[torch.Tensor, CloseNote | None]:
        """Scores [B, V] of rows that are all in the middle of their thoughts, and what is noted of it."""
        assert self.quiet_step is not None
        result = self.quiet_step(
            scores,
            array_of(left),
            self.quiet_step.warmth(temperature, len(scores)),
            None if forecast is None else forecast.scores,
            in_place=self.in_place,
        )
        if not self.keeps_log:
            return result, None
        keys, forced = reading.total ^ limits.salt, torch.zeros_like(reading.state.thinking)
        return result, self.quiet_step.note(keys, scores, result, forced, temperature, greedy=self.greedy)

    def _think(
        self,
        input_ids: torch.Tensor,
        scores: torch.Tensor,
        reading: Reading,
        forecast: ForecastOfStep | None,
        limits: RowTensors,
        limited: torch.Tensor,
        caps: torch.Tensor,
        left: torch.Tensor,
        window: torch.Tensor,
        now: StepNow | None,
        temperature: float | torch.Tensor,
    ) -> tuple[torch.Tensor, CloseNote | None]:
        """Scores [B, V] in which the rows that are inside a thought are steered, and closed where it is time; and what is
        noted of it."""
        state, device = reading.state, scores.device
        active = state.thinking & limited
        spent = active & (left == 0)
        ends = self.delimiters.all_ends
        closing_ids, completes = next_marker_ids(input_ids, state.used, ends)
        # A half-written close is gone on with.
        forced_ids = constant(self.delimiters.forced_end_ids, device)[state.close_progress]
        steered, state_fit = scores, None
        aim = unbroken = left
        if now is not None and self.steps is not None:
            unbroken = self.steps.unbroken(now, left)
            if forecast is not None:
                natural = predicted_length(reading, forecast, self.predictions)
                aim = self.steps.aim(now, left, natural)
        if forecast is not None:
            steered, state_fit = self.steering(
                input_ids,
                scores,
                state,
                forecast,
                active=active,
                near=active & (left <= window),
                left=aim,
                minimum=limits.minimum,
                closing_ids=closing_ids,
                boundaries=self.boundaries,
                temperature=temperature,
                in_place=self.in_place,
            )
        unspent = open_ended = but_not(active, spent)
        foldable, minimum = active, None
        if self.limits.has_minimum:
            minimum = Minimum.of(state, limits.minimum, spent, ends, completes)
            open_ended = open_ended & minimum.allows(closing_ids, forced_ids)
            foldable = active & ~minimum.too_short
        if self.extension is not None:
            extended = self.extension.due(input_ids, state, limits.minimum, left) & limited
            open_ended = open_ended & ~extended
            foldable = foldable | (active & extended)
        eos_ids = tuple(token for token in self.delimiters.eos_ids if token < scores.shape[1])
        own = self.in_place or steered is not scores
        steered = fold_end_of_sequence(steered, foldable, eos_ids, forced_ids, temperature, in_place=own)
        if self.extension is not None:
            steered = self.extension.apply(steered, input_ids, state, extended, closing_ids, temperature)
        if minimum is not None:
            last = active & (caps - state.used == 1)
            steered = minimum.hold(
                steered, input_ids, state, ends, last, caps, closing_ids, forced_ids, eos_ids, temperature
            )
        if self.boundaries is None:
            early = torch.zeros_like(active)
        else:
            size = len(self.delimiters.forced_end_ids)
            early = ends_early(self.boundaries, size, input_ids, state, open_ended, state_fit, left, window)
        inside = None
        if self.boundaries is not None and self.boundaries.spans is not None:
            inside = (reading.fence_marks % 2 == 1) & active
            own = self.in_place or steered is not scores
            steered = self.boundaries.spans.keep_whole(
                steered, input_ids, unspent, inside, unbroken, in_place=own
            )
            early = but_not(early, inside)
        whole = active if inside is None else but_not(active, inside)
        note = None
        if self.notes is not None and self.boundaries is not None:
            note = self.notes.now(input_ids, reading, now, whole, left, self.boundaries)
            early = early & ~note.begun
            open_ended = open_ended & ~note.begun
        exits = None
        if self.early_exit is not None:
            exits = self.early_exit(input_ids, open_ended if inside is None else open_ended & ~inside, state)
            early = early | exits
        forced = spent | early
        free = but_not(whole, forced)
        if note is not None:
            steered = force_tokens(steered, free & (note.begun | note.due), note.token)
            free = free & ~note.begun
        if now is not None and self.steps is not None and self.boundaries is not None:
            steered = self.steps.headings(
                steered, scores, input_ids, reading, now, free, left, self.boundaries, temperature
            )
        close = None
        if self.keeps_log:
            noted = active if minimum is None else active | minimum.too_short
            close = note_close(
                torch.where(noted, reading.total ^ limits.salt, 0),
                scores,
                steered,
                closing_ids,
                forced,
                temperature,
                exits,
                greedy=self.greedy,
            )
        own = self.in_place or steered is not scores
        return force_tokens(steered, forced, forced_ids, in_place=own), close

    def _temperature(self, rows: int, device: torch.device) -> float | torch.Tensor:
        """A number, or [rows, 1]."""
        if isinstance(self.temperature, int | float):
            return self.temperature
        values = self._temperatures.get((rows, device))
        if values is None:
            given = torch.as_tensor(self.temperature, dtype=torch.float32)
            values = self._temperatures[rows, device] = repeat_to(given, rows, device)[:, None]
        return values

    def account(
        self, sequences: torch.Tensor, prompt_length: int
    ) -> tuple[list[int], list[float | None], list[list[int]]]:
        """Of generated ``sequences`` [B, T]: thinking budget (tokens), predicted length (None if none was made), and
        for each of its prefixes the key under which the close log keeps it (host sync)."""
        state = thinking_state(sequences, self.delimiters, prompt_length=prompt_length)
        totals = torch.nn.functional.pad(prefix_totals(sequences), (1, 0))
        start = hash_of(totals.gather(1, state.thought_start[:, None]).squeeze(1), state.thought_start)
        rows = self.limits.on(sequences.shape[0], sequences.device)
        dtype = self.forecast.dtype if self.forecast is not None else rows.fractions.dtype
        predicted = self.predictions.lookup(start, torch.full_like(rows.fractions, torch.nan, dtype=dtype))
        share = share_of(predicted.nan_to_num(), rows.fractions, rows.minimum)
        budgets = torch.where(predicted.isfinite(), torch.minimum(rows.caps, share), rows.caps)
        if self.kv is not None and self.kv.caps is not None:
            budgets = torch.minimum(budgets, self.kv.caps.to(budgets.device))
        lengths = [value if value == value else None for value in predicted.tolist()]
        return budgets.tolist(), lengths, (totals ^ rows.salt[:, None]).tolist()
