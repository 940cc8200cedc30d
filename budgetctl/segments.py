"""A finished sequence taken apart: thought, answer, and where the close stands (on the host, for reports and traces)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.state import thinking_state


@dataclass(frozen=True)
class Segments:
    """Token ids of one generated sequence.

    ``thought`` has all thinking tokens (of all blocks; markers of later blocks included), ``messages`` what follows the
    last close without end-of-sequence and padding: one message, or those that ``answer_headers`` begin, which are left
    out as are the ends of messages. ``close_span`` are the columns of the last close, None when the thought was not
    closed; a tool call that ends the thought is its close and begins the answer. ``stray_markers`` counts markers of a
    thought that stand in the answer. ``columns`` are those of the thought's tokens; tokens of it that the prompt holds are
    put at the prompt's end, whatever stands between them.
    """

    thought: tuple[int, ...]
    messages: tuple[Tokens, ...]
    close_span: tuple[int, int] | None
    finished: bool
    stray_markers: int
    columns: tuple[int, ...]

    @property
    def answer(self) -> Tokens:
        """The tokens of all messages."""
        return tuple(token for message in self.messages for token in message)


def _match(ids: Sequence[int], stop: int, begin: int, variants: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest variant that ends before ``stop`` and begins at or after ``begin``, or 0."""
    fitting = (v for v in variants if stop - len(v) >= begin and tuple(ids[stop - len(v) : stop]) == v)
    return max(map(len, fitting), default=0)


def _messages(answer: Tokens, delimiters: ThinkingDelimiters) -> tuple[Tokens, ...]:
    """The messages of an answer, without their headers and ends, nor a header that is half-written when it stops."""
    headers = delimiters.answer_headers
    if not headers:
        return (answer,)
    markers = (*headers, *delimiters.natural_end_ids)
    messages: list[list[int]] = [[]]
    at = 0
    while at < len(answer):
        size = max((len(m) for m in markers if answer[at : at + len(m)] == m), default=0)
        if size:
            messages.append([])
            at += size
        elif any(answer[at : at + len(h)] == h[: len(answer) - at] for h in headers):
            break
        else:
            messages[-1].append(answer[at])
            at += 1
    return tuple(tuple(message) for message in messages if message)


def split_sequence(ids: Sequence[int], prompt_length: int, delimiters: ThinkingDelimiters) -> Segments:
    """Take one sequence (prompt of ``prompt_length`` tokens, then what was generated) apart."""
    whole = torch.tensor([list(ids)], dtype=torch.int64)
    before = thinking_state(whole[:, :prompt_length], delimiters, prompt_length=prompt_length)
    first = int(thinking_state(whole, delimiters, prompt_length=prompt_length).thought_start)
    thinking, started = bool(before.thinking), bool(before.started)
    # A marker may be half-written in the prompt.
    within = int(before.used if thinking else before.answer_tokens) if started else prompt_length
    longest = max(map(len, (*delimiters.all_opens, *delimiters.all_ends)))
    begin = prompt_length - min(within, longest - 1)
    # Columns of the tokens; what is already in the prompt stands at its end.
    thought = list(range(prompt_length - int(before.used), prompt_length))
    answer: list[int] = []
    close_span: tuple[int, int] | None = None
    stray, finished = 0, False
    for at in range(prompt_length, len(ids)):
        if ids[at] in delimiters.eos_ids:
            finished = True
            break
        opened = _match(ids, at + 1, begin, delimiters.all_opens)
        closed = _match(ids, at + 1, begin, delimiters.end_variants)
        called = _match(ids, at + 1, begin, delimiters.tool_call_ids) if thinking else 0
        (thought if thinking else answer).append(at)
        if thinking and (closed or called):
            close_span = (at + 1 - max(closed, called), at + 1)
            thought = [column for column in thought if column < close_span[0]]
            # The beginning of a tool call belongs to the answer.
            thinking, answer = False, list(range(*close_span)) if called > closed else []
        elif not thinking and opened:
            marker = range(at + 1 - opened, at + 1)
            answer = [column for column in answer if column < marker.start]
            thought += marker if started else ()
            thinking, started, close_span = True, True, None
        elif closed and not delimiters.resumes_turn:  # there, every message ends as a thought does
            stray += 1
    columns = tuple(column for column in thought if column >= first)
    return Segments(
        thought=tuple(ids[column] for column in columns),
        messages=_messages(tuple(ids[column] for column in answer), delimiters),
        close_span=close_span,
        finished=finished,
        stray_markers=stray,
        columns=columns,
    )
