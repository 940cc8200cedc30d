"""Completions of the embedded tokenizer, spelled in text."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from budgetctl.training.completions import CompletionReader
from budgetctl.training.rewards.accuracy import AccuracyReward


@pytest.fixture(scope="session")
def reader(tokenizer: PreTrainedTokenizerFast) -> CompletionReader:
    return CompletionReader(tokenizer)


@pytest.fixture(scope="session")
def accuracy(reader: CompletionReader) -> AccuracyReward:
    return AccuracyReward(reader)


@pytest.fixture(scope="session")
def write(tokenizer: PreTrainedTokenizerFast) -> Callable[..., list[int]]:
    """Ids of a completion with a thought of ``thinking`` tokens (digits are tokens of their own)."""

    def make(thinking: int, answer: str | None = "Answer: 3", end: bool = True) -> list[int]:
        close = "" if answer is None else f"</think>\n\n{answer}"
        text = "7" * thinking + close + ("<|im_end|>" if end else "")
        return tokenizer.encode(text, add_special_tokens=False)

    return make
