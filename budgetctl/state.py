"""Where every row stands in its thought, as a pure function of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.marker_search import (
    CLOSES,
    EOS,
    HEADERS,
    OPENS,
    Markers,
    any_of,
    blank_length,
    first_column,
    highest,
    last_column,
    lead_length,
    longest_of,
    marker_progress,
    match_lengths,
)
from budgetctl.on_device import columns_of, constant

__all__ = ["ThinkingState", "marker_progress", "match_lengths", "thinking_state"]


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
    """Opens and closes that change the state, [B, T] bool at the column that completes one; and whether the row is in a
    thought ``after`` each column."""

    opens: Tensor
    closes: Tensor
    after: Tensor


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
    columns = columns_of(width, ids.device)
    prompt: int | Tensor | None = prompt_length
    if isinstance(prompt_length, Tensor):
        prompt = prompt_length.to(ids.device).clamp(max=width)
    elif prompt_length is not None and prompt_length > width:
        prompt = width
    markers = Markers.find(ids, delimiters)
    start, header_found = _turn_start(ids, columns, markers, delimiters, prompt)

    begins, end = columns >= start[:, None], None
    if markers.counts[EOS]:
        ending = markers.any(EOS) & begins
        if (
            prompt is None
        ):  # the row's first tokens may be padding; a known prompt ends before any that counts
            ending &= (~markers.any(EOS)).cumsum(1) > 0
        end = first_column(ending)
    before_end = None if end is None else columns < end[:, None]
    there = _from(markers, columns, start, begins)
    there = there if before_end is None else there & before_end
    opening, closing = there[: markers.counts[OPENS]], there[markers.counts[OPENS] :]
    events = _events(columns, opening, closing, delimiters)

    first_open = first_column(events.opens)
    opened = first_open < width
    started = torch.ones_like(opened) if delimiters.implicit else opened
    if delimiters.implicit:
        thought_start = start
    else:
        thought_start = (first_open + 1).clamp(max=width)
        lead = lead_length(ids, thought_start, end, delimiters.lead_ids)
        white = blank_length(ids, thought_start, events.closes, closing, delimiters, prompt)
        if lead is not None and white is not None:
            lead = torch.maximum(lead, white)
        more = white if lead is None else lead
        thought_start = thought_start if more is None else thought_start + more

    used = _content(columns, events, closing, delimiters, thought_start, before_end).sum(1)
    if any(len(marker) > 1 for marker in delimiters.all_opens):
        # Of a marker that opens again, all tokens count; its last one does already.
        again = events.opens if delimiters.implicit else events.opens & (columns > first_open[:, None])
        used = used + (longest_of(opening, delimiters.all_opens) - 1).mul(again).sum(1)

    inside = events.after[:, -1]
    finished = torch.zeros_like(inside) if end is None else end < width
    thinking = inside if end is None else inside > finished  # and not
    closed = started > inside
    if prompt is not None:
        generated = start.new_full((rows,), width - prompt) if isinstance(prompt, int) else width - prompt
    else:
        marker = longest_of(opening, delimiters.all_opens).gather(1, first_open.clamp(max=width - 1)[:, None])
        by_template = (
            delimiters.opened_by_template & header_found & opened & (first_open + 1 - marker[:, 0] == start)
        )
        generated = width - torch.where(by_template, thought_start, start)
    after_close = width if end is None else end
    return ThinkingState(
        thinking=thinking,
        used=used,
        started=started,
        at_start=thinking & (used == 0),
        closed=closed,
        finished=finished,
        close_progress=marker_progress(ids, delimiters.forced_end_ids, thought_start, thinking),
        open_progress=marker_progress(ids, delimiters.open_ids, start, ~(inside | finished)),
        thought_start=thought_start,
        generated=generated,
        answer_tokens=torch.where(closed, after_close - 1 - last_column(events.closes), 0),
    )


def _turn_start(
    ids: Tensor,
    columns: Tensor,
    markers: Markers,
    delimiters: ThinkingDelimiters,
    prompt: int | Tensor | None,
) -> tuple[Tensor, Tensor]:
    """First column of the turn, and whether a header stands before it, [B] each."""
    rows = len(ids)
    if prompt is None:
        if not markers.counts[HEADERS]:
            return columns.new_zeros(rows), torch.zeros(rows, dtype=torch.bool, device=ids.device)
        headers = markers.any(HEADERS)
        if delimiters.resumes_turn:
            headers = headers & ~_after_thought(columns, headers, markers, delimiters)
        start = last_column(headers) + 1
        return start, start > 0
    # Only what stands in the prompt counts.
    if isinstance(prompt, int):
        lasts = last_column(markers.found[..., :prompt])
        bare = constant((prompt,), ids.device).expand(rows)
    else:
        lasts = last_column(markers.found & (columns < prompt[:, None]))
        bare = prompt
    last_end = None
    if markers.counts[EOS]:
        last_end = highest(lasts[markers.of(EOS)])
    if markers.counts[OPENS]:
        # Completion-style prompt: only an open marker that nothing follows but thought.
        opens = lasts[markers.of(OPENS)]
        last_open, last_close = highest(opens), highest(lasts[markers.of(CLOSES)])
        left_open = last_open > (last_close if last_end is None else torch.maximum(last_close, last_end))
        sizes = markers.sizes[markers.of(OPENS)]
        before: int | Tensor = sizes[0] - 1
        if len(set(sizes)) > 1:
            size = constant(sizes, ids.device)[:, None]
            before = torch.where(opens == last_open, size, 0).amax(0) - 1
        bare = torch.where(left_open, last_open - before, bare)
    if not markers.counts[HEADERS]:
        return bare, torch.zeros_like(bare, dtype=torch.bool)
    start = lasts[0] + 1
    found = start > (0 if last_end is None else last_end.clamp(min=0))
    return torch.where(found, start, bare), found


def _after_thought(
    columns: Tensor, headers: Tensor, markers: Markers, delimiters: ThinkingDelimiters
) -> Tensor:
    """[B, T] bool: a header that ends here would directly follow the close of a thought.

    Only an open marker that directly follows one of the ``headers`` [B, T] counts: one that a user typed does not.
    """
    width = len(columns)
    opens, closes = (markers.found[markers.of(kind)] for kind in (OPENS, CLOSES))
    before = columns - longest_of(opens, delimiters.all_opens)
    opens = opens & (before >= 0) & headers.gather(1, before.clamp(min=0))
    events = _events(columns, opens, closes, delimiters)
    shift = len(delimiters.turn_start_ids)
    after = torch.zeros_like(headers)
    after[:, shift:] = events.closes[:, : max(width - shift, 0)]
    return after


def _from(markers: Markers, columns: Tensor, start: Tensor, begins: Tensor) -> Tensor:
    """[n, B, T] bool: opens, then closes, that begin at or after ``start`` [B]; ``begins`` [B, T] are columns from there."""
    first = markers.of(OPENS).start
    found, sizes = markers.found[first:], markers.sizes[first:]
    if max(sizes) == 1:
        return found & begins
    shift = constant(tuple(size - 1 for size in sizes), columns.device)
    return found & (columns >= (start + shift[:, None])[:, :, None])


def _events(columns: Tensor, opens: Tensor, closes: Tensor, delimiters: ThinkingDelimiters) -> _Events:
    """The opens and closes that change the state, of all that stand there, [n, B, T] bool each.

    Markers of the two kinds cannot overlap (``ThinkingDelimiters`` refuses such), so the kind of the last complete
    marker tells whether a thought is open, and no scan over the columns is needed.
    """
    opening, closing = any_of(opens), any_of(closes)
    last_open, last_close = torch.where(torch.stack([opening, closing]), columns, -1).cummax(2).values
    after = last_open > last_close
    if delimiters.implicit:
        after = after | (last_close < 0)
    before = pad(after[:, :-1], (1, 0), value=delimiters.implicit)
    return _Events(opening > before, closing & before, after)  # and not


def _content(
    columns: Tensor,
    events: _Events,
    closing: Tensor,
    delimiters: ThinkingDelimiters,
    thought_start: Tensor,
    before_end: Tensor | None,
) -> Tensor:
    """[B, T] bool: tokens in a thought that are neither lead nor part of a close, and the last of markers that open it
    again.

    Args:
        closing: [n, B, T] bool, closes that stand there.
        before_end: [B, T] bool, columns before the end of sequence.
    """
    content = events.after & (columns >= thought_start[:, None])
    if before_end is not None:
        content = content & before_end
    ends = delimiters.all_ends
    longest = max(map(len, ends))
    if longest == 1:
        return content
    # Tokens of a close before its last one.
    size = torch.where(events.closes, longest_of(closing, ends), 0)
    width = len(columns)
    for offset in range(1, longest):
        if offset < width:
            content = content & pad(size[:, offset:] <= offset, (0, offset), value=True)
    return content
