"""Budget Guidance as published (arXiv 2506.13752): the whole vocabulary is weighed by the Gamma length predictor.

For every next token v of the vocabulary, p(v | fits) is proportional to p(v) P(L <= b - t | v), with b - t the budget less
the tokens of the thought, at least 1, and log(L + 1) Gamma distributed (sections 3.2 and 3.3). As in the published code that
is done at the first token of the thought and after each line end, the temperature not applied to the predictor's factor.

What ``budgetctl.guidance`` departs in is not here: no candidates, no neutral close, no strength, no closing window, no guard
of the answer. The published code has no end at the budget; here the close is forced there, so that methods are compared at
the same budget. The published heads, two outputs for each vocabulary entry on a BERT encoder, are trained for no model that
is evaluated here; the Gamma parameters of each v are those of this project's predictor instead, the state's moved by the
token term for *every* v. The state's parameters alone would weigh all tokens alike, and change nothing. The published gates
on the parameters (a rate below 10, a shape of at most 1, a mode below 0.9 tokens) are bounds of those heads, and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from transformers import LogitsProcessor

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import EvalError
from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.method import Engine, Item, Setting
from budgetctl.evals.methods.forcing import budget_of
from budgetctl.evals.methods.single_call import answer_in_one_call
from budgetctl.forecast import LengthForecast
from budgetctl.state import thinking_state

#: Tokens of the vocabulary whose parameters are computed at once.
BLOCK = 8192

#: log P(L <= left | v), [B, V], from the model's logits [B, V] and [B] tokens left, the close among them.
VocabularyFit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def predictor_fit(forecast: LengthForecast) -> VocabularyFit:
    """By this project's predictor, with its token term for every token."""

    def fit(scores: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        outlook = forecast.outlook(scores)
        vocabulary = torch.arange(scores.shape[1], device=scores.device)
        # Its own bound is one more than it is given: it counts the close by itself.
        parts = [
            forecast.fit(outlook, block.expand(len(scores), -1), left - 1)[0]
            for block in vocabulary.split(BLOCK)
        ]
        return torch.cat(parts, 1)

    return fit


class PublishedGuidance(LogitsProcessor):
    """The published rule at a step; nothing at the others.

    Args:
        fit: of every token.
        delimiters: markers of the thought.
        thinking_budget: b, tokens.
        prompt_length: padded width of the prompt in tokens.
        line: [V] bool, tokens that end a line.
        temperature: of the sampling that follows, which divides what is returned.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        fit: VocabularyFit,
        delimiters: ThinkingDelimiters,
        thinking_budget: int,
        prompt_length: int,
        line: torch.Tensor,
        temperature: float = 1.0,
    ) -> None:
        self.fit = fit
        self.delimiters = delimiters
        self.thinking_budget = thinking_budget
        self.prompt_length = prompt_length
        self.line = line
        self.temperature = temperature

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Guided scores [B, V] for prefixes [B, T] and the model's own logits."""
        state = thinking_state(input_ids, self.delimiters, prompt_length=self.prompt_length)
        after_line = self.line.to(input_ids.device)[input_ids[:, -1]]
        rows = state.thinking & (state.at_start | after_line)
        if not bool(rows.any()):
            return scores
        left = (self.thinking_budget - state.used).clamp(min=1)
        # The model's own distribution, unwarmed, times the predictor's factor.
        guided = self.temperature * (scores + self.fit(scores, left).to(scores.dtype))
        return torch.where(rows[:, None], guided, scores)


class GammaPublished:
    """The published guidance up to the budget, and a hard cut there."""

    name = "gamma-published"
    takes: Literal["budget", "effort", "none"] = "budget"

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order, all in one batch.

        Raises:
            EvalError: the engine runs no processor of ours, or has no length predictor.
        """
        budget = budget_of(self.name, setting)
        loaded: Any = getattr(engine, "loaded", None)
        forecast = None if loaded is None else loaded.installation.forecast
        if forecast is None:
            raise EvalError(
                f"method {self.name!r} needs a length predictor in the process that decodes: expected the transformers engine "
                "with one; give a predictor"
            )
        fit = predictor_fit(forecast)
        temperature = 1.0 if seeds is None else float(getattr(engine, "temperature", 1.0))

        def processor(width: int) -> LogitsProcessor:
            return PublishedGuidance(
                fit, engine.delimiters, budget, width, loaded.boundaries.line, temperature
            )

        arguments: dict[str, Any] = {"hard_cut": budget, "processor": processor}
        return answer_in_one_call(self.name, engine, items, setting, seeds, max_new_tokens, **arguments)
