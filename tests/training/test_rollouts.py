"""Rollouts of a sampler that writes what the test says: budgets hold, and each token is what it is said to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.training.rollouts import (
    FORCED,
    NATURAL,
    NONE,
    Rollout,
    as_sampled,
    budget_forced,
    free,
    open_thought,
    split_completion,
    truncated_summaries,
)

EOS, OPEN, CLOSE, A, B, C = range(1, 7)
SINGLE = ThinkingDelimiters((OPEN,), ((CLOSE,),), (CLOSE,), eos_ids=(EOS,))
SPELLED = replace(SINGLE, natural_end_ids=((7, 8), (9, 8)), forced_end_ids=(7, 8))
PHRASE = replace(SINGLE, forced_end_ids=(C, C, CLOSE))


class Script:
    """Stands in for a ``RowSampler``: the text of each seed, read on from where the row is; ~seed is its answer."""

    eos_ids = (EOS,)

    def __init__(self, texts: dict[int, Tokens]) -> None:
        self.texts = texts
        self.asked: list[tuple[Tokens, int]] = []

    def extend(
        self,
        prefixes: Sequence[Tokens],
        seeds: Sequence[int],
        limits: Sequence[int],
        stops: Sequence[Tokens] = (),
    ) -> list[Tokens]:
        rows = []
        for prefix, seed, limit in zip(prefixes, seeds, limits, strict=True):
            self.asked.append((tuple(prefix), limit))
            row: Tokens = ()
            for token in self.texts[seed][:limit]:
                row = (*row, token)
                if token == EOS or any(row[-len(stop) :] == stop for stop in stops):
                    break
            rows.append(row)
        return rows


def forced(text: Tokens, budget: int, delimiters: ThinkingDelimiters = SINGLE) -> Rollout:
    script = Script({5: text, ~5: (B, EOS, B)})
    return budget_forced(script, delimiters, [(A, OPEN)], [5], [budget], 8)[0]  # type: ignore[arg-type]


def test_a_natural_close_is_the_models() -> None:
    got = forced((A, A, CLOSE, B), 3)
    assert got.completion_ids == (A, A, CLOSE, B, EOS)
    assert got.sampled == (1, 1, 1, 1, 1)
    assert got.segments == (0, 0, 0, 1, 1)
    assert (got.close, got.thinking_tokens, got.answer_tokens) == (NATURAL, 2, 2)


@pytest.mark.parametrize(
    ("delimiters", "written"), [(SINGLE, (CLOSE,)), (SPELLED, (7, 8)), (PHRASE, (C, C, CLOSE))]
)
def test_a_written_close_is_not(delimiters: ThinkingDelimiters, written: Tokens) -> None:
    got = forced((A, B, A, A, CLOSE), 3, delimiters)
    assert got.completion_ids == (A, B, A, *written, B, EOS)
    assert got.sampled == (1, 1, 1, *[0] * len(written), 1, 1)
    assert got.segments == (0, 0, 0, *[0] * len(written), 1, 1)
    assert (got.close, got.thinking_tokens, got.budget) == (FORCED, 3, 3)


def test_a_thought_of_exactly_its_budget_is_closed_by_force() -> None:
    assert forced((A, A, A, CLOSE), 3).close == FORCED
    assert forced((A, A, CLOSE), 3).close == NATURAL


def test_an_end_of_sequence_in_the_thought_leaves_no_answer() -> None:
    got = forced((A, EOS), 3)
    assert got.completion_ids == (A, EOS)
    assert got.sampled == (1, 1)
    assert (got.close, got.thinking_tokens, got.answer_tokens) == (NONE, 1, 0)


def test_the_answer_goes_on_from_prompt_thought_and_close() -> None:
    script = Script({5: (A, A, A), ~5: (B, B, B, B)})
    got = budget_forced(script, SINGLE, [(A, OPEN)], [5], [2], 3)[0]  # type: ignore[arg-type]
    assert script.asked[1] == ((A, OPEN, A, A, CLOSE), 3)
    assert got.answer_tokens == 3


@given(
    text=st.lists(st.sampled_from([A, B, C, 7, 8, 9, CLOSE, EOS]), max_size=12),
    budget=st.integers(1, 10),
    delimiters=st.sampled_from([SINGLE, SPELLED, PHRASE]),
)
def test_budgets_hold_and_masks_are_whole(
    text: list[int], budget: int, delimiters: ThinkingDelimiters
) -> None:
    got = forced((*text, A, A, A, A, A, A, A, A, A, A), budget, delimiters)
    assert got.thinking_tokens <= budget
    assert len(got.completion_ids) == len(got.sampled) == len(got.segments)
    inserted = [t for t, mine in zip(got.completion_ids, got.sampled, strict=True) if not mine]
    assert inserted == (list(delimiters.forced_end_ids) if got.close == FORCED else [])
    thought, answer_at = split_completion(got.completion_ids, delimiters)
    assert (answer_at is None) == (got.close == NONE)
    if answer_at is not None:
        assert thought == got.thinking_tokens
        assert got.segments == (0,) * answer_at + (1,) * (len(got.completion_ids) - answer_at)


def cuts(text: Tokens, budgets: tuple[int, ...], summaries: int = 2) -> list[Rollout]:
    rows = len(budgets) * summaries
    script = Script(
        {0: text, **{~i: (B, i + 10, EOS) for i in range(rows)}, **dict.fromkeys(range(1, rows), (C,))}
    )
    return truncated_summaries(script, SINGLE, [(A, OPEN)], list(range(rows)), budgets, summaries, 8)  # type: ignore[arg-type]


def test_each_cut_holds_the_thought_so_far_and_an_answer_of_its_own() -> None:
    got = cuts((A, B, A, B, A), (2, 4))
    assert [r.completion_ids for r in got] == [
        (A, B, CLOSE, B, 10, EOS),
        (A, B, CLOSE, B, 11, EOS),
        (A, B, A, B, CLOSE, B, 12, EOS),
        (A, B, A, B, CLOSE, B, 13, EOS),
    ]
    assert [r.budget for r in got] == [2, 2, 4, 4]
    assert [r.close for r in got] == [FORCED] * 4


def test_the_thought_bears_its_loss_once_and_closes_never() -> None:
    got = cuts((A, B, A, B, A), (2, 4))
    assert [r.sampled for r in got] == [
        (0, 0, 0, 1, 1, 1),
        (0, 0, 0, 1, 1, 1),
        (1, 1, 1, 1, 0, 1, 1, 1),
        (0, 0, 0, 0, 0, 1, 1, 1),
    ]
    assert got[2].segments == (0, 0, 1, 1, 0, 2, 2, 2)


def test_cuts_beyond_the_thoughts_own_end_are_the_thought() -> None:
    got = cuts((A, B, A, CLOSE, B), (2, 3, 6, 9), summaries=1)
    assert [r.close for r in got] == [FORCED, FORCED, NATURAL, NATURAL]
    assert [r.thinking_tokens for r in got] == [2, 3, 3, 3]
    assert [r.completion_ids[:4] for r in got[2:]] == [(A, B, A, CLOSE)] * 2
    assert [r.sampled[:4] for r in got] == [(0, 0, 0, 1), (0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1)]
    # Three tokens: two before the first budget, one before the second; the close is decided after the second.
    assert got[3].segments[:4] == (0, 0, 1, 2)


def test_a_thought_that_ends_the_sequence_is_cut_before_its_end() -> None:
    got = cuts((A, B, EOS), (1, 2, 3, 6), summaries=1)
    assert [r.close for r in got] == [FORCED, FORCED, NONE, NONE]
    assert [r.completion_ids for r in got[2:]] == [(A, B, EOS)] * 2
    assert [r.answer_tokens for r in got] == [3, 3, 0, 0]


@given(
    text=st.lists(st.sampled_from([A, B, CLOSE, EOS]), max_size=12),
    budgets=st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True).map(sorted),
    summaries=st.integers(1, 3),
)
def test_every_sampled_thinking_token_bears_loss_in_exactly_one_rollout(
    text: list[int], budgets: list[int], summaries: int
) -> None:
    got = cuts((*text, *[A] * 12), tuple(budgets), summaries)
    carrier = [r for r in got if r.sampled and r.sampled[0]]
    whole = got[-1]
    assert [r.thinking_tokens <= r.budget for r in got] == [True] * len(got)
    bearing = [
        sum(mine and segment < len(budgets) for mine, segment in zip(r.sampled, r.segments, strict=True))
        for r in got
    ]
    kept = len(whole.completion_ids) - whole.answer_tokens - (whole.close == FORCED)
    assert sum(bearing) == max(bearing) == kept
    for rollout in carrier:
        for at, segment in enumerate(rollout.segments[:kept]):
            low = budgets[segment - 1] if segment else 0
            assert low <= at
            assert at < budgets[segment] or segment == len(budgets) - 1


def test_free_rollouts_are_sampled_throughout() -> None:
    script = Script({1: (A, CLOSE, B, EOS), 2: (A, A, A, A, A)})
    got = free(script, SINGLE, [(OPEN,), (OPEN,)], [1, 2], 4, [9, 0])  # type: ignore[arg-type]
    assert [r.sampled for r in got] == [(1, 1, 1, 1)] * 2
    assert [(r.close, r.thinking_tokens, r.answer_tokens) for r in got] == [(NATURAL, 1, 2), (NONE, 4, 0)]
    assert [r.budget for r in got] == [9, 0]


def test_the_longest_close_that_ends_at_a_token_is_taken_off_the_thought() -> None:
    assert split_completion((A, C, C, CLOSE, B), PHRASE) == (1, 4)
    assert split_completion((A, C, CLOSE, B), PHRASE) == (2, 3)
    assert split_completion((A, 9, 8, B), SPELLED) == (1, 3)
    assert as_sampled((OPEN,), (A, 7), SPELLED).close == NONE


def test_thoughts_are_opened_once() -> None:
    assert open_thought((A,), SINGLE) == (A, OPEN)
    assert open_thought((A, OPEN, B), SINGLE) == (A, OPEN, B)
    assert open_thought((OPEN, CLOSE, A), SINGLE) == (OPEN, CLOSE, A, OPEN)
    assert open_thought((A,), replace(SINGLE, implicit=True)) == (A,)
