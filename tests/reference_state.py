"""Where a row stands in its thought, by walking over its tokens one by one: what the tensor code is measured by.

Written from the definitions in docs/architecture.md and of ``ThinkingState``, with no thought of speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from budgetctl.delimiters import ThinkingDelimiters, Tokens


@dataclass
class Walk:
    """What was met on the way over one row; the rest is derived.

    Args:
        row: its tokens.
        start: column of the turn's first token.
        end: column of the end of sequence, the row's length without one.
        inside: in a thought.
        thought: columns of the thinking tokens; not those of later open markers.
        markers: tokens of later open markers.
        first: column of the first thinking token, None before a thought was opened.
        block: column after the latest open marker.
        opens: thoughts opened.
        closes: columns that completed a close.
        stray: columns that completed a close in an answer, where it closes nothing.
        outside: tokens outside a thought since the last close, without the one that completes a close or an open.
        since: first column after the last close.
        generated: tokens after the prompt.
    """

    row: Sequence[int]
    delimiters: ThinkingDelimiters
    start: int
    end: int
    inside: bool
    thought: list[int] = field(default_factory=list)
    markers: int = 0
    first: int | None = None
    block: int = 0
    opens: int = 0
    closes: list[int] = field(default_factory=list)
    stray: list[int] = field(default_factory=list)
    outside: int = 0
    since: int = 0
    generated: int = 0

    @property
    def used(self) -> int:
        return len(self.thought) + self.markers

    @property
    def finished(self) -> bool:
        return self.end < len(self.row)

    @property
    def thinking(self) -> bool:
        return self.inside and not self.finished

    @property
    def close_progress(self) -> int:
        """Tokens of the forced close that are written so far."""
        begin = max(self.block, self.first or 0)
        return half_written(self.row[begin:], self.delimiters.forced_end_ids) if self.thinking else 0

    @property
    def content(self) -> int:
        """Thinking tokens without a half-written forced close."""
        return self.used - min(self.close_progress, self.used)

    def fields(self) -> dict[str, int | bool]:
        """The fields of ``ThinkingState``."""
        outside = not self.inside and not self.finished
        opening = half_written(self.row[self.since :], self.delimiters.open_ids) if outside else 0
        started = self.first is not None
        closed = started and not self.inside
        return {
            "thinking": self.thinking,
            "used": self.used,
            "started": started,
            "at_start": self.thinking and self.used == 0,
            "closed": closed,
            "finished": self.finished,
            "close_progress": self.close_progress,
            "open_progress": opening,
            "thought_start": len(self.row) if self.first is None else self.first,
            "generated": self.generated,
            "answer_tokens": self.end - 1 - self.closes[-1] if closed and self.closes else 0,
        }


def walk(row: Sequence[int], d: ThinkingDelimiters, prompt_length: int | None) -> Walk:
    """Read one row. Without ``prompt_length`` not for markers with ``resumes_turn``, whose turns go on."""
    row = list(row)
    assert prompt_length is not None or not d.resumes_turn
    prompt = len(row) if prompt_length is None else min(prompt_length, len(row))
    start, header = _turn_start(row, d, prompt, prompt_length is not None)
    seen = Walk(row, d, start, _turn_end(row, d, start, prompt_length), inside=d.implicit, since=start)
    seen.block = start
    templated = False  # whether the template wrote the first marker
    if d.implicit:
        seen.first, seen.opens = start, 1
    for at in range(start, seen.end):
        if seen.inside:
            if size := _ends_here(row, at, d.all_ends, start):
                seen.thought = [column for column in seen.thought if column <= at - size]
                given = prompt_length is None or at < prompt
                if given and not seen.closes and not d.implicit:
                    _skip_blank(seen, at - size + 1)
                seen.inside, seen.since, seen.outside = False, at + 1, 0
                seen.closes.append(at)
            elif seen.first is None or at >= seen.first:
                seen.thought.append(at)
        elif size := _ends_here(row, at, d.all_opens, start):
            seen.inside, seen.block = True, at + 1
            seen.opens += 1
            if seen.first is None:
                seen.first = at + 1 + _lead(row[at + 1 : seen.end], d.lead_ids)
                templated = header and d.opened_by_template and at + 1 - size == start
            else:
                seen.markers += size
        else:
            if seen.first is not None and _ends_here(row, at, d.end_variants, seen.since):
                seen.stray.append(at)
            seen.outside += 1
    if prompt_length is None:
        prompt = seen.first if templated and seen.first is not None else start
    seen.generated = len(row) - prompt
    return seen


def half_written(tokens: Sequence[int], marker: Tokens) -> int:
    """Length of the longest proper beginning of ``marker`` with which ``tokens`` end."""
    sizes = range(min(len(marker) - 1, len(tokens)), 0, -1)
    return next((size for size in sizes if tuple(tokens[len(tokens) - size :]) == marker[:size]), 0)


def _ends_here(row: list[int], at: int, variants: Iterable[Tokens], begin: int) -> int:
    """Length of the longest variant that ends at column ``at`` and does not begin before ``begin``, else 0."""
    lengths = (
        len(variant)
        for variant in variants
        if at + 1 - len(variant) >= begin and tuple(row[at + 1 - len(variant) : at + 1]) == variant
    )
    return max(lengths, default=0)


def _turn_start(row: list[int], d: ThinkingDelimiters, prompt: int, known: bool) -> tuple[int, bool]:
    """First column of the turn, and whether a header stands before it."""
    header = (d.turn_start_ids,) if d.turn_start_ids else ()
    for at in range(prompt - 1, -1, -1):
        if _ends_here(row, at, header, 0):
            return at + 1, True
        if known and row[at] in d.eos_ids:
            break  # the turn of an earlier header has ended
    if not known:
        return 0, False
    # No chat: the prompt may end with an open marker and the beginning of a thought.
    for at in range(prompt - 1, -1, -1):
        if size := _ends_here(row, at, d.all_opens, 0):
            return at + 1 - size, False
        if row[at] in d.eos_ids or _ends_here(row, at, d.all_ends, 0):
            break
    return prompt, False


def _turn_end(row: list[int], d: ThinkingDelimiters, start: int, prompt_length: int | None) -> int:
    """Column of the first end of sequence in the turn; where no prompt is known, a row may begin with padding."""
    padding = prompt_length is None
    for at, token in enumerate(row):
        padding = padding and token in d.eos_ids
        if token in d.eos_ids and not padding and at >= start:
            return at
    return len(row)


def _lead(tokens: list[int], lead: Tokens) -> int:
    return len(lead) if tuple(tokens[: len(lead)]) == lead else 0


def _skip_blank(seen: Walk, close: int) -> None:
    """White space between the markers of an empty thought, whose close begins at column ``close``, is no thought."""
    assert seen.first is not None
    if tuple(seen.row[seen.block : close]) in seen.delimiters.blank_ids:
        seen.first, seen.thought = max(seen.first, close), []


@dataclass
class Count:
    """What one row did: ``used`` thinking tokens (an unfinished forced close not counted), whether a thought is
    ``open``, thoughts closed and opened, closes after a thought that closed nothing, tokens after the last close."""

    used: int
    open: bool
    closes: int
    stray: int
    opens: int
    answer: int


def count_thought(ids: Sequence[int], prompt_length: int, markers: ThinkingDelimiters) -> Count:
    """The same in short. A thought that the end of sequence cuts is still ``open``."""
    seen = walk(ids, markers, prompt_length)
    return Count(seen.content, seen.inside, len(seen.closes), len(seen.stray), seen.opens, seen.outside)
