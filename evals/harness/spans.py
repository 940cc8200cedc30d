"""From positions of tokens to places in their text."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def character_spans(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], spans: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """[start, stop) characters of the decoded ``ids`` that [start, stop) of its tokens make, where they make any.

    A character of several tokens counts to the last of them.
    """
    text = tokenizer.decode(list(ids))

    def place(token: int) -> int:
        before = tokenizer.decode(list(ids[:token]))
        # An unfinished character decodes to a replacement, which the whole text has not at that place.
        while before and not text.startswith(before):
            before = before[:-1]
        return len(before)

    found = ((place(start), place(stop)) for start, stop in spans)
    return tuple((start, stop) for start, stop in found if start < stop)
