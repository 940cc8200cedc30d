"""``thinking_state`` of one row on the host: few of its tokens can end a marker, and only at those anything is done.

A hundred operations on tensors cost more than a walk over a prompt's last turn; this is for rows that come one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from budgetctl.delimiters import ThinkingDelimiters, Tokens


class RowState(NamedTuple):
    """The fields of :class:`~budgetctl.state.ThinkingState` of one row."""

    thinking: bool
    used: int
    started: bool
    at_start: bool
    closed: bool
    finished: bool
    close_progress: int
    open_progress: int
    thought_start: int
    generated: int
    answer_tokens: int


class _Marker(NamedTuple):
    """A marker that changes the state: its last column, its tokens, and whether it opens a thought."""

    column: int
    size: int
    opens: bool


class RowReader:
    """Reads rows with one set of markers.

    Args:
        delimiters: the markers.
    """

    def __init__(self, delimiters: ThinkingDelimiters) -> None:
        self._delimiters = delimiters
        self._opens, self._closes = _by_last(delimiters.all_opens), _by_last(delimiters.all_ends)
        self._lasts = frozenset(self._opens) | frozenset(self._closes)
        self._eos_ids = frozenset(delimiters.eos_ids)

    def read(self, row: Sequence[int], prompt: int) -> RowState:
        """The state of a ``row`` of one token or more, of which ``prompt`` are the prompt's."""
        thought, width = self._delimiters, len(row)
        row, prompt = list(row), min(prompt, width)
        start = self._turn_start(row, prompt)
        ends = [at for at in range(start, width) if row[at] in self._eos_ids]
        end = ends[0] if ends else width
        events = self._events(row, start, end)
        first = next((event.column for event in events if event.opens), None)
        first_close = next((event for event in events if not event.opens), None)
        started = thought.implicit or first is not None
        begin = start
        if not thought.implicit:
            begin = width
            if first is not None:
                begin = first + 1
                lead = len(thought.lead_ids) if _stands(row[:end], thought.lead_ids, begin) else 0
                begin += max(lead, self._blank(row, begin, first_close, prompt))
        inside, since, used, last_close = thought.implicit, start, 0, -1
        for column, size, opens in events:
            if opens:
                # The marker of a later opening counts as thought.
                used += size if thought.implicit or column != first else 0
                since = column + 1
            else:
                used += max(column - size + 1 - max(since, begin), 0)
                last_close = column
            inside = opens
        if inside:
            used += max(end - max(since, begin), 0)
        finished = end < width
        thinking, closed = inside and not finished, started and not inside
        return RowState(
            thinking=thinking,
            used=used,
            started=started,
            at_start=thinking and used == 0,
            closed=closed,
            finished=finished,
            close_progress=_progress(row, thought.forced_end_ids, begin) if thinking else 0,
            open_progress=_progress(row, thought.open_ids, start) if not inside and not finished else 0,
            thought_start=begin,
            generated=width - prompt,
            answer_tokens=end - 1 - last_close if closed else 0,
        )

    def _turn_start(self, row: list[int], prompt: int) -> int:
        """First column of the turn."""
        header = self._delimiters.turn_start_ids
        start = 0
        for at in range(prompt - len(header), -1, -1) if header else ():
            if row[at] == header[0] and _stands(row, header, at):
                start = at + len(header)
                break
        last_end = max((at for at in range(prompt) if row[at] in self._eos_ids), default=-1)
        if start > 0 and last_end < start:
            return start
        # Completion-style prompt: only an open marker that nothing follows but thought.
        for at in range(prompt - 1, last_end, -1):
            if row[at] in self._lasts:
                size = _longest(row, self._opens, at, 0)
                if size or _longest(row, self._closes, at, 0):
                    return at + 1 - size if size else prompt
        return prompt

    def _events(self, row: list[int], start: int, end: int) -> list[_Marker]:
        """The markers between ``start`` and ``end`` that change the state, in order."""
        events = []
        inside = self._delimiters.implicit
        for at in range(start, end):
            if row[at] in self._lasts:
                size = _longest(row, self._closes if inside else self._opens, at, start)
                if size:
                    inside = not inside
                    events.append(_Marker(at, size, inside))
        return events

    def _blank(self, row: list[int], begin: int, close: _Marker | None, prompt: int) -> int:
        """Tokens of white space that a template wrote between the markers."""
        if close is None or close.column >= prompt:
            return 0
        between = close.column + 1 - close.size - begin
        blanks = self._delimiters.blank_ids
        known = any(len(blank) == between and _stands(row, blank, begin) for blank in blanks)
        return between if known else 0


def _by_last(markers: tuple[Tokens, ...]) -> dict[int, list[Tokens]]:
    """The markers by their last token, the longest first."""
    found: dict[int, list[Tokens]] = {}
    for marker in sorted(markers, key=len, reverse=True):
        if marker:
            found.setdefault(marker[-1], []).append(marker)
    return found


def _longest(row: list[int], markers: dict[int, list[Tokens]], at: int, start: int) -> int:
    """Tokens of the longest marker that ends at column ``at`` and begins at ``start`` or after; 0 for none."""
    for marker in markers.get(row[at], ()):
        begin = at + 1 - len(marker)
        if begin >= start and _stands(row, marker, begin):
            return len(marker)
    return 0


def _stands(row: list[int], tokens: Tokens, at: int) -> bool:
    return tuple(row[at : at + len(tokens)]) == tuple(tokens)


def _progress(row: list[int], marker: Tokens, begin: int) -> int:
    """Tokens of the longest proper beginning of ``marker`` that ends the row, from column ``begin`` on."""
    for size in range(min(len(marker) - 1, len(row) - begin), 0, -1):
        if _stands(row, marker[:size], len(row) - size):
            return size
    return 0
