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
                for new, old in zip((*outlook.parameters, natural), kept, strict=True)
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
    """Calls another processor and keeps, for each step and row, whether it changed the likeliest token.

    Args:
        inner: the processor.
    """

    supports_continuous_batching = False

    def __init__(self, inner: LogitsProcessor) -> None:
        self.inner = inner
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] as the inner processor makes them."""
        after = self.inner(input_ids, scores)
        self._steps.append(self.noted(scores, after))
        return after

    def noted(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """[B] bool of one step, for scores [B, V] before and after the inner processor."""
        return before.argmax(1) != after.argmax(1)

    @property
    def steps(self) -> list[list[bool]]:
        """[steps][B], what was noted."""
        return [step.tolist() for step in self._steps]


class WatchedCut(Watched):
    """The same for a processor that writes tokens: whether it left a single one that the model had not wanted.

    That is one that was not the likeliest (greedy), or had less than half of the probability (sampling).

    Args:
        inner: the processor.
        temperature: of the sampling that follows; None for greedy decoding.
    """

    def __init__(self, inner: LogitsProcessor, temperature: float | None) -> None:
        super().__init__(inner)
        self.temperature = temperature

    def noted(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        best = after.argmax(1)
        if self.temperature is None:
            wanted = before.argmax(1) == best
        else:
            wanted = probability_of(before, best[:, None], self.temperature) >= 0.5
        return ((after > -torch.inf).sum(1) == 1) & ~wanted


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
