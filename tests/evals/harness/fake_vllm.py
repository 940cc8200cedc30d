"""What evaluations need of vLLM, done by transformers: requests by sampling parameters, log probabilities of all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from budgetctl.evals.harness.transformers_engine import TransformersEngine


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    seed: int | None = None
    extra_args: dict[str, Any] | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    detokenize: bool = True
    logprobs: int | None = None
    thinking_token_budget: int | None = None


class FakeLLM:
    """Answers as vLLM would if its noise were that of the transformers engine.

    Args:
        engine: that answers.
    """

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine = engine
        self.asked: list[SamplingParams] = []

    def get_tokenizer(self) -> Any:
        return self.engine.tokenizer

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], params: Sequence[SamplingParams], use_tqdm: bool
    ) -> list[Any]:
        self.asked += params
        ids = [given["prompt_token_ids"] for given in prompts]
        asks = params[0].logprobs is not None
        answers = self._next_tokens(ids, params) if asks else self._completed(ids, params)
        return [SimpleNamespace(outputs=[answer]) for answer in answers]

    @torch.no_grad()
    def _next_tokens(self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> list[Any]:
        answers = []
        for ids, one in zip(prompts, params, strict=True):
            assert (one.logprobs, one.max_tokens, one.extra_args) == (-1, 1, None)
            found = self.engine.model(torch.tensor([ids])).logits[0, -1].float().log_softmax(0).tolist()
            told = {token: SimpleNamespace(logprob=value) for token, value in enumerate(found)}
            answers.append(SimpleNamespace(token_ids=[found.index(max(found))], logprobs=[told]))
        return answers

    def _completed(self, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> list[Any]:
        first = params[0]
        cut = first.thinking_token_budget
        found = self.engine.generate(
            prompts,
            seeds=None if first.temperature == 0 else [one.seed or 0 for one in params],
            max_new_tokens=first.max_tokens,
            knobs=[one.extra_args or {} for one in params] if cut is None else None,
            # vLLM counts the line break that the template writes into the thought.
            hard_cut=None if cut is None else cut - len(self.engine.delimiters.lead_ids),
            stop_ids=[(token,) for token in first.stop_token_ids],
        )
        return [SimpleNamespace(token_ids=list(one.new_ids), logprobs=None) for one in found]
