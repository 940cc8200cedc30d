"""TRL's generation engines (vLLM, continuous batching) as the methods ask them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.training.rollouts import Logprobs


class Engine:
    """Samples with the engine's own noise, and tells each token's log-probability where the engine does.

    Every process has to make the same calls: with a vLLM server they are collective.

    Args:
        generate: TRL's ``_generate_single_turn``: prompts, images, fields and repeats to completions and
            log-probabilities.
        vllm: TRL's ``VLLMGeneration``; None for continuous batching, which can only be asked for whole completions.
        eos_ids: ids that end a row.
    """

    def __init__(self, generate: Callable[..., Any], vllm: Any, eos_ids: Tokens) -> None:
        self._generate = generate
        self._vllm = vllm
        self.eos_ids = eos_ids
        #: Of each call of ``extend``, the log-probabilities of its rows.
        self.logprobs: list[list[Logprobs | None]] = []

    def sample(
        self,
        prompts: Sequence[Tokens],
        repeats: int = 1,
        *,
        limit: int | None = None,
        thinking_budget: int | None = None,
        stop_ids: Sequence[int] = (),
    ) -> tuple[list[Tokens], list[Logprobs | None]]:
        """Completions of ``prompts``, in their order, and their log-probabilities.

        Args:
            prompts: in runs of ``repeats`` equal ones.
            limit: tokens of a completion; ``max_completion_length`` by default.
            thinking_budget: tokens at which budget forcing closes the thought.
            stop_ids: tokens that end a completion, beside the ends of sequence.
        """
        own = {} if self._vllm is None else self._vllm.generation_kwargs
        asked: dict[str, Any] = {}
        if limit is not None:
            asked["max_tokens"] = limit
        if stop_ids:
            asked["stop_token_ids"] = [*(own.get("stop_token_ids") or ()), *stop_ids]
        if thinking_budget is not None:
            # In colocate mode TRL makes SamplingParams of them; a server gets them as fields of the request.
            name = "extra_args" if self._vllm.mode == "colocate" else "vllm_xargs"
            asked[name] = {**(own.get(name) or {}), "thinking_budget": thinking_budget}
        with self._asking(asked):
            completions, logprobs = self._generate([list(p) for p in prompts], None, {}, repeats)
        known: list[Logprobs | None] = [None] * len(completions)
        if logprobs is not None:
            known = [tuple(row) for row in logprobs]
        return [tuple(completion) for completion in completions], known

    def extend(
        self,
        prefixes: Sequence[Tokens],
        seeds: Sequence[int],
        limits: Sequence[int],
        stops: Sequence[Tokens] = (),
    ) -> list[Tokens]:
        """New tokens of each row, as ``RowSampler.extend`` has it, but for the ``seeds``, which are not used.

        All rows are sampled to the highest limit and then cut, which leaves a sample of each row's own limit.
        """
        single = [stop[0] for stop in stops if len(stop) == 1]
        drawn, logprobs = self.sample(prefixes, limit=max(1, *limits), stop_ids=single)
        ends = [_end(row, stops)[:limit] for row, limit in zip(drawn, limits, strict=True)]
        self.logprobs.append(
            [None if p is None else p[: len(row)] for p, row in zip(logprobs, ends, strict=True)]
        )
        return ends

    @contextmanager
    def _asking(self, settings: dict[str, Any]) -> Iterator[None]:
        if not settings:
            yield
            return
        own = self._vllm.generation_kwargs
        self._vllm.generation_kwargs = {**own, **settings}
        try:
            yield
        finally:
            self._vllm.generation_kwargs = own


def _end(tokens: Tokens, stops: Sequence[Tokens]) -> Tokens:
    """Up to and with the first stop."""
    for at in range(1, len(tokens) + 1):
        if any(tokens[max(at - len(stop), 0) : at] == stop for stop in stops):
            return tokens[:at]
    return tokens


@contextmanager
def vllm_options(options: dict[str, Any]) -> Iterator[None]:
    """While it lasts, TRL makes its vLLM engine with these arguments beside its own, which has no option for them."""
    if not options:
        yield
        return
    from trl.generation import vllm_generation

    make = vllm_generation.LLM
    vllm_generation.LLM = lambda *given, **named: make(*given, **(named | options))
    try:
        yield
    finally:
        vllm_generation.LLM = make


def budget_forcing(delimiters: ThinkingDelimiters) -> type[Any]:
    """vLLM's processor that closes thoughts with these markers.

    Raises:
        ImportError: when vLLM is not installed.
    """
    from budgetctl.integrations.vllm import BudgetForcingLogitsProcessor

    return type("BudgetForcing", (BudgetForcingLogitsProcessor,), {"delimiters": delimiters})
