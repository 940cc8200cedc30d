"""What an engine reads off while a model generates: the forecast at the thought's start, and steps that were changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, StoppingCriteria

from budgetctl.closing import probability_of
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.forecast import LengthForecast
from budgetctl.state import thinking_state


class StartForecast(LogitsProcessor):
    """Keeps what the length predictor says at the first token of each row's thought; changes nothing.

    Args:
        forecast: of the model.
        delimiters: markers of the thought.
        prompt_length: padded width of the prompt in tokens.
    """

    supports_continuous_batching = False

    def __init__(self, forecast: LengthForecast, delimiters: ThinkingDelimiters, prompt_length: int) -> None:
        self.forecast, self.delimiters, self.prompt_length = forecast, delimiters, prompt_length
        self._concentration: torch.Tensor | None = None
        self._rate: torch.Tensor | None = None
        self._natural: torch.Tensor | None = None
        self._done = False

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [B, V] as they came, for prefixes [B, T]; they have to be the model's own."""
        if self._done:
            return scores
        state = thinking_state(input_ids, self.delimiters, prompt_length=self.prompt_length)
        if bool(state.at_start.any()):
            outlook = self.forecast.outlook(scores)
            natural = self.forecast.natural_length(outlook)
            blank = torch.full_like(natural, torch.nan)
            kept = [blank if old is None else old for old in (self._concentration, self._rate, self._natural)]
            self._concentration, self._rate, self._natural = (
                torch.where(state.at_start, new, old)
                for new, old in zip((outlook.concentration, outlook.rate, natural), kept, strict=True)
            )
        # A thought that the prompt has begun has no start to be asked at.
        self._done = bool((state.started | state.finished).all()) and not bool(
            (state.thinking & (state.used == 0) & ~state.at_start).any()
        )
        return scores

    def predicted(self, rows: int) -> list[float | None]:
        """Natural length in tokens for each row; None for a thought whose start was not seen."""
        if self._natural is None:
            return [None] * rows
        return [value if value == value else None for value in self._natural.tolist()]

    def cdf(self, thinking_tokens: Sequence[int]) -> list[float | None]:
        """P(length <= actual length in tokens) for each row, by the prediction at the thought's start."""
        if self._concentration is None or self._rate is None:
            return [None] * len(thinking_tokens)
        lengths = torch.tensor(thinking_tokens, device=self._rate.device)
        fit = self.forecast.predictor.fit_log_prob(self._concentration, self._rate, lengths).exp()
        return [value if value == value else None for value in fit.tolist()]


class Watched(LogitsProcessor):
    """Calls another processor and keeps, for each step and row, how it changed the choice of the token.

    Args:
        inner: the processor.
        temperature: of the sampling that follows.
        greedy: the likeliest token is taken.
    """

    supports_continuous_batching = False

    def __init__(self, inner: LogitsProcessor, temperature: float, greedy: bool) -> None:
        self.inner, self.temperature, self.greedy = inner, temperature, greedy
        self._changed: list[torch.Tensor] = []
        self._written: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] as the inner processor makes them."""
        after = self.inner(input_ids, scores)
        before_best, best = scores.argmax(1), after.argmax(1)
        single = (after > -torch.inf).sum(1) == 1
        if self.greedy:
            wanted = before_best == best
        else:
            wanted = probability_of(scores, best[:, None], self.temperature) >= 0.5
        self._changed.append(before_best != best)
        self._written.append(single & ~wanted)
        return after

    @property
    def changed(self) -> list[list[bool]]:
        """[steps][B], whether the likeliest token became another."""
        return [step.tolist() for step in self._changed]

    @property
    def written(self) -> list[list[bool]]:
        """[steps][B], whether a single token was left that the model had not wanted: not the likeliest (greedy), or with
        less than half of the probability (sampling)."""
        return [step.tolist() for step in self._written]


class StopAfter(StoppingCriteria):
    """Ends a row after any of some token sequences, all of it generated.

    Args:
        sequences: of at least one token each.
        prompt_length: padded width of the prompt in tokens.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], prompt_length: int) -> None:
        self.sequences = [tuple(sequence) for sequence in sequences]
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **others: object) -> torch.Tensor:
        """[B] bool."""
        ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for sequence in self.sequences:
            if input_ids.shape[1] - self.prompt_length >= len(sequence):
                wanted = torch.tensor(sequence, device=input_ids.device)
                ended |= (input_ids[:, -len(sequence) :] == wanted).all(1)
        return ended


def end_of(ids: Sequence[int], eos_ids: Sequence[int], sequences: Sequence[Sequence[int]]) -> int:
    """How many of the generated ``ids`` stand up to and with the first end of sequence or stop."""
    for at, token in enumerate(ids):
        if token in eos_ids:
            return at + 1
        for sequence in sequences:
            if at + 1 >= len(sequence) and tuple(ids[at + 1 - len(sequence) : at + 1]) == tuple(sequence):
                return at + 1
    return len(ids)
