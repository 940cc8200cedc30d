"""``thinking_state`` against a row-by-row reference, and the cases users run into."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.state import ThinkingState, thinking_state
from tests.reference_state import walk

PAD, EOS, A, B, OPEN, CLOSE, USER, BOT = 0, 1, 2, 3, 5, 6, 8, 9
HEADER = (BOT, 7)
SINGLE = ThinkingDelimiters((OPEN,), ((CLOSE,),), (CLOSE,), HEADER, ((OPEN,),), eos_ids=(EOS,))
SPELLED = ThinkingDelimiters(
    (10, 11, 12),
    ((14, 11, 12), (14, 11, 13), (15, 11, 12)),
    (14, 11, 12),
    HEADER,
    ((10, 11, 13),),
    eos_ids=(EOS,),
)
CASES = {
    "single": SINGLE,
    "template": dataclasses.replace(SINGLE, opened_by_template=True, lead_ids=(A,)),
    "long lead": dataclasses.replace(SINGLE, opened_by_template=True, lead_ids=(A, B)),
    "no header": dataclasses.replace(SINGLE, turn_start_ids=()),
    "spelled": SPELLED,
    "spelled, no header": dataclasses.replace(SPELLED, turn_start_ids=(), lead_ids=(A,)),
    "repeating": dataclasses.replace(
        SINGLE, open_ids=(5, 5), open_variants=(), natural_end_ids=((6, 6), (6, 6, 6))
    ),
    "phrase": dataclasses.replace(SINGLE, forced_end_ids=(A, B, CLOSE)),
    "phrase after lead": dataclasses.replace(SINGLE, forced_end_ids=(A, B, CLOSE), lead_ids=(A,)),
    "implicit": dataclasses.replace(SINGLE, implicit=True, open_ids=(), open_variants=()),
    "implicit, re-opens": dataclasses.replace(SINGLE, implicit=True),
}


def reference(row: list[int], d: ThinkingDelimiters, prompt_length: int | None) -> dict[str, int | bool]:
    return walk(row, d, prompt_length).fields()


def values(state: ThinkingState, row: int) -> dict[str, int | bool]:
    return {f.name: getattr(state, f.name)[row].item() for f in dataclasses.fields(state)}


def read(row: list[int], d: ThinkingDelimiters, prompt_length: int | None = None) -> dict[str, int | bool]:
    return values(thinking_state(torch.tensor([row]), d, prompt_length=prompt_length), 0)


@st.composite
def pieces(draw: st.DrawFn, d: ThinkingDelimiters, most: int) -> list[int]:
    """Tokens rich in whole and broken markers."""
    whole = [*d.all_opens, *d.end_variants, *d.end_variants]
    tokens = sorted({t for marker in whole for t in marker} | {A, B, PAD, USER, BOT, EOS})
    chunk = st.one_of(
        st.sampled_from(whole), st.sampled_from([(t,) for t in tokens]), st.just(d.turn_start_ids)
    )
    chunk = st.one_of(chunk, st.sampled_from([(A,), (A, B), d.lead_ids]))
    return [t for c in draw(st.lists(chunk, max_size=most)) for t in c]


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, ThinkingDelimiters, int]:
    """Left-padded prompts with a conversation, mostly a header, and an equal number of generated tokens each."""
    d = CASES[draw(st.sampled_from(sorted(CASES)))]
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        prompt = draw(pieces(d, 6))
        if draw(st.integers(0, 3)):
            prompt += [*d.turn_start_ids, *(d.open_ids + d.lead_ids if draw(st.booleans()) else ())]
        rows.append((prompt, draw(pieces(d, 14))))
    width = max(len(prompt) for prompt, _ in rows)
    generated = min(len(tokens) for _, tokens in rows)
    pad = draw(st.sampled_from([PAD, EOS, A]))
    padded = [[pad] * (width - len(p)) + p + g[:generated] for p, g in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), -1), d, width


@settings(max_examples=500, deadline=None)
@given(batches(), st.booleans())
def test_matches_a_walk_over_each_row(
    batch: tuple[torch.Tensor, ThinkingDelimiters, int], prompt_known: bool
) -> None:
    ids, d, prompt = batch
    prompt_length = prompt if prompt_known else None
    state = thinking_state(ids, d, prompt_length=prompt_length)
    for row in range(ids.shape[0]):
        assert values(state, row) == reference(ids[row].tolist(), d, prompt_length)


@settings(max_examples=200, deadline=None)
@given(batches(), st.integers(1, 4))
def test_row_alone_and_more_padding_change_nothing(
    batch: tuple[torch.Tensor, ThinkingDelimiters, int], padding: int
) -> None:
    ids, d, prompt = batch
    state = thinking_state(ids, d, prompt_length=prompt)
    wider = torch.cat([torch.full((ids.shape[0], padding), PAD), ids], 1)
    shifted = thinking_state(wider, d, prompt_length=prompt + padding)
    for row in range(ids.shape[0]):
        alone = thinking_state(ids[row : row + 1], d, prompt_length=prompt)
        assert values(alone, 0) == values(state, row)
        moved = values(shifted, row)
        moved["thought_start"] -= padding
        assert moved == values(state, row)


@settings(max_examples=300, deadline=None)
@given(batches(), st.integers(0, 15))
def test_a_thinking_token_counts_one(batch: tuple[torch.Tensor, ThinkingDelimiters, int], token: int) -> None:
    ids, d, prompt = batch
    d = dataclasses.replace(d, lead_ids=())
    before = thinking_state(ids, d, prompt_length=prompt)
    after = thinking_state(torch.nn.functional.pad(ids, (0, 1), value=token), d, prompt_length=prompt)
    grown = after.used - before.used
    goes_on = before.thinking & after.thinking
    assert (grown[goes_on] == 1).all()
    assert (grown[before.thinking & ~after.thinking] <= 0).all()
    assert (grown[~before.thinking & ~after.thinking] == 0).all()


def test_thought_opened_by_the_model() -> None:
    row = [USER, A, *HEADER, OPEN, A, B]
    assert read(row[:4], SINGLE)["started"] is False
    assert read(row[:5], SINGLE) == read(row[:5], SINGLE, 4)
    assert read(row[:5], SINGLE)["at_start"] is True
    state = read(row, SINGLE, 4)
    assert (state["thinking"], state["used"], state["generated"], state["thought_start"]) == (True, 2, 3, 5)
    state = read([*row, CLOSE, A, A], SINGLE, 4)
    assert (state["closed"], state["used"], state["answer_tokens"]) == (True, 2, 2)


def test_line_written_by_the_template_is_no_thought() -> None:
    d = CASES["template"]
    state = read([USER, *HEADER, OPEN, A], d)
    assert (state["at_start"], state["used"], state["generated"], state["thought_start"]) == (True, 0, 0, 5)
    state = read([USER, *HEADER, OPEN, A, A, B], d)
    assert (state["at_start"], state["used"], state["generated"], state["thought_start"]) == (False, 2, 2, 5)


def test_earlier_thoughts_and_typed_markers_do_not_count() -> None:
    history = [USER, OPEN, A, *HEADER, OPEN, A, CLOSE, B, EOS, USER, OPEN, A, A]
    state = read([*history, *HEADER], SINGLE, len(history) + 2)
    assert (state["started"], state["used"], state["finished"]) == (False, 0, False)
    assert read([*history, CLOSE, *HEADER, OPEN, B], SINGLE)["used"] == 1


def test_turn_that_ended_in_the_prompt_is_history() -> None:
    prompt = [USER, A, *HEADER, OPEN, A, CLOSE, B, EOS, USER, A]
    state = read([*prompt, *HEADER, OPEN, A], SINGLE, len(prompt))
    assert (state["thinking"], state["used"], state["finished"]) == (True, 1, False)


def test_header_written_by_the_model_does_not_reset_the_count() -> None:
    prompt = [USER, *HEADER]
    assert read([*prompt, OPEN, A, A, CLOSE, *HEADER, OPEN, B], SINGLE, 3)["used"] == 2 + 1 + 1


def test_second_thought_counts_with_its_marker() -> None:
    row = [USER, *HEADER, 10, 11, 12, A, 14, 11, 13, B, 10, 11]
    state = read(row, SPELLED, 3)
    assert (state["thinking"], state["used"], state["open_progress"], state["answer_tokens"]) == (
        False,
        1,
        2,
        3,
    )
    state = read([*row, 12], SPELLED, 3)
    assert (state["thinking"], state["used"], state["open_progress"], state["at_start"]) == (
        True,
        4,
        0,
        False,
    )


def test_half_written_close_counts_until_it_is_complete() -> None:
    row = [USER, *HEADER, 10, 11, 12, A, 14, 11]
    state = read(row, SPELLED, 3)
    assert (state["thinking"], state["used"], state["close_progress"]) == (True, 3, 2)
    assert read([*row, 12], SPELLED, 3)["used"] == 1
    assert read([*row, A], SPELLED, 3)["used"] == 4


def test_prefilled_thought_counts() -> None:
    state = read([USER, *HEADER, OPEN, A, A, B], SINGLE, 6)
    assert (state["used"], state["generated"]) == (3, 1)


def test_completion_prompt_counts_an_open_marker_only_at_its_end() -> None:
    d = CASES["no header"]
    assert read([A, OPEN, B, A], d, 2)["used"] == 2
    assert read([OPEN, A, CLOSE, B, A], d, 4)["started"] is False
    assert read([OPEN, A, EOS, B, A], d, 4)["started"] is False


def test_end_of_sequence_ends_the_thought() -> None:
    state = read([USER, *HEADER, OPEN, A, EOS, EOS, OPEN], SINGLE, 3)
    assert (state["thinking"], state["finished"], state["closed"], state["used"]) == (False, True, False, 1)
    assert state["close_progress"] == state["open_progress"] == 0
    assert read([USER, *HEADER, A, EOS, 10, 11], SPELLED, 3)["open_progress"] == 0
    assert read([USER, *HEADER, 10, 11, 12, EOS, 14, 11], SPELLED, 3)["close_progress"] == 0


def test_end_of_sequence_after_a_prompt_of_nothing_else() -> None:
    for prompt in ([], [EOS]):
        assert read([*prompt, EOS], CASES["implicit"], len(prompt))["finished"] is True
    assert read([EOS, EOS], CASES["implicit"])["finished"] is False


def test_marker_needs_all_its_tokens_in_the_turn() -> None:
    d = CASES["spelled, no header"]
    assert read([10, 11, 12, A], d, 2)["started"] is False
    assert read([10, 11, 12, A], d, 3)["started"] is True


def test_harmony_header_after_a_thought_goes_on_with_the_turn() -> None:
    start, assistant, channel, analysis, final, message, stop = range(20, 27)
    header = (start, assistant)
    d = ThinkingDelimiters(
        (channel, analysis, message), ((stop,),), (stop,), header, eos_ids=(EOS,), resumes_turn=True
    )
    prompt = [start, USER, message, A, stop, start, assistant, channel, final, message, B, stop]
    prompt += [start, USER, message, A, stop, start, assistant]
    row = [*prompt, channel, analysis, message, A, A, stop, start, assistant, channel, final, message]
    for prompt_length in (None, len(prompt)):
        state = read(row, d, prompt_length)
        assert (state["closed"], state["used"], state["generated"]) == (True, 2, 11)
    assert read(prompt, d)["started"] is False


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("prompt_length", [None, 0, 5])
def test_empty_rows(name: str, prompt_length: int | None) -> None:
    state = thinking_state(torch.zeros((2, 0), dtype=torch.int64), CASES[name], prompt_length=prompt_length)
    assert values(state, 1) == reference([], CASES[name], prompt_length)


def test_types() -> None:
    state = thinking_state(torch.tensor([[USER, *HEADER, OPEN, A]]), SINGLE)
    flags = {"thinking", "started", "at_start", "closed", "finished"}
    for field in dataclasses.fields(state):
        tensor = getattr(state, field.name)
        assert tensor.shape == (1,)
        assert tensor.dtype == (torch.bool if field.name in flags else torch.int64), field.name


@settings(max_examples=50, deadline=None)
@given(batches())
def test_tokens_are_left_alone(batch: tuple[torch.Tensor, ThinkingDelimiters, int]) -> None:
    ids, d, prompt = batch
    assume(ids.numel())
    kept = ids.clone()
    thinking_state(ids, d, prompt_length=prompt)
    assert torch.equal(ids, kept)
