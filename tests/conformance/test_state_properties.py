"""Where a row stands in its thought, over random markers and rows: against a plain walk, and read on token by token."""

from __future__ import annotations

from dataclasses import fields

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from budgetctl.prefix_reader import PrefixReader, Reading, read_rows
from budgetctl.protect import Spans
from budgetctl.state import ThinkingState, thinking_state
from tests.conformance.strategies import PROFILE, VOCAB, A, Batch, batches
from tests.reference_state import walk


def values(state: ThinkingState, row: int) -> dict[str, int | bool]:
    return {f.name: getattr(state, f.name)[row].item() for f in fields(state)}


@settings(PROFILE, max_examples=300)
@given(batches(empty=True), st.booleans())
def test_every_field_is_what_a_walk_over_the_row_finds(batch: Batch, known: bool) -> None:
    """At every prefix from the prompt on, in one batch."""
    if batch.delimiters.resumes_turn:
        known = True
    for ids in batch.prefixes():
        prompt = batch.width if known else None
        state = thinking_state(ids, batch.delimiters, prompt_length=prompt)
        for row, tokens in enumerate(ids.tolist()):
            seen = walk(tokens, batch.delimiters, prompt)
            assert values(state, row) == seen.fields()
            if ids.shape[1] == batch.ids.shape[1]:
                event(f"opened {min(len(seen.closes), 2)} times, stray {bool(seen.stray)}")
                event(f"half-written close {seen.close_progress > 0}")


def same(one: Reading, other: Reading) -> bool:
    pairs = [(getattr(one.state, f.name), getattr(other.state, f.name)) for f in fields(one.state)]
    pairs += [(getattr(one, name), getattr(other, name)) for name in ("total", "start_key", "fence_marks")]
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@st.composite
def visits(draw: st.DrawFn, rows: int) -> list[tuple[int, list[int]]]:
    """Steps of a decoder: by how many columns it moves, mostly one, and from which row each row goes on."""
    moves = st.sampled_from((1, 1, 1, 1, 1, 1, 0, 2, -1, -4))
    order = st.one_of(
        st.just(list(range(rows))), st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows)
    )
    return draw(st.lists(st.tuples(moves, order), min_size=8, max_size=30))


@settings(PROFILE, max_examples=150)
@given(st.data(), st.booleans(), st.booleans())
def test_reading_on_is_reading_all(data: st.DataObject, fences: bool, lengths: bool) -> None:
    """Forwards, backwards, twice, rows permuted as beams are; with one prompt width for all or one a row."""
    batch = data.draw(batches(words=True, empty=True))
    ids, rows = batch.ids, len(batch.ids)
    spans = Spans(torch.arange(VOCAB) == A, (A,), None) if fences else None
    prompt = torch.full((rows,), batch.width) if lengths else batch.width
    reader, column = PrefixReader(batch.delimiters), batch.width
    for move, order in data.draw(visits(rows)):
        ids = ids[torch.tensor(order)]
        prefix = ids[:, :column].clone()
        found = reader.read(prefix, prompt, spans)
        assert same(found, read_rows(ids[:, :column], batch.delimiters, prompt, spans))
        prefix.fill_(3)  # the caller may write to its tensor afterwards
        column = min(max(column + move, batch.width), ids.shape[1])
