"""Phrases that the controller writes hold text alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from budgetctl.closing import with_transition
from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters, find_delimiters
from budgetctl.early_exit import EarlyExit
from budgetctl.errors import BudgetctlError, BudgetError, DelimiterError
from budgetctl.exit_probe import ExitProbe
from budgetctl.extension import Extension
from budgetctl.phrases import phrase_ids

EOS, THINK, CLOSE = 258, 261, 262
#: What a phrase may not hold, and what is said about it.
HELD = [
    ("So: </think>", "holds a marker of the thought"),
    ("<think> again", "holds a marker of the thought"),
    ("Done.<|im_end|>\n", "holds an end-of-sequence token"),
    ("<|im_end|>", "holds an end-of-sequence token"),
    (7, "is no text"),
    (None, "is no text"),
    (["a"], "is no text"),
]


@pytest.mark.parametrize(("phrase", "words"), HELD, ids=[repr(phrase) for phrase, _ in HELD])
def test_what_a_phrase_may_not_hold(phrase: Any, words: str, byte_tokenizer: Any) -> None:
    markers = find_delimiters(byte_tokenizer)

    def probe(**fields: Any) -> None:
        ExitProbe(SimpleNamespace(), byte_tokenizer, markers, EarlyExit(**fields))

    tries: dict[str, Callable[[], object]] = {
        "extension_phrase": lambda: phrase_ids(byte_tokenizer, markers, phrase, "extension_phrase"),
        "transition_phrase": lambda: with_transition(markers, byte_tokenizer, phrase),
        "early_exit answer_prompt": lambda: probe(answer_prompt=phrase),
    }
    if phrase is not None:
        tries["early_exit turn"] = lambda: probe(turn=phrase)
    for name, attempt in tries.items():
        with pytest.raises(BudgetctlError, match=f"^{name}=") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert isinstance(phrase, str) <= (words in str(caught.value))


def test_markers_are_found_by_their_tokens_too(byte_tokenizer: Any) -> None:
    """Where the texts of the markers are not known, and for what begins a tool call."""
    markers = replace(find_delimiters(byte_tokenizer), open_text="", close_text="")
    call = byte_tokenizer.encode("[call]")
    calling = replace(markers, tool_call_ids=(tuple(call),))
    assert phrase_ids(byte_tokenizer, markers, "x[call]", "p")[1:] == tuple(call)
    for given, phrase, words in (
        (markers, "a</think>", "marker of the thought"),
        (markers, "<think>b", "marker of the thought"),
        (calling, "x[call]y", "holds a tool call"),
    ):
        with pytest.raises(BudgetError, match=words):
            phrase_ids(byte_tokenizer, given, phrase, "p")


@pytest.mark.parametrize("ids", [(5, CLOSE), (THINK,), (EOS, 5)])
def test_an_extension_of_tokens_is_looked_at_by_the_controller(
    ids: tuple[int, ...], byte_tokenizer: Any
) -> None:
    with pytest.raises(BudgetError, match=r"^the extension phrase holds"):
        BudgetController(find_delimiters(byte_tokenizer), thinking_budget=9, extension=Extension(ids, 1))


def test_a_close_that_ends_the_sequence() -> None:
    with pytest.raises(DelimiterError, match=r"the close \[3, 4\] holds an end-of-sequence token of \[4\]"):
        ThinkingDelimiters((2,), ((3, 4),), (3, 4), eos_ids=(4,))


def test_plain_phrases_pass(byte_tokenizer: Any) -> None:
    markers = find_delimiters(byte_tokenizer)
    for phrase in ("Wait", " think ", "a < b", "", "\u4e2d\n"):
        assert phrase_ids(byte_tokenizer, markers, phrase, "p") == tuple(byte_tokenizer.encode(phrase))
