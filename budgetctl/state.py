"""Where every row stands in its thought, as a pure function of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from budgetctl.delimiters import ThinkingDelimiters, Tokens


@dataclass
class ThinkingState:
    """State of B rows of T tokens; every tensor is [B], on the device of the tokens; counts are int64 tokens.

    Only the current turn counts: what follows the last assistant header, up to the first end of sequence.

    Args:
        thinking: bool, inside an open thought.
        used: thinking tokens over all blocks of the turn, also those given in the prompt. Not counted: the first
            open marker, the template's ``lead_ids`` after it, completed closes, and the ``blank_ids`` of a thought
            that the prompt opens and closes with nothing else. Counted: the marker of a second opening, a half-written
            close.
        started: bool, a thought was opened.
        at_start: bool, thinking, and the first thinking token is next.
        closed: bool, a thought was opened and the last one closed.
        finished: bool, the end of sequence was generated.
        close_progress: length of the longest proper beginning of ``forced_end_ids`` that ends the open thought.
        open_progress: outside a thought, the same of ``open_ids`` and the answer so far.
        thought_start: column of the first thinking token, T when not started.
        generated: tokens after the prompt. Without ``prompt_length``, after the header and the thought's marker
            that the template wrote.
        answer_tokens: tokens after the last completed close, 0 while thinking or when nothing was closed.
    """

    thinking: Tensor
    used: Tensor
    started: Tensor
    at_start: Tensor
    closed: Tensor
    finished: Tensor
    close_progress: Tensor
    open_progress: Tensor
    thought_start: Tensor
    generated: Tensor
    answer_tokens: Tensor


class _Events(NamedTuple):
    """Opens and closes [B, T]: the marker's length at the column that completes it, 0 elsewhere.

    ``inside`` [B, T + 1]: whether the row is in a thought before each column, and after the last.
    """

    opens: Tensor
    closes: Tensor
    inside: Tensor


def thinking_state(
    input_ids: Tensor, delimiters: ThinkingDelimiters, *, prompt_length: int | Tensor | None = None
) -> ThinkingState:
    """Read the state of each row from its tokens.

    The turn starts after the last assistant header of the prompt, so markers in earlier messages do not count, also
    when a user typed them. A header whose turn has ended inside the prompt is history. Without a header the turn is
    what follows the prompt, and an open marker counts that is the last marker of the prompt. Inside the turn a close
    outside a thought and an open inside one are content; a marker needs all of its tokens inside the turn.

    Args:
        input_ids: [B, T] int64, prompt and generated tokens, left-padded with any id.
        delimiters: the markers.
        prompt_length: padded width of the prompt, one for all rows or [B]; a constant of the request. Give it where it is known: without it a
            header that the model writes by itself starts a new turn, and a row without any header starts at 0.
    """
    ids = input_ids
    rows, width = ids.shape
    if width == 0:  # as a prompt of one token that is nothing
        blank = thinking_state(ids.new_full((rows, 1), -1), delimiters, prompt_length=1)
        blank.thought_start = torch.zeros_like(blank.thought_start)
        return blank
    columns = torch.arange(width, device=ids.device).expand(rows, width)
    prompt = None
    if isinstance(prompt_length, Tensor):
        prompt = prompt_length.to(ids.device).clamp(max=width)
    elif prompt_length is not None:
        prompt = columns.new_full((rows,), min(prompt_length, width))
    eos = _is_any(ids, delimiters.eos_ids)
    start, header_found = _turn_start(ids, columns, eos, delimiters, prompt)

    ending = eos & (columns >= start[:, None])
    if prompt is None:  # the row's first tokens may be padding; a known prompt ends before any that counts
        ending &= (~eos).cumsum(1) > 0
    end = _first(ending)
    live = (columns >= start[:, None]) & (columns < end[:, None])
    opens = match_lengths(ids, delimiters.all_opens, start) * live
    closes = match_lengths(ids, delimiters.all_ends, start) * live
    events = _events(columns, opens, closes, start, delimiters)

    first_open = _first(events.opens > 0)
    opened = first_open < width
    thinking_to_the_end = events.inside[:, -1]
    started = opened | delimiters.implicit
    if delimiters.implicit:
        thought_start, again = start, events.opens
    else:
        thought_start = torch.where(opened, first_open + 1, width)
        lead = _lead_length(ids, thought_start, end, delimiters.lead_ids)
        white = _blank_length(ids, thought_start, events.closes, delimiters.blank_ids, prompt)
        thought_start = thought_start + torch.maximum(lead, white)
        again = events.opens.masked_fill(columns == first_open[:, None], 0)

    # Thinking tokens: columns in a thought that are neither lead nor part of a close; markers of later openings.
    closing = torch.zeros_like(live)
    for offset in range(max(len(v) for v in delimiters.all_ends)):
        closing[:, : max(width - offset, 0)] |= events.closes[:, offset:] > offset
    content = events.inside[:, :-1] & live & ~closing & (columns >= thought_start[:, None])
    used = content.sum(1) + again.sum(1)

    finished = end < width
    thinking = thinking_to_the_end & ~finished
    last_close = _last(events.closes > 0)
    closed = started & ~thinking_to_the_end
    if prompt is not None:
        generated = width - prompt
    else:
        marker = (
            events.opens.gather(1, first_open.clamp(max=max(width - 1, 0))[:, None])[:, 0] if width else start
        )
        by_template = (
            delimiters.opened_by_template & header_found & opened & (first_open + 1 - marker == start)
        )
        generated = width - torch.where(by_template, thought_start, start)
    return ThinkingState(
        thinking=thinking,
        used=used,
        started=started,
        at_start=thinking & (used == 0),
        closed=closed,
        finished=finished,
        close_progress=marker_progress(ids, delimiters.forced_end_ids, thought_start, thinking),
        open_progress=marker_progress(ids, delimiters.open_ids, start, ~thinking_to_the_end & ~finished),
        thought_start=thought_start,
        generated=generated,
        answer_tokens=torch.where(closed, end - 1 - last_close, 0),
    )


def _turn_start(
    ids: Tensor, columns: Tensor, eos: Tensor, delimiters: ThinkingDelimiters, prompt: Tensor | None
) -> tuple[Tensor, Tensor]:
    """First column of the turn, and whether a header stands before it, [B] each."""
    zero = torch.zeros(ids.shape[0], dtype=torch.int64, device=ids.device)
    headers = match_lengths(ids, (delimiters.turn_start_ids,), zero) > 0
    if prompt is not None:
        headers = headers & (columns < prompt[:, None])
    elif delimiters.resumes_turn:
        headers = headers & ~_after_thought(ids, columns, headers, delimiters)
    start = _last(headers) + 1
    found = start > 0
    if prompt is None:
        return start, found
    in_prompt = columns < prompt[:, None]
    last_end = _last(eos & in_prompt)
    found = found & (last_end < start)
    # Completion-style prompt: only an open marker that nothing follows but thought.
    opens = match_lengths(ids, delimiters.all_opens, zero).masked_fill(~in_prompt, 0)
    closes = match_lengths(ids, delimiters.all_ends, zero).masked_fill(~in_prompt, 0)
    last_open = _last(opens > 0)
    left_open = last_open > torch.maximum(_last(closes > 0), last_end)
    length = opens.gather(1, last_open.clamp(min=0)[:, None])[:, 0]
    bare = torch.where(left_open, last_open + 1 - length, prompt)
    return torch.where(found, start, bare), found


def _after_thought(ids: Tensor, columns: Tensor, headers: Tensor, delimiters: ThinkingDelimiters) -> Tensor:
    """[B, T] bool: a header that ends here would directly follow the close of a thought.

    Only an open marker that directly follows one of the ``headers`` [B, T] counts: one that a user typed does not.
    """
    rows, width = ids.shape
    zero = torch.zeros(rows, dtype=torch.int64, device=ids.device)
    opens = match_lengths(ids, delimiters.all_opens, zero)
    before = columns - opens
    opens = opens * ((before >= 0) & headers.gather(1, before.clamp(min=0)))
    closes = match_lengths(ids, delimiters.all_ends, zero)
    events = _events(columns, opens, closes, zero, delimiters)
    shift = len(delimiters.turn_start_ids)
    after = torch.zeros_like(columns, dtype=torch.bool)
    after[:, shift:] = events.closes[:, : max(width - shift, 0)] > 0
    return after


def _events(
    columns: Tensor, opens: Tensor, closes: Tensor, start: Tensor, delimiters: ThinkingDelimiters
) -> _Events:
    """The opens and closes that change the state, of all that stand there ([B, T] lengths as in ``_Events``).

    Markers of the two kinds cannot overlap (``ThinkingDelimiters`` refuses such), so the kind of the last complete
    marker tells whether a thought is open, and no scan over the columns is needed.
    """
    last_open = torch.where(opens > 0, columns, -1).cummax(1).values
    last_close = torch.where(closes > 0, columns, -1).cummax(1).values
    inside = last_open > last_close
    if delimiters.implicit:
        inside = inside | (last_close < 0)
    before_all = torch.full_like(start[:, None], delimiters.implicit, dtype=torch.bool)
    inside = torch.cat([before_all, inside], 1)
    return _Events(opens * ~inside[:, :-1], closes * inside[:, :-1], inside)


def match_lengths(ids: Tensor, variants: tuple[Tokens, ...], start: Tensor) -> Tensor:
    """[B, T] int64: length of the longest variant that ends at each column and begins at or after ``start`` [B]."""
    rows, width = ids.shape
    lengths = torch.zeros((rows, width), dtype=torch.int64, device=ids.device)
    begins = torch.arange(width, device=ids.device) >= start[:, None]
    for variant in variants:
        size = len(variant)
        if size == 0 or size > width:
            continue
        hit = begins[:, : width - size + 1]
        for offset, token in enumerate(variant):
            hit = hit & (ids[:, offset : width - size + 1 + offset] == token)
        lengths[:, size - 1 :] = torch.maximum(lengths[:, size - 1 :], hit * size)
    return lengths


def _lead_length(ids: Tensor, thought_start: Tensor, end: Tensor, lead: Tokens) -> Tensor:
    """[B] length of ``lead`` where it stands complete at column ``thought_start``, else 0."""
    width = ids.shape[1]
    if not lead:
        return torch.zeros_like(thought_start)
    there = thought_start + len(lead) <= end
    for offset, token in enumerate(lead):
        column = (thought_start + offset).clamp(max=width - 1)
        there = there & (ids.gather(1, column[:, None])[:, 0] == token)
    return there * len(lead)


def _blank_length(
    ids: Tensor, begin: Tensor, closes: Tensor, blanks: tuple[Tokens, ...], prompt: Tensor | None
) -> Tensor:
    """[B] tokens from column ``begin`` to the first close, where they are one of ``blanks`` and the close stands in the
    prompt, else 0; without ``prompt`` any close may be the template's."""
    width = ids.shape[1]
    length = torch.zeros_like(begin)
    close = _first(closes > 0)
    size = closes.gather(1, close.clamp(max=width - 1)[:, None])[:, 0]
    between = close + 1 - size - begin
    given = close < (width if prompt is None else prompt)
    for blank in blanks:
        hit = given & (between == len(blank))
        for offset, token in enumerate(blank):
            column = (begin + offset).clamp(max=width - 1)
            hit = hit & (ids.gather(1, column[:, None])[:, 0] == token)
        length = torch.where(hit, len(blank), length)
    return length


def marker_progress(ids: Tensor, marker: Tokens, begin: Tensor, rows: Tensor) -> Tensor:
    """[B] length of the longest proper beginning of ``marker`` that ends the row, from column ``begin`` on.

    It never reaches back over a marker of the other kind, since the two cannot overlap.
    """
    width = ids.shape[1]
    progress = torch.zeros_like(begin)
    for size in range(1, min(len(marker), width + 1)):
        hit = rows & (begin <= width - size)
        for offset in range(size):
            hit = hit & (ids[:, width - size + offset] == marker[offset])
        progress = torch.where(hit, size, progress)
    return progress


def _is_any(ids: Tensor, tokens: Tokens) -> Tensor:
    found = torch.zeros_like(ids, dtype=torch.bool)
    for token in tokens:
        found = found | (ids == token)
    return found


def _first(mask: Tensor) -> Tensor:
    """[B] first true column of a [B, T] mask, T when there is none; T is at least 1."""
    width = mask.shape[1]
    return torch.where(mask, torch.arange(width, device=mask.device), width).amin(1)


def _last(mask: Tensor) -> Tensor:
    """[B] last true column of a [B, T] mask, -1 when there is none; T is at least 1."""
    return torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).amax(1)
