"""``BudgetController``: a logits processor that makes the thought end inside its budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from budgetctl.budget import NO_CAP, RowBudgets, tokens_left
from budgetctl.closing import (
    WINDOW_FIT,
    Boundaries,
    ban_tokens,
    closing_window,
    fold_end_of_sequence,
    force_tokens,
    next_marker_ids,
    probability_of,
)
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetError
from budgetctl.exit_probe import ExitProbe
from budgetctl.extension import Extension
from budgetctl.forecast import LengthForecast, Outlook
from budgetctl.leak_guard import guard_answer
from budgetctl.ledger import CloseLog, PredictionTable
from budgetctl.limits import RowLimits, repeat_to
from budgetctl.prefix_hash import hash_of, hash_prefixes, mix
from budgetctl.prefix_reader import PrefixReader, Reading
from budgetctl.raw_logits import RawLogits
from budgetctl.state import ThinkingState, thinking_state
from budgetctl.steering import Steering


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
        temperature: of the sampling that follows; guidance acts on the sampled distribution alike at any value.
        greedy: decoding takes the most likely token (only used to tell natural closes from steered ones).

    The knobs from ``effort`` to ``target_tolerance`` and ``temperature`` are one value for all prompts or a sequence
    with one a prompt; ``prompt_length`` is one width or an int64 tensor with one a row.

    Raises:
        BudgetError: for values out of range, contradictions, or a relative effort without a forecast.
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
        self.steering = Steering(forecast, self.limits, guidance_strength, guided_steps)
        self.delimiters = delimiters
        self.forecast = forecast
        self.boundaries = boundaries
        self.prompt_length = prompt_length
        self.extension = extension
        self.early_exit = early_exit
        self.temperature = temperature
        self.greedy = greedy
        #: Keeps the model's own logits where other processors come before this one.
        self.raw: RawLogits | None = None
        #: What the latest call returned, for a processor further down that finds every token banned.
        self.latest: torch.Tensor | None = None
        self._reader = PrefixReader(delimiters)
        self.predictions = PredictionTable()
        self.close_log = CloseLog()

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
        return self.limits.idle and self.extension is None and self.early_exit is None

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Steered logits [B, V] for prefixes [B, T] and logits [B, V] (a new tensor, same dtype)."""
        self.latest = None
        if self.idle:
            return scores
        rows, device = scores.shape[0], scores.device
        if self.boundaries is not None and self.boundaries.line.device != device:
            self.boundaries = self.boundaries.to(device)
        minimum = repeat_to(self.limits.minimum, rows, device)
        room = repeat_to(self.limits.room, rows, device)
        temperature = self._temperature(rows, device)
        spans = self.boundaries.spans if self.boundaries is not None else None
        reading = self._reader.read(input_ids, self.prompt_length, spans)
        state = reading.state
        outlook = None
        if self.forecast is not None:
            raw = scores if self.raw is None else self.raw.take(scores)
            outlook = self.forecast.outlook(raw, own_logits=self.raw is not None)
        caps, limited = self._limits(reading, scores, outlook, minimum)
        left = tokens_left(state.used, caps, state.generated, room)
        active = state.thinking & limited

        ends = self.delimiters.all_ends
        closing_ids, completes = next_marker_ids(input_ids, state.used, ends)
        forced_ids = self._forced_ids(state)
        spent = active & (left == 0)
        too_short = state.thinking & (state.used - state.close_progress < minimum) & ~spent
        # What a close of each spelling would leave of the thought: the tokens before it are no content then.
        content = state.used[:, None] - torch.tensor([len(end) - 1 for end in ends], device=device)
        too_early = completes & (content < minimum[:, None]) & (state.thinking & ~spent)[:, None]

        steered, state_fit = scores, None
        if outlook is not None:
            steered, state_fit = self.steering(
                input_ids,
                scores,
                state,
                outlook,
                active=active,
                left=left,
                minimum=minimum,
                closing_ids=closing_ids,
                boundaries=self.boundaries,
                temperature=temperature,
            )
        eos_ids = tuple(token for token in self.delimiters.eos_ids if token < scores.shape[1])
        extended = torch.zeros_like(active)
        if self.extension is not None:
            extended = self.extension.due(input_ids, state, minimum, left) & limited
        foldable = active & (~too_short | extended)
        steered = fold_end_of_sequence(steered, foldable, eos_ids, forced_ids, temperature)
        if self.extension is not None:
            steered = self.extension.apply(steered, input_ids, state, extended, closing_ids, temperature)
        steered = ban_tokens(steered, closing_ids, too_early)
        steered = ban_tokens(steered, *_columns(eos_ids, too_short))
        window = closing_window(caps, room) if self.boundaries is not None else torch.zeros_like(caps)
        early = active & ~too_short & ~extended & self._ends_early(input_ids, state, state_fit, left, window)
        if spans is not None:
            inside = (reading.fence_marks % 2 == 1) & active
            steered = steered.masked_fill(spans.forbidden(active & ~spent, inside, left), -torch.inf)
            early = early & ~inside
            steered = force_tokens(steered, *spans.fence_steps(input_ids, inside & ~spent, left))
        exits = None
        if self.early_exit is not None:
            may = active & ~too_short & ~extended & ~spent
            exits = self.early_exit(input_ids, may if spans is None else may & ~inside, state)
            early = early | exits
        forced = spent | early
        result = force_tokens(steered, forced, forced_ids)
        result = guard_answer(
            result, input_ids, state, self.delimiters, limited, left, window, state.generated >= room
        )
        self._record(
            hash_of(reading.total, input_ids.shape[1]),
            scores,
            steered,
            closing_ids,
            forced,
            state.thinking & (limited | too_short),
            temperature,
            exits,
        )
        self.latest = result
        return result

    def _temperature(self, rows: int, device: torch.device) -> float | torch.Tensor:
        """A number, or [rows, 1]."""
        if isinstance(self.temperature, int | float):
            return self.temperature
        values = torch.as_tensor(self.temperature, dtype=torch.float32)
        return repeat_to(values, rows, device)[:, None]

    def _limits(
        self,
        reading: Reading,
        scores: torch.Tensor,
        outlook: Outlook | None,
        minimum: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Thinking budget in tokens and whether the row has any limit, [B] each."""
        rows, device, state = scores.shape[0], scores.device, reading.state
        caps, fractions = self.budgets.expanded(rows, device)
        limited = self.budgets.limited(rows, device) | repeat_to(self.limits.reserved, rows, device)
        if self.extension is not None or self.early_exit is not None:
            limited = torch.ones_like(limited)
        if outlook is None or self.forecast is None:
            return caps, limited
        natural = self.forecast.natural_length(outlook)
        key = reading.start_key
        # Constant logits are no forecast: some decoding modes call processors with a placeholder.
        real = scores.amax(1) > scores.amin(1)
        self.predictions.store(key, natural, state.at_start & real)
        predicted = self.predictions.lookup(key, state.used + natural)
        return torch.minimum(caps, _share_of(predicted, fractions, minimum)), limited

    def account(
        self, sequences: torch.Tensor, prompt_length: int
    ) -> tuple[list[int], list[float | None], list[list[int]]]:
        """Of generated ``sequences`` [B, T]: thinking budget (tokens), predicted length (None if none was made), and
        the prefix hashes of every column, under which the close log is kept (host sync)."""
        state = thinking_state(sequences, self.delimiters, prompt_length=prompt_length)
        keys = hash_prefixes(sequences)
        start = keys.gather(1, state.thought_start[:, None]).squeeze(1)
        caps, fractions = self.budgets.expanded(sequences.shape[0], sequences.device)
        dtype = self.forecast.dtype if self.forecast is not None else fractions.dtype
        predicted = self.predictions.lookup(start, torch.full_like(fractions, torch.nan, dtype=dtype))
        minimum = repeat_to(self.limits.minimum, sequences.shape[0], sequences.device)
        share = _share_of(predicted.nan_to_num(), fractions, minimum)
        budgets = torch.where(predicted.isfinite(), torch.minimum(caps, share), caps)
        lengths = [value if value == value else None for value in predicted.tolist()]
        keys = keys ^ self._request_salt(sequences.shape[0], sequences.device)[:, None]
        return budgets.tolist(), lengths, keys.tolist()

    def _request_salt(self, rows: int, device: torch.device) -> torch.Tensor:
        """[B] int64 that tells requests with one prompt and different limits apart."""
        caps, fractions = self.budgets.expanded(rows, device)
        return mix(mix(caps) ^ fractions.view(torch.int32).to(torch.int64))

    def _forced_ids(self, state: ThinkingState) -> torch.Tensor:
        """[B] the next token of the forced close; a half-written one is gone on with."""
        sequence = torch.tensor(self.delimiters.forced_end_ids, device=state.used.device)
        return sequence[state.close_progress]

    def _ends_early(
        self,
        input_ids: torch.Tensor,
        state: ThinkingState,
        state_fit: torch.Tensor | None,
        left: torch.Tensor,
        window: torch.Tensor,
    ) -> torch.Tensor:
        """[B] bool: in the window, at a line or sentence end, and not likely to end by itself in time; or a close that
        was begun there and is half-written."""
        if self.boundaries is None:
            return torch.zeros_like(state.thinking)
        early = (left <= window) & ~state.at_start & self.boundaries.at_end(input_ids)
        if state_fit is not None:
            early = early & (state_fit.exp() < WINDOW_FIT)
        for back in range(1, min(len(self.delimiters.forced_end_ids), input_ids.shape[1])):
            begun = (state.close_progress >= back) & (state.used > back) & (left + back <= window)
            early = early | (begun & self.boundaries.at_end(input_ids[:, :-back]))
        return early

    def _record(
        self,
        keys: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        closing_ids: torch.Tensor,
        forced: torch.Tensor,
        rows: torch.Tensor,
        temperature: float | torch.Tensor,
        exits: torch.Tensor | None,
    ) -> None:
        """Note under ``keys`` [B] how likely the close was, for the report."""
        wanted = probability_of(before, closing_ids, temperature)
        allowed = probability_of(after, closing_ids, temperature)
        preferred = (before.argmax(1, keepdim=True) == closing_ids).any(1)
        keys = keys ^ self._request_salt(before.shape[0], before.device)
        early = () if exits is None else (exits,)
        self.close_log.record(torch.where(rows, keys, 0), wanted, allowed, preferred, forced, *early)


def _share_of(predicted: torch.Tensor, fractions: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    """[B] int64 tokens: at least one and ``minimum`` [B], ``NO_CAP`` for an infinite fraction."""
    share = torch.where(fractions.isfinite(), fractions.to(predicted.dtype) * predicted, float(NO_CAP))
    return torch.maximum(share.round().clamp(1, NO_CAP).to(torch.int64), minimum)


def _columns(token_ids: tuple[int, ...], rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments of ``ban_tokens`` that ban ``token_ids`` in the rows of ``rows`` [B]."""
    ids = torch.tensor(token_ids, dtype=torch.int64, device=rows.device).expand(rows.shape[0], -1)
    return ids, rows[:, None].expand_as(ids)
