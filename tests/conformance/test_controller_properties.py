"""The one rule over random markers, rows and calls: scores are a function of the row's prefix and its logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.extension import Extension
from budgetctl.ledger import _SLOTS
from budgetctl.prefix_hash import hash_prefixes
from tests.conformance.strategies import (
    EOS,
    PAD,
    PROFILE,
    A,
    B,
    batches,
    limits,
    logits_of,
    padded,
)
from tests.reference_state import walk

Make = Callable[..., BudgetController]
#: A call of a decoder: how far it moves, from which row each row goes on, and with what logits.
Call = tuple[int, list[int], str]


@pytest.fixture(scope="session")
def make(forecast: Any, boundaries: Any) -> Make:
    """A controller of rows with the limits ``asked``, with a closing window, or with a forecast too."""

    def build(
        d: ThinkingDelimiters,
        asked: Sequence[dict[str, Any]],
        width: int | None,
        *,
        steer: bool,
        **options: Any,
    ) -> BudgetController:
        columns = {name: [row[name] for row in asked] for name in asked[0]}
        options |= {"forecast": forecast if steer else None, "boundaries": boundaries}
        return BudgetController(d, prompt_length=width, **columns, **options)

    return build


@st.composite
def histories(draw: st.DrawFn, rows: int) -> list[Call]:
    """Forwards, several tokens at once, the same again, backwards (a draft is rejected), rows permuted or doubled
    (beams); with the model's logits, a placeholder of ones, or after a call for rows of another kind."""
    moves = st.sampled_from((1, 1, 1, 1, 3, 0, -1, -2, -5))
    stay = st.just(list(range(rows)))
    order = st.one_of(stay, stay, st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows))
    kind = st.sampled_from(("own", "own", "own", "own", "ones", "other"))
    return draw(st.lists(st.tuples(moves, order, kind), min_size=4, max_size=14))


def options(d: ThinkingDelimiters, steer: bool) -> st.SearchStrategy[dict[str, Any]]:
    """What holds for all rows. A phrase that holds one of the markers is refused, so none does."""
    markers = {token for marker in (*d.all_opens, *d.end_variants) for token in marker}
    free = [phrase for phrase in ((A, B), (14,)) if not markers & set(phrase)]
    extension = st.sampled_from((None, None, *(Extension(phrase, len(phrase)) for phrase in free)))
    if not steer:
        return st.fixed_dictionaries({"extension": extension})
    steps = st.sampled_from(("every", "line", "first"))
    return st.fixed_dictionaries({"extension": extension, "guided_steps": steps})


@settings(PROFILE, max_examples=80)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_what_was_asked_before_changes_nothing(data: st.DataObject, seed: int, make: Make) -> None:
    """Without a forecast nothing is remembered, so a fresh controller gives the same bits."""
    batch = data.draw(batches(rows=3, words=True))
    d, ids, column = batch.delimiters, batch.ids, batch.width
    asked = [data.draw(limits(d, forecast=False)) for _ in range(3)]
    chosen = data.draw(options(d, steer=False))
    used = make(d, asked, batch.width, steer=False, **chosen)
    for move, order, kind in data.draw(histories(3)):
        ids = ids[torch.tensor(order)]
        prefix = ids[:, :column]
        if kind == "other":
            used(prefix.flip(1), logits_of(prefix.flip(1), seed, d))
        scores = logits_of(prefix, seed, d)
        scores = torch.ones_like(scores) if kind == "ones" else scores
        fresh = make(d, asked, batch.width, steer=False, **chosen)
        assert torch.equal(used(prefix, scores), fresh(prefix, scores))
        column = min(max(column + move, batch.width), ids.shape[1])


class Remembered:
    """Which first tokens of thoughts a controller was asked about with the model's own logits: the one thing that it may
    know of earlier calls."""

    def __init__(self, d: ThinkingDelimiters, width: int) -> None:
        self.delimiters, self.width = d, width
        self.starts: set[tuple[int, ...]] = set()

    def note(self, prefix: torch.Tensor) -> None:
        for row in prefix.tolist():
            if walk(row, self.delimiters, self.width).fields()["at_start"]:
                self.starts.add(tuple(row))
        # The table has one place for each value of 16 bits of the hash, and what stands there may be written over.
        keys = [int(hash_prefixes(torch.tensor([row], dtype=torch.int64))[0, -1]) for row in self.starts]
        assume(len({key % _SLOTS for key in keys}) == len(keys))

    def tell(
        self, fresh: BudgetController, prefix: torch.Tensor, logits: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Ask a fresh controller about the same first tokens, as far as the rows [B, T] have them."""
        starts = [walk(row, self.delimiters, self.width).first for row in prefix.tolist()]
        for column in sorted({start for start in starts if start is not None and start <= prefix.shape[1]}):
            before = prefix[:, :column]
            known = [
                start == column and tuple(row) in self.starts
                for start, row in zip(starts, before.tolist(), strict=True)
            ]
            fresh(before, torch.where(torch.tensor(known)[:, None], logits(before), 1.0))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to the order of sums in matrix products."""
    assert torch.equal(found.isneginf(), expected.isneginf())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@settings(PROFILE, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_what_was_asked_before_counts_only_for_the_forecast(
    data: st.DataObject, seed: int, make: Make
) -> None:
    """With a forecast the predicted length is made from the logits at the first thinking token, and kept. So a controller
    that was asked there is like a fresh one that was asked there and nothing else; one that was never asked there, or
    with a placeholder, is like a fresh one that has seen nothing."""
    batch = data.draw(batches(rows=3, words=True))
    d, ids, column = batch.delimiters, batch.ids, batch.width
    asked = [data.draw(limits(d, forecast=True)) for _ in range(3)]
    chosen = data.draw(options(d, steer=True))
    used, remembered = make(d, asked, batch.width, steer=True, **chosen), Remembered(d, batch.width)

    def logits(prefix: torch.Tensor) -> torch.Tensor:
        return logits_of(prefix, seed, d)

    for move, order, kind in data.draw(histories(3)):
        ids = ids[torch.tensor(order)]
        prefix = ids[:, :column]
        if kind == "other":
            used(prefix.flip(1), logits(prefix.flip(1)))
            remembered.note(prefix.flip(1))
        scores = torch.ones_like(logits(prefix)) if kind == "ones" else logits(prefix)
        fresh = make(d, asked, batch.width, steer=True, **chosen)
        remembered.tell(fresh, prefix, logits)
        assert_same(used(prefix, scores), fresh(prefix, scores))
        if kind != "ones":
            remembered.note(prefix)
        column = min(max(column + move, batch.width), ids.shape[1])


@settings(PROFILE, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 1000), steer=st.booleans(), known=st.booleans())
def test_a_row_is_alone_in_any_batch(
    data: st.DataObject, seed: int, steer: bool, known: bool, make: Make
) -> None:
    """In any order, beside any rows, with padding of any width and token. Without the prompt's length a header must
    stand before the turn, or the padding would be part of it."""
    batch = data.draw(batches(rows=4, chat=not known, resumes=known, pads=(PAD, EOS)))
    d = batch.delimiters
    width = batch.width if known or not d.turn_start_ids else None
    asked = [data.draw(limits(d, forecast=steer)) for _ in range(4)]
    chosen = data.draw(options(d, steer))
    order = data.draw(st.permutations(range(4)))
    more, pad = data.draw(st.integers(0, 3)), data.draw(st.sampled_from((PAD, EOS, 3)))

    together = make(d, asked, width, steer=steer, **chosen)
    shuffled = make(d, [asked[i] for i in order], width, steer=steer, **chosen)
    own = [more if width is None else width - batch.padding[i] + more for i in range(4)]
    alone = [make(d, [asked[i]], None if width is None else own[i], steer=steer, **chosen) for i in range(4)]
    for column in range(batch.width, batch.ids.shape[1] + 1, data.draw(st.integers(1, 4))):
        prefix = batch.ids[:, :column]
        scores = logits_of(prefix, seed, d)
        found = together(prefix, scores)
        assert_same(shuffled(prefix[order], scores[order]), found[order])
        for i, row in enumerate(prefix.tolist()):
            single = padded([[pad] * more + row[batch.padding[i] :]])
            assert_same(alone[i](single, scores[i : i + 1]), found[i : i + 1])
