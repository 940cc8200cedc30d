"""vLLM as an engine of evaluations: requests of one process, budgets kept by the processor that a server runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from budgetctl.errors import EvalError
from budgetctl.evals.harness.method import Completion, prompt_ids
from budgetctl.evals.harness.vllm_account import Account, Asked
from budgetctl.evals.harness.watching import end_of
from budgetctl.integrations.batching_support import REQUEST_KNOBS
from budgetctl.integrations.transformers import KNOBS
from budgetctl.integrations.vllm.served_model import ServedModel


class VLLMEngine:
    """Runs a vLLM ``LLM`` as :class:`~budgetctl.evals.harness.method.Engine` says.

    vLLM draws a request's noise from its seed, the same for every method and whatever else is in the batch; it is not the
    noise of the transformers engine. How a thought closed and what was predicted is found afterwards
    (:class:`~budgetctl.evals.harness.vllm_account.Account`). Which tokens were steered is not told.

    Args:
        llm: with budgetctl's processor, its own ``thinking_token_budget``, and log probabilities of the whole vocabulary.
        served: what the processor knows of the model.
        temperature: of sampling; greedy decoding has none.
    """

    def __init__(self, llm: Any, served: ServedModel, *, temperature: float = 1.0) -> None:
        self.llm = llm
        self.tokenizer = llm.get_tokenizer()
        self.delimiters = served.delimiters
        self.temperature = temperature
        self._context = served.context
        self._account = Account(served, self._log_probabilities)

    def prompt(self, question: str, *, prefill: str = "") -> list[int]:
        """Ids of the chat template's rendering of one question, ready for the thought; ``prefill`` is appended."""
        return prompt_ids(self.tokenizer, question, prefill)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
        knobs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        hard_cut: int | None = None,
        offsets: Sequence[int] | None = None,
        stop_ids: Sequence[Sequence[int]] = (),
    ) -> list[Completion]:
        """Continue each prompt; arguments as of the protocol. Noise that goes on after ``offsets`` is other noise than that
        of one call would have been. A hard cut is vLLM's own ``thinking_token_budget``.

        Raises:
            EvalError: a hard cut beside knobs or of a thought that has no open marker, a knob that vLLM cannot keep, or not
                one seed, offset or mapping of knobs a prompt.
            ValueError: by vLLM, for a prompt that its context does not hold, or a knob out of range.
        """
        rows = len(prompts)
        if not rows:
            return []
        asked = rows_of_knobs(knobs, rows)
        for name, given in (("seeds", seeds), ("offsets", offsets)):
            if given is not None and len(given) != rows:
                raise EvalError(
                    f"{len(given)} {name} for {rows} prompts: expected one a prompt; give as many"
                )
        names = sorted({name for row in asked for name in row})
        if hard_cut is not None and names:
            raise EvalError(
                f"hard_cut={hard_cut} beside {', '.join(names)}: expected a hard cut or knobs; drop one of the two"
            )
        params = [
            self._params(
                asked[row],
                None if seeds is None else seeds[row],
                0 if offsets is None else offsets[row],
                max_new_tokens,
                hard_cut,
                stop_ids,
            )
            for row in range(rows)
        ]
        started = time.perf_counter()
        outputs = self._ask(prompts, params)
        seconds = (time.perf_counter() - started) / rows
        found = []
        for row, output in enumerate(outputs):
            ids = list(output.token_ids)
            ids = ids[: end_of(ids, self.delimiters.eos_ids, stop_ids)]
            room = min(max_new_tokens, self._context - len(prompts[row]))
            found.append(Asked(tuple(prompts[row]), tuple(ids), asked[row], hard_cut, room))
        return self._account.completions(found, None if seeds is None else self.temperature, seconds)

    def _params(
        self,
        knobs: Mapping[str, Any],
        seed: int | None,
        offset: int,
        max_new_tokens: int,
        hard_cut: int | None,
        stop_ids: Sequence[Sequence[int]],
    ) -> Any:
        from vllm import SamplingParams

        cut: dict[str, int] = {}
        if hard_cut is not None:
            if self.delimiters.implicit:
                raise EvalError(
                    "a hard cut on vLLM of a model that opens no thought: expected an open marker, from which vLLM counts; "
                    "use the transformers engine"
                )
            # vLLM counts what the template writes after the open marker as thought.
            lead = len(self.delimiters.lead_ids) if self.delimiters.opened_by_template else 0
            cut = {"thinking_token_budget": hard_cut + lead}
        return SamplingParams(
            max_tokens=max_new_tokens,
            temperature=0.0 if seed is None else self.temperature,
            seed=None if seed is None else seed_after(seed, offset),
            extra_args=dict(knobs) or None,
            # What ends with several tokens is cut off afterwards.
            stop_token_ids=[ids[0] for ids in stop_ids if len(ids) == 1],
            detokenize=False,
            **cut,
        )

    def _ask(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return [output.outputs[0] for output in self.llm.generate(given, list(params), use_tqdm=False)]

    def _log_probabilities(self, prefixes: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """The model's own log probability of each next token after each prefix."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=-1, detokenize=False)
        return [
            {token: float(one.logprob) for token, one in output.logprobs[0].items()}
            for output in self._ask(prefixes, [params] * len(prefixes))
        ]


def seed_after(seed: int, offset: int) -> int:
    """The seed of a call that goes on after ``offset`` generated tokens: vLLM's noise cannot begin in its middle, and from
    its beginning it would repeat itself."""
    if not offset:
        return seed
    digest = hashlib.blake2b(f"{seed},{offset}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def rows_of_knobs(
    knobs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, rows: int
) -> list[dict[str, Any]]:
    """The knobs of each row that are set.

    Raises:
        EvalError: for a knob that is unknown or that vLLM cannot keep, or not one mapping a row.
    """
    given = [knobs or {}] * rows if knobs is None or isinstance(knobs, Mapping) else list(knobs)
    if len(given) != rows:
        raise EvalError(
            f"knobs of {len(given)} rows for {rows} prompts: expected one mapping a prompt; give as many"
        )
    for name in {name for row in given for name, value in row.items() if value is not None}:
        if name not in KNOBS:
            raise EvalError(f"unknown knob {name!r}: expected one of {', '.join(KNOBS)}; correct the name")
        if name not in REQUEST_KNOBS:
            raise EvalError(
                f"{name} on vLLM: expected one of {', '.join(REQUEST_KNOBS)}; use the transformers engine, or drop it"
            )
    return [{name: value for name, value in row.items() if value is not None} for row in given]
