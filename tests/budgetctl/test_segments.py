"""A finished sequence taken apart, against the batched state and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.segments import split_sequence
from budgetctl.state import thinking_state

CASES = (
    "opened by the model",
    "opened by the template",
    "spelled by three tokens",
    "spelled, template",
    "closed by a phrase",
    "implicit",
)
PROMPT = [5, 7, 8, 9]


@settings(max_examples=500, deadline=None)
@given(
    case=st.sampled_from(CASES),
    opening=st.sampled_from([[], [10], [10, 2], [10, 2, 5], [10, 5, 12], [10, 5, 12, 13], [10, 11], [16]]),
    new=st.lists(st.sampled_from([1, 2, 4, 5, 6, 10, 11, 12, 13, 14, 15, 16, 17] + [5] * 6), max_size=14),
)
def test_counts_are_those_of_the_state(case: str, opening: list[int], new: list[int], markers: Any) -> None:
    prompt = PROMPT + opening
    parts = split_sequence(prompt + new, len(prompt), markers[case])
    state = thinking_state(torch.tensor([prompt + new]), markers[case], prompt_length=len(prompt))
    assert len(parts.thought) == int(state.used)
    assert parts.finished == bool(state.finished)
    if bool(state.closed) and parts.close_span is not None:
        assert len(parts.answer) == int(state.answer_tokens)
        assert parts.close_span[1] <= len(prompt) + len(new)
    assert (parts.close_span is not None) <= bool(state.closed)
    assert len(parts.thought) + len(parts.answer) <= len(prompt) + len(new)


@pytest.mark.parametrize(
    ("case", "opening", "new", "thought", "answer", "close", "stray"),
    [
        ("opened by the template", [10, 2], [5, 6, 11, 4, 4, 1, 0, 0], [5, 6], [4, 4], (2, 3), 0),
        ("opened by the template", [10, 2], [5, 6], [5, 6], [], None, 0),
        ("opened by the template", [10, 2], [11, 4], [], [4], (0, 1), 0),
        ("opened by the template", [10, 2], [5, 11, 4, 11, 4], [5], [4, 11, 4], (1, 2), 1),
        ("opened by the template", [10, 2], [5, 11, 4, 10, 6, 11, 3], [5, 10, 6], [3], (5, 6), 0),
        ("opened by the template", [10, 2], [5, 11, 4, 10, 6], [5, 10, 6], [4], None, 0),
        (
            "opened by the template",
            [10],
            [2, 5, 11],
            [5],
            [],
            (2, 3),
            0,
        ),  # the model wrote the template's line break
        ("opened by the template", [10, 2, 6], [5, 11], [6, 5], [], (1, 2), 0),
        ("opened by the model", [], [4, 10, 5, 11, 4], [5], [4], (3, 4), 0),
        ("opened by the model", [], [4, 4, 1], [], [4, 4], None, 0),
        ("spelled, template", [10], [5, 12, 13, 14, 4], [5], [4], (1, 4), 0),
        ("spelled, template", [10], [5, 15, 14, 4], [5], [4], (1, 3), 0),
        ("spelled, template", [10], [12, 13, 12, 13, 14], [12, 13], [], (2, 5), 0),
        ("spelled, template", [10, 5, 12], [13, 14, 4], [5], [4], (-1, 2), 0),  # begun in the prompt
        ("spelled, template", [10], [5, 15, 14, 16, 17, 6], [5, 16, 17, 6], [], None, 0),
        ("closed by a phrase", [10], [5, 2, 4, 11, 6], [5], [6], (1, 4), 0),
        ("closed by a phrase", [10], [5, 2, 11, 6], [5, 2], [6], (2, 3), 0),
        ("implicit", [], [5, 11, 4], [5], [4], (1, 2), 0),
    ],
)
def test_by_hand(
    case: str,
    opening: list[int],
    new: list[int],
    thought: list[int],
    answer: list[int],
    close: tuple[int, int] | None,
    stray: int,
    markers: Any,
) -> None:
    prompt = PROMPT + opening
    parts = split_sequence(prompt + new, len(prompt), markers[case])
    assert list(parts.thought) == thought
    assert list(parts.answer) == answer
    assert parts.close_span == (None if close is None else tuple(len(prompt) + c for c in close))
    assert parts.stray_markers == stray
    assert parts.finished == (1 in new)


def test_padding_before_the_prompt_is_no_matter(markers: Any) -> None:
    ids = [*PROMPT, 10, 2, 5, 11, 4, 1]
    plain = split_sequence(ids, 6, markers["opened by the template"])
    padded = split_sequence([0, 0, 0, *ids], 9, markers["opened by the template"])
    assert (padded.thought, padded.answer, padded.stray_markers) == (
        plain.thought,
        plain.answer,
        plain.stray_markers,
    )


def test_a_thought_closed_in_the_prompt_leaves_an_answer_only(markers: Any) -> None:
    parts = split_sequence([*PROMPT, 10, 2, 11, 4, 5, 1], 7, markers["opened by the template"])
    assert (parts.thought, parts.answer, parts.close_span) == ((), (4, 5), None)


def test_columns_are_those_of_the_thought(markers: Any) -> None:
    for new in ([5, 6, 11, 4, 10, 6, 5, 11, 4], [5, 11, 4], [11], [5, 6]):
        ids = [*PROMPT, 10, 2, 6, *new]
        parts = split_sequence(ids, 7, markers["opened by the template"])
        assert tuple(ids[column] for column in parts.columns) == parts.thought
        assert list(parts.columns) == sorted(parts.columns)
        assert parts.columns[0] == 6  # the token that the prompt holds
