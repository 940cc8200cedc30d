"""An engine whose model says what a script tells it to, over the embedded reasoner's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters, find_delimiters
from budgetctl.evals.harness.method import Completion, Item
from budgetctl.reasoner.load import WEIGHTS
from budgetctl.segments import split_sequence
from budgetctl.spelling import encode
from budgetctl.state import thinking_state

EOS = "<|im_end|>"


@lru_cache(maxsize=1)
def vocabulary() -> tuple[PreTrainedTokenizerBase, ThinkingDelimiters]:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    return tokenizer, find_delimiters(tokenizer)


class ScriptedEngine:
    """``reply`` gets the text of a prompt and gives what the model would write after it; calls are kept."""

    def __init__(self, reply: Callable[[str], str], extra: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self.delimiters = vocabulary()
        self.reply = reply
        self.extra = dict(extra or {})
        self.calls: list[dict[str, Any]] = []

    def ids(self, text: str) -> list[int]:
        return list(encode(self.tokenizer, text))

    def prompt(self, question: str, *, prefill: str = "") -> list[int]:
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        return self.ids(str(text) + prefill)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
        knobs: Any = None,
        hard_cut: int | None = None,
        offsets: Sequence[int] | None = None,
        stop_ids: Sequence[Sequence[int]] = (),
    ) -> list[Completion]:
        call = {"prompts": [list(p) for p in prompts], "seeds": seeds, "max_new_tokens": max_new_tokens}
        self.calls.append({**call, "knobs": knobs, "hard_cut": hard_cut, "offsets": offsets})
        assert max_new_tokens > 0
        return [self._completion(list(prompt), max_new_tokens, stop_ids) for prompt in prompts]

    def _completion(self, prompt: list[int], limit: int, stop_ids: Sequence[Sequence[int]]) -> Completion:
        ids: list[int] = []
        ends = [*stop_ids, *((token,) for token in self.delimiters.eos_ids)]
        for token in self.ids(self.reply(self.tokenizer.decode(prompt)))[:limit]:
            ids.append(token)
            if any(tuple(ids[-len(end) :]) == tuple(end) for end in ends):
                break
        before = thinking_state(torch.tensor([prompt]), self.delimiters, prompt_length=len(prompt))
        parts = split_sequence([*prompt, *ids], len(prompt), self.delimiters)
        return Completion(
            new_ids=tuple(ids),
            thought=parts.thought[int(before.used) :],
            answer=parts.answer,
            close="none" if parts.close_span is None else "natural",
            leaked=parts.stray_markers > 0,
            thinking_budget=None,
            predicted_tokens=None,
            predicted_cdf=None,
            seconds=0.5,
            kv_bytes=100 + len(prompt),
            extra=self.extra,
        )


@pytest.fixture
def scripted() -> Callable[..., ScriptedEngine]:
    return ScriptedEngine


@pytest.fixture
def dial() -> Item:
    return Item("embedded", "d0", "A dial shows 6: turn -2. Where does it stop?", "4", 1, "embedded/dial")


@pytest.fixture
def following() -> Callable[[str], Callable[[str], str]]:
    """A model that writes ``text`` from the beginning of the thought on, whatever else was written in between."""

    def follow(text: str) -> Callable[[str], str]:
        def reply(prompt: str) -> str:
            written = prompt.rpartition("<think>\n")[2]
            return text[len(written) :] if text.startswith(written) else f" 4{EOS}"

        return reply

    return follow
