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
        pairs = zip(prompts, params, strict=True)
        return [
            SimpleNamespace(outputs=[self._answer(given["prompt_token_ids"], one)]) for given, one in pairs
        ]

    @torch.no_grad()
    def _answer(self, ids: list[int], params: SamplingParams) -> Any:
        if params.logprobs is not None:
            assert (params.logprobs, params.max_tokens, params.extra_args) == (-1, 1, None)
            found = self.engine.model(torch.tensor([ids])).logits[0, -1].float().log_softmax(0).tolist()
            return SimpleNamespace(
                token_ids=[max(range(len(found)), key=found.__getitem__)],
                logprobs=[{token: SimpleNamespace(logprob=value) for token, value in enumerate(found)}],
            )
        cut = params.thinking_token_budget
        (completion,) = self.engine.generate(
            [ids],
            seeds=None if params.temperature == 0 else [params.seed or 0],
            max_new_tokens=params.max_tokens,
            knobs=params.extra_args,
            # vLLM counts the line break that the template writes into the thought.
            hard_cut=None if cut is None else cut - len(self.engine.delimiters.lead_ids),
            stop_ids=[(token,) for token in params.stop_token_ids],
        )
        return SimpleNamespace(token_ids=list(completion.new_ids), logprobs=None)
