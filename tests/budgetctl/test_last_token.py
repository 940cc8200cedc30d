"""Bans of the controller and of other processors together never leave a row without a token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.controller import BudgetController
from budgetctl.extension import Extension
from budgetctl.protect import Spans
from budgetctl.score_edits import ban_tokens, unless_dead
from budgetctl.structured import KeepAlive

INF = float("inf")
EOS, LINE, A, OPEN, CLOSE, VOCAB, ROWS = 1, 2, 5, 10, 11, 18, 6
#: A fence that a line break and token 6 close; token 5 begins a character that lacks two bytes.
SPANS = Spans(torch.arange(VOCAB) == 6, (LINE, 6), torch.where(torch.arange(VOCAB) == A, 2, 0))


class Few:
    """Another processor: leaves few tokens, drawn by the row's own tokens; often a marker or the end of sequence."""

    def __init__(self, seed: int, most: int) -> None:
        self.seed, self.most = seed, most

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert not (scores == -INF).all(1).any()
        kept = torch.zeros_like(scores, dtype=torch.bool)
        for row, ids in enumerate(input_ids.tolist()):
            draw = torch.Generator().manual_seed(hash((self.seed, *ids)) % 2**31)
            count = int(torch.randint(1, self.most + 1, (), generator=draw))
            likely = torch.ones(VOCAB)
            likely[[EOS, OPEN, CLOSE, 12, 13, 14, 15, 16, 17]] = 3.0
            kept[row, torch.multinomial(likely, count, generator=draw)] = True
        return scores.masked_fill(~kept, -INF)


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize(
    "knobs",
    [
        {"thinking_budget": 5},
        {"thinking_budget": [0, 1, 2, 5, 9, None]},
        {"thinking_budget": 9, "min_thinking_tokens": 5},
        {"min_thinking_tokens": 6},
        {"thinking_target": 6, "target_tolerance": 1},
        {"thinking_budget": 8, "extension": Extension((A, 4), 2)},
        {"max_new_tokens": 20, "answer_reserve": 12},
    ],
    ids=str,
)
def test_rows_stay_alive_and_budgets_hold(
    knobs: dict[str, Any],
    most: int,
    toy: Any,
    markers: Any,
    boundaries: Any,
    prompts_of: Any,
    write: Any,
    count: Any,
) -> None:
    around = replace(boundaries, spans=SPANS)
    for number, (name, case) in enumerate(markers.items()):
        prompts = prompts_of(case, ROWS)
        width = prompts.shape[1]
        controller = BudgetController(case, boundaries=around, prompt_length=width, **knobs)
        keep = KeepAlive(controller)
        processors = [Few(number, 2 * most), controller, Few(number + 7, most), keep]

        def alive(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            assert (scores > -INF).any(1).all()
            return scores

        ids = write(toy, prompts, [*processors[:2], alive, *processors[2:], alive], 20)
        caps = controller.limits.on(ROWS, ids.device).caps.tolist()
        for row, cap in zip(ids.tolist(), caps, strict=True):
            assert count(row, width, case).used <= cap, name


def scores_of(*alive: int) -> torch.Tensor:
    scores = torch.full((1, VOCAB), -INF)
    scores[0, list(alive)] = torch.arange(len(alive), dtype=torch.float32)
    return scores


def left_of(markers: Any, thought: list[int], scores: torch.Tensor, **knobs: Any) -> list[int]:
    controller = BudgetController(markers["opened by the template"], prompt_length=4, **knobs)
    found = controller(torch.tensor([[7, 8, 9, OPEN, *thought]]), scores)
    return (found[0] > -INF).nonzero()[:, 0].tolist()


def test_the_minimum_gives_way_to_the_last_token(markers: Any) -> None:
    knobs = {"thinking_budget": 9, "min_thinking_tokens": 5}
    assert left_of(markers, [A], scores_of(A, CLOSE), **knobs) == [A]
    assert left_of(markers, [A], scores_of(CLOSE), **knobs) == [CLOSE]
    # As `forced_eos_token_id` leaves it at the last token: a close, so that there is an answer.
    assert left_of(markers, [A], scores_of(EOS), **knobs) == [CLOSE]
    assert left_of(markers, [A], scores_of(EOS, CLOSE), **knobs) == [CLOSE]
    assert left_of(markers, [A], scores_of(EOS, A), **knobs) == [A]


def test_the_answers_guard_gives_way_or_ends(markers: Any) -> None:
    knobs = {"thinking_budget": 2}
    assert left_of(markers, [A, CLOSE], scores_of(A, CLOSE), **knobs) == [A]
    assert left_of(markers, [A, CLOSE], scores_of(CLOSE), **knobs) == [CLOSE]
    # A second thought would be over the budget.
    assert left_of(markers, [A, A, CLOSE], scores_of(OPEN), **knobs) == [EOS]
    assert left_of(markers, [A, A, CLOSE], scores_of(OPEN, CLOSE), **knobs) == [CLOSE]
    assert left_of(markers, [A, A, CLOSE], scores_of(OPEN, EOS), **knobs) == [EOS]


def test_a_character_is_cut_where_nothing_else_is_left(markers: Any, boundaries: Any) -> None:
    around = replace(boundaries, spans=SPANS)
    knobs = {"thinking_budget": 4, "boundaries": around}
    assert left_of(markers, [4, 4], scores_of(4, A), **knobs) == [4]
    assert left_of(markers, [4, 4], scores_of(A), **knobs) == [A]
    assert left_of(markers, [4, 4, A, A], scores_of(A), **knobs) == [CLOSE]


def test_a_row_that_comes_without_a_token_is_left_as_it_came(markers: Any) -> None:
    dead = torch.full((1, VOCAB), -INF)
    assert left_of(markers, [A], dead, thinking_budget=9, min_thinking_tokens=5) == []
    assert left_of(markers, [A, CLOSE], dead, thinking_budget=9) == []
    assert left_of(markers, [A], dead, thinking_budget=1) == [CLOSE]  # a forced close is written anyway


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bans_row_by_row(data: st.DataObject) -> None:
    banned_before = data.draw(st.lists(st.sets(st.integers(0, 4), max_size=4), min_size=3, max_size=3))
    ids = torch.tensor(
        data.draw(st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=3, max_size=3))
    )
    flags = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=3, max_size=3))
    )
    scores = torch.randn(3, 5)
    for row, tokens in enumerate(banned_before):
        scores[row, list(tokens)] = -INF
    masked = ban_tokens(scores, ids, flags)
    found = unless_dead(masked, scores)
    for row in range(3):
        gone = {int(i) for i, flag in zip(ids[row], flags[row], strict=True) if flag}
        expected = scores[row].clone()
        expected[list(gone)] = -INF
        assert torch.equal(masked[row], expected)
        spared = bool((expected == -INF).all())
        assert torch.equal(found[row], scores[row] if spared else expected)
