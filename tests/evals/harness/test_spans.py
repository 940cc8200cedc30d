"""Spans of tokens as spans of characters."""

from __future__ import annotations

from transformers import AutoTokenizer

from budgetctl.evals.harness.spans import character_spans
from budgetctl.reasoner.load import WEIGHTS

TOKENIZER = AutoTokenizer.from_pretrained(WEIGHTS)


class Bytes:
    """A token a byte."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_a_span_is_the_text_of_its_tokens() -> None:
    ids = TOKENIZER.encode("turn right: 3 + 4 = 7", add_special_tokens=False)
    text = TOKENIZER.decode(ids)
    for start in range(len(ids)):
        ((first, last),) = character_spans(TOKENIZER, ids, [(start, len(ids))])
        assert text[first:last] == text[len(TOKENIZER.decode(ids[:start])) :]


def test_a_character_of_several_tokens_counts_to_the_last_of_them() -> None:
    ids = list("a\N{GRINNING FACE}b".encode())
    spans = [(0, 1), (1, 3), (3, 5), (5, 6)]
    assert character_spans(Bytes(), ids, spans) == ((0, 1), (1, 2), (2, 3))  # type: ignore[arg-type]


def test_no_spans() -> None:
    assert character_spans(TOKENIZER, [], ()) == ()
