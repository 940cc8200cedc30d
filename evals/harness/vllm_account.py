"""What became of thoughts that vLLM wrote, which its replies do not tell: limits, forecasts, and how each closed.

The controller is a function of prefix and logits. So it is asked once more, outside the engine, at the few prefixes that
matter: the start of the thought, where its length is predicted, and the tokens of its close. vLLM is asked for the model's
own log probabilities there, which differ from logits by a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from budgetctl.controller import BudgetController
from budgetctl.evals.harness.method import Completion
from budgetctl.guidance import guided_temperature
from budgetctl.integrations.vllm.served_model import ServedModel
from budgetctl.segments import Segments, split_sequence
from budgetctl.state import thinking_state
from budgetctl.telemetry import report_sequences

#: For each prefix of token ids, the model's own log probabilities by token.
LogProbabilities = Callable[[Sequence[Sequence[int]]], list[dict[int, float]]]


@dataclass(frozen=True)
class Asked:
    """One finished request: ids of prompt and of what was generated, knobs that were set, hard cut in tokens or None, and
    the most new tokens that there was room for."""

    prompt: tuple[int, ...]
    new_ids: tuple[int, ...]
    knobs: Mapping[str, Any]
    hard_cut: int | None
    room: int

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.new_ids]


class Account:
    """Makes completions of finished requests.

    Args:
        served: the model.
        log_probabilities: of the model.
    """

    def __init__(self, served: ServedModel, log_probabilities: LogProbabilities) -> None:
        self._served = served
        self._log_probabilities = log_probabilities

    def completions(
        self, requests: Sequence[Asked], temperature: float | None, seconds: float
    ) -> list[Completion]:
        """One a request.

        Args:
            requests: that finished.
            temperature: of the sampling; None for greedy decoding.
            seconds: of each.
        """
        delimiters = self._served.delimiters
        parts = [split_sequence(one.ids, len(one.prompt), delimiters) for one in requests]
        starts = [self._start(one) for one in requests]
        wanted: dict[tuple[int, int], tuple[int, ...]] = {}
        for row, (one, part, start) in enumerate(zip(requests, parts, starts, strict=True)):
            columns = (
                list(range(*part.close_span))
                if part.close_span and (one.knobs or one.hard_cut is not None)
                else []
            )
            for column in ([] if start is None else [start]) + columns:
                wanted[row, column] = tuple(one.ids[:column])
        scores = dict(zip(wanted, self._scores(list(wanted.values())), strict=True))
        return [
            self._completion(
                one,
                part,
                start,
                {column: scores[at, column] for at, column in scores if at == row},
                temperature,
                seconds,
            )
            for row, (one, part, start) in enumerate(zip(requests, parts, starts, strict=True))
        ]

    def _start(self, one: Asked) -> int | None:
        """Length of the prefix at which the thought begins; None where no forecast is made of it."""
        state = thinking_state(
            torch.tensor([one.ids]), self._served.delimiters, prompt_length=len(one.prompt)
        )
        start = int(state.thought_start)
        known = self._served.forecast is not None and bool(state.started | state.finished)
        return start if known and len(one.prompt) <= start < len(one.ids) else None

    def _scores(self, prefixes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """[1, V] float32 a prefix; each prefix is asked for once."""
        distinct = list(dict.fromkeys(prefixes))
        known: dict[tuple[int, ...], torch.Tensor] = {}
        size = len(self._served.boundaries.line)
        for prefix, found in zip(
            distinct, self._log_probabilities(distinct) if distinct else [], strict=True
        ):
            row = torch.full((1, size), -torch.inf)
            row[0, torch.tensor(list(found))] = torch.tensor(list(found.values()))
            known[prefix] = row
        return [known[prefix] for prefix in prefixes]

    def _completion(
        self,
        one: Asked,
        part: Segments,
        start: int | None,
        scores: Mapping[int, torch.Tensor],
        temperature: float | None,
        seconds: float,
    ) -> Completion:
        thought = [column for column in part.columns if column >= len(one.prompt)]
        budget, close = one.hard_cut, "none" if part.close_span is None else "natural"
        if one.hard_cut is not None and part.close_span is not None:
            close = self._cut(one, part.close_span, len(thought), scores, temperature)
        elif one.knobs:
            budget, close = self._report(one, scores, temperature)
        predicted, cdf = None, None
        if start is not None and self._served.forecast is not None:
            forecast = self._served.forecast
            outlook = forecast.outlook(scores[start])
            predicted = float(forecast.natural_length(outlook))
            if close == "natural":
                length = torch.tensor([len(thought)])
                cdf = float(forecast.predictor.fit_log_prob(*outlook.parameters, length).exp())
        return Completion(
            new_ids=one.new_ids,
            thought=tuple(one.ids[column] for column in thought),
            answer=part.answer,
            close=close,
            leaked=part.stray_markers > 0,
            thinking_budget=budget,
            predicted_tokens=predicted,
            predicted_cdf=cdf,
            seconds=seconds,
            kv_bytes=None,
        )

    def _report(
        self, one: Asked, scores: Mapping[int, torch.Tensor], temperature: float | None
    ) -> tuple[int | None, str]:
        """The thinking budget in force, and how the thought closed."""
        controller = BudgetController(
            self._served.delimiters,
            **one.knobs,
            forecast=self._served.forecast,
            boundaries=self._served.boundaries,
            prompt_length=len(one.prompt),
            max_new_tokens=one.room,
            temperature=guided_temperature(temperature, temperature is not None),
            greedy=temperature is None,
        )
        ids = torch.tensor([one.ids])
        for column in sorted(scores):
            controller(ids[:, :column], scores[column])
        report = report_sequences(controller, ids, len(one.prompt))[0]
        return report.thinking_budget, report.close

    def _cut(
        self,
        one: Asked,
        span: tuple[int, int],
        used: int,
        scores: Mapping[int, torch.Tensor],
        temperature: float | None,
    ) -> str:
        """Natural if a token of the close, where the budget was spent, was the likeliest (greedy) or had half of the
        probability (sampling), and forced otherwise."""
        if one.hard_cut is None or used < one.hard_cut:
            return "natural"
        for column in range(*span):
            token = one.ids[column]
            if temperature is None:
                wanted = int(scores[column].argmax()) == token
            else:
                wanted = float((scores[column] / temperature).softmax(1)[0, token]) >= 0.5
            if not wanted:
                return "forced"
        return "natural"
