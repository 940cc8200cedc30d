"""Where a thought may be closed early, which token closes it, and what is forced or banned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.closing import (
    Boundaries,
    closing_window,
    fold_end_of_sequence,
    next_marker_ids,
)
from budgetctl.controller import BudgetController
from budgetctl.score_edits import ban_tokens, force_tokens
from budgetctl.training.reasoner.tokenizer import build_tokenizer

INF = torch.inf


class Words:
    """A tokenizer whose token ``i`` is the word ``i``."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return [self.words[row[0]] for row in rows]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.words[i] for i in ids]

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return []


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (["so", "\n"], True),
        (["so", ".\n\n"], True),
        (["so", "\n  "], True),
        (["so", "\nand"], False),
        (["so", "."], True),
        (["so", ".)"], True),
        (["so", '!"'], True),
        (["so", "。"], True),
        (["so", ","], False),
        (["so", ";"], False),
        (["3", "."], False),  # may go on as 3.14
        (["3", ".\n"], True),
        (["3", " ", "."], True),
        (["3", "?"], False),
        (["\n"], True),
        (["."], True),
    ],
)
def test_line_and_sentence_ends(text: list[str], ends: bool) -> None:
    found = Boundaries.from_tokenizer(Words(*text), len(text) + 2)  # type: ignore[arg-type]
    assert found.line.shape == (len(text) + 2,)
    assert found.at_end(torch.arange(len(text))[None]).tolist() == [ends]


def test_boundaries_of_a_real_tokenizer() -> None:
    tokenizer = build_tokenizer()
    found = Boundaries.from_tokenizer(tokenizer, len(tokenizer) + 10)
    ends = {}
    for text in (
        "2+3=5\n",
        "2+3=5",
        "We are at 4.\n",
        "check 5 -3 is 2 ok\n",
        "<think>",
        "Wait, check again.",
    ):
        ids = tokenizer.encode(text, add_special_tokens=False)
        ends[text] = bool(found.at_end(torch.tensor([ids])))
    assert [text for text, end in ends.items() if not end] == ["2+3=5", "<think>"]
    assert not bool(found.line[len(tokenizer) :].any() | found.sentence[len(tokenizer) :].any())


@pytest.mark.parametrize(
    ("cap", "room", "window"),
    [
        (0, None, 0),
        (1, None, 1),
        (20, None, 2),
        (25, None, 3),
        (2**40, None, 64),
        (1000, 100, 10),
        (5, 100, 1),
        (5, 0, 0),
    ],
)
def test_window(cap: int, room: int | None, window: int) -> None:
    assert closing_window(torch.tensor([cap]), room).tolist() == [window]


def progress(row: list[int], within: int, variant: tuple[int, ...]) -> int:
    """Tokens of ``variant`` that are already there, in plain Python."""
    tail = row[len(row) - min(within, len(row)) :]
    sizes = (
        size for size in range(1, len(variant)) if tail[-size:] == list(variant[:size]) and size <= len(tail)
    )
    return max(sizes, default=0)


variants = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=8),
    st.integers(0, 9),
    st.lists(variants, min_size=1, max_size=3),
)
def test_next_tokens_of_a_marker(row: list[int], within: int, spellings: list[tuple[int, ...]]) -> None:
    ids, completes = next_marker_ids(torch.tensor([row]), torch.tensor([within]), tuple(spellings))
    done = [progress(row, within, variant) for variant in spellings]
    assert ids[0].tolist() == [variant[n] for variant, n in zip(spellings, done, strict=True)]
    assert completes[0].tolist() == [
        n + 1 == len(variant) for variant, n in zip(spellings, done, strict=True)
    ]


def test_forced_rows_have_one_choice_and_others_keep_their_scores() -> None:
    scores = torch.randn(3, 5)
    scores[1, 2] = -INF  # also where something else has banned it
    forced = force_tokens(scores, torch.tensor([False, True, True]), torch.tensor([0, 2, 4]))
    assert torch.equal(forced[0], scores[0])
    assert forced[1:].softmax(1).tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]


def test_bans_are_kept_where_spellings_share_a_token() -> None:
    scores = torch.zeros(2, 4)
    ids = torch.tensor([[1, 1, 3], [1, 1, 3]])
    for flags in ([True, False, False], [False, True, False]):
        banned = ban_tokens(scores, ids, torch.tensor([flags, [False] * 3]))
        assert banned.tolist() == [[0, -INF, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(scores, torch.zeros(2, 4))
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert torch.equal(ban_tokens(scores, none, none.bool()), scores)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_end_of_sequence_is_folded_into_the_close(temperature: float) -> None:
    scores = torch.randn(3, 6, dtype=torch.float64)
    scores[2, 4] = -INF
    rows, closing = torch.tensor([True, False, True]), torch.tensor([3, 3, 2])
    folded = fold_end_of_sequence(scores, rows, (4, 5), closing, temperature)
    assert torch.equal(folded[1], scores[1])
    before, after = ((value / temperature).softmax(1) for value in (scores, folded))
    for row, close in ((0, 3), (2, 2)):
        assert after[row, 4:].tolist() == [0, 0]
        torch.testing.assert_close(after[row, close], before[row, close] + before[row, 4:].sum())
        others = [i for i in range(4) if i != close]
        torch.testing.assert_close(after[row, others], before[row, others])
    assert torch.equal(fold_end_of_sequence(scores, rows, (), closing, temperature), scores)


def test_folding_what_is_banned_altogether() -> None:
    scores = torch.tensor([[0.0, -INF, -INF]])
    folded = fold_end_of_sequence(scores, torch.tensor([True]), (2,), torch.tensor([1]), 1.0)
    assert folded.tolist() == [[0.0, -INF, -INF]]


def test_the_window_closes_at_a_line_end_and_nowhere_else(markers: Any, boundaries: Any) -> None:
    case = markers["opened by the template"]
    controller = BudgetController(case, thinking_budget=20, boundaries=boundaries, prompt_length=5)
    for used in range(1, 20):
        for last, ends in (([5, 5], False), ([5, 2], True), ([5, 3], True), ([4, 3], False), ([2, 5], False)):
            ids = torch.tensor([[7, 8, 9, 10, 2, *([5] * (used - 2)), *last[-min(used, 2) :]]])
            scores = torch.randn(1, 18)
            closes = controller(ids, scores).isfinite().sum() == 1
            assert bool(closes) == (ends and used >= 18 and (used > 1 or last[0] != 4)), (used, last)


def test_a_close_begun_in_the_window_is_completed(markers: Any, boundaries: Any) -> None:
    """Its first token is no line end, so that the second step has to remember where the close began."""
    case = markers["spelled, template"]
    controller = BudgetController(case, thinking_budget=20, boundaries=boundaries, prompt_length=4)

    def forced(thought: list[int]) -> list[int]:
        scores = controller(torch.tensor([[7, 8, 9, 10, *thought]]), torch.zeros(1, 18))
        found = scores.isfinite().nonzero()[:, 1].tolist()
        return found if len(found) == 1 else []

    ended = [5] * 17 + [2]  # two tokens left, the window is two long
    assert forced(ended) == [12]
    assert forced([*ended, 12]) == [13]
    assert forced([*ended, 12, 13]) == [14]
    assert forced([5] * 18 + [12]) == []  # begun by the model, in mid-line
    assert forced([5] * 10 + [2, 12]) == []  # before the window
