"""Stop sequences of the server: however the text comes in pieces, the answer ends before the one that is complete first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.integrations.serve.stop import StopCutter

Texts = list[tuple[bool, str]]


def joined(texts: Texts, thinking: bool) -> str:
    return "".join(text for thought, text in texts if thought is thinking)


def expected(text: str, stops: list[str]) -> str:
    """By hand, a character at a time."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)].rstrip()
    return text


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(st.text("ab \n", max_size=4), max_size=8),
    stops=st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=4),
)
def test_pieces_do_not_matter(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    cutter = StopCutter(stops)
    shown = [part for piece in pieces for part in cutter.read([(False, piece)])]
    early = joined(shown, False)
    shown += cutter.read([], over=True)
    assert joined(shown, False) == expected(text, stops)
    assert cutter.found == any(stop in text for stop in stops)
    assert cutter.read([(False, "more"), (True, "more")], over=True) == ([] if cutter.found else MORE)
    if not stops:
        assert early == text


MORE: Texts = [(False, "more"), (True, "more")]


@pytest.mark.parametrize(
    ("texts", "stops", "answer"),
    [
        ([(True, "a stop b"), (False, "c stop d")], ["stop"], "c"),
        # What begins in an answer does not go on in a thought, nor the other way.
        ([(False, "a st"), (True, "op"), (False, "op b")], ["stop"], "a stop b"),
        ([(True, "st"), (False, "op b")], ["stop"], "op b"),
        ([(False, "stop")], ["stop"], ""),
        ([(False, "a st")], ["stop"], "a st"),
    ],
)
def test_thoughts_are_not_searched(texts: Texts, stops: list[str], answer: str) -> None:
    cutter = StopCutter(stops)
    shown = cutter.read(texts, over=True)
    assert joined(shown, False) == answer
    assert joined(shown, True) == joined(texts, True)
    assert all(text for _, text in shown)
