"""Readings of an engine's requests on the host, carried on token by token in one pass of NumPy over all rows.

What is kept of a slot is a function of its tokens, for the length that it was made for. It is gone on with where the
request has one more token, none of the others has changed, and the new one is plain (begins nothing and ends nothing);
other rows are read anew, and those alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.integrations.vllm.memory import hash_rows
from budgetctl.on_device import to_device
from budgetctl.prefix_hash import NEVER_0, mix
from budgetctl.prefix_reader import Reading, read_rows
from budgetctl.protect import Spans
from budgetctl.state import ThinkingState, marker_progress

Array = np.ndarray[Any, Any]

#: Rows of the table: first the fields that are bool.
_BOOLS = ("thinking", "started", "at_start", "closed", "finished")
_COUNTS = ("used", "close_progress", "open_progress", "thought_start", "generated", "answer_tokens")
_FIELDS = (*_BOOLS, *_COUNTS, "total", "start_key", "fence_marks")
_AT = {name: at for at, name in enumerate(_FIELDS)}
_UNREAD = -2


class HostReader:
    """Readings by slot, [F, S] int64 on the host.

    Args:
        delimiters: the markers.
        spans: what a close may not cut in two, on the CPU; None for nothing.
    """

    def __init__(self, delimiters: ThinkingDelimiters, spans: Spans | None) -> None:
        self._delimiters, self._spans = delimiters, spans
        markers = (*delimiters.all_opens, *delimiters.all_ends, delimiters.forced_end_ids)
        self._lasts = sorted({marker[-1] for marker in markers[:-1]} | set(delimiters.eos_ids))
        self._tail = max(map(len, markers))
        self._fence = None if spans is None else spans.fence.numpy()
        self._near = max(len(delimiters.lead_ids), self._tail)
        self._table = np.zeros((len(_FIELDS), 0), dtype=np.int64)
        #: Tokens that the reading of each slot was made for.
        self._lengths = np.zeros(0, dtype=np.int64)
        #: Last tokens of a row that the controller looks at.
        self.tail = self._tail + 2 + (0 if spans is None else len(spans.fence_end))

    def grow(self, slots: int) -> None:
        """Have room for so many slots."""
        missing = slots - len(self._lengths)
        if missing > 0:
            self._table = np.pad(self._table, ((0, 0), (0, missing)))
            self._lengths = np.pad(self._lengths, (0, missing), constant_values=_UNREAD)

    def forget(self, slot: int) -> None:
        """The tokens of the slot are others now."""
        self._lengths[slot] = _UNREAD

    def read(
        self, tokens: Array, begins: int, slots: Array, lengths: Array, prompts: Array, salts: Array
    ) -> Array:
        """The fields of each row, [F, B] int64; ``thought_start`` counts from the row's first token.

        Args:
            tokens: [S, T] int64 by slot, after ``begins`` columns of padding.
            begins: as said.
            slots: [B] int64.
            lengths: [B] int64, tokens of each row.
            prompts: [B] int64, tokens of each row's prompt.
            salts: [B] int64, of the tokens before those that are kept of each row.
        """
        fields, kept = self._table[:, slots], self._lengths[slots]
        grown = kept == lengths - 1
        last = tokens[slots, lengths + (begins - 1)]
        plain = grown & self._plain(fields, lengths, last)
        anew = ~(plain | (kept == lengths))
        if np.count_nonzero(plain):
            tails = None
            if self._tail > 1:
                at = lengths[:, None] + (begins - self._tail) + np.arange(self._tail)
                tails = tokens[slots[:, None], at]
            after = self._next(fields, lengths, last, salts, tails)
            fields = after if plain.all() else np.where(plain, after, fields)
        if np.count_nonzero(anew):
            at = anew.nonzero()[0]
            fields[:, at] = self._anew(tokens, begins, slots[at], lengths[at], prompts[at], salts[at])
        self._table[:, slots] = fields
        self._lengths[slots] = lengths
        return fields

    def reading(self, fields: Array, device: torch.device) -> Reading:
        """``fields`` [F, B] as tensors on the ``device``."""
        held = to_device(torch.from_numpy(fields), device)
        flags = (held[: len(_BOOLS)] != 0).unbind(0)
        counts = held[len(_BOOLS) :].unbind(0)
        total, start_key, fence_marks = counts[len(_COUNTS) :]
        thinking, started, at_start, closed, finished = flags
        used, close_progress, open_progress, thought_start, generated, answer_tokens = counts[: len(_COUNTS)]
        state = ThinkingState(
            thinking,
            used,
            started,
            at_start,
            closed,
            finished,
            close_progress,
            open_progress,
            thought_start,
            generated,
            answer_tokens,
        )
        return Reading(state, total, start_key, fence_marks)

    def _plain(self, fields: Array, lengths: Array, last: Array) -> Array:
        """[B] bool: the last token changes nothing but counts."""
        begun = fields[_AT["started"]] != 0
        # Near the start a marker may reach back before the turn, and a lead after the first marker be completed.
        length = np.where(begun, lengths - fields[_AT["thought_start"]], fields[_AT["generated"]] + 1)
        plain = length > self._near
        for token in self._lasts:
            plain &= last != token
        return plain | (fields[_AT["finished"]] != 0)

    def _next(self, before: Array, lengths: Array, last: Array, salts: Array, tails: Array | None) -> Array:
        """The fields one plain token later."""
        fields = before.copy()
        thinking, started, finished = (before[_AT[name]] != 0 for name in ("thinking", "started", "finished"))
        fields[_AT["used"]] += before[_AT["thinking"]]
        fields[_AT["at_start"]] = 0
        fields[_AT["generated"]] += 1
        fields[_AT["answer_tokens"]] += before[_AT["closed"]] & ~before[_AT["finished"]]
        fields[_AT["total"]] += mix(mix(lengths) ^ last)
        if self._fence is not None:
            fields[_AT["fence_marks"]] += self._fence[last] & started
        if tails is not None:
            fields[_AT["close_progress"]] = _progress(tails, self._delimiters.forced_end_ids, thinking)
            fields[_AT["open_progress"]] = _progress(tails, self._delimiters.open_ids, ~thinking & ~finished)
        if np.count_nonzero(started) < len(started):
            key = _hash_of(_hash_of(fields[_AT["total"]], lengths), salts)
            fields[_AT["thought_start"]] = np.where(started, before[_AT["thought_start"]], lengths)
            fields[_AT["start_key"]] = np.where(started, before[_AT["start_key"]], key)
        return fields

    def _anew(
        self, tokens: Array, begins: int, slots: Array, lengths: Array, prompts: Array, salts: Array
    ) -> Array:
        """The fields [F, B] of rows that are read from their first token on."""
        width = int(lengths.max())
        padding = width - lengths
        at = np.arange(width) - padding[:, None]
        rows = torch.from_numpy(np.where(at >= 0, tokens[slots[:, None], np.maximum(at, 0) + begins], 0))
        margin = torch.from_numpy(padding)
        found = read_rows(rows, self._delimiters, torch.from_numpy(padding + prompts), self._spans)
        start = found.state.thought_start
        fields = np.empty((len(_FIELDS), len(slots)), dtype=np.int64)
        for name in (*_BOOLS, *_COUNTS):
            fields[_AT[name]] = getattr(found.state, name).numpy()
        fields[_AT["thought_start"]] -= padding
        fields[_AT["fence_marks"]] = found.fence_marks.numpy()
        own = np.where(at >= 0, mix(mix(at + 1) ^ rows.numpy()), 0)
        fields[_AT["total"]] = own.sum(1)
        key = hash_rows(rows, margin, start).numpy()
        fields[_AT["start_key"]] = _hash_of(key, salts)
        return fields


def _progress(tails: Array, marker: Tokens, rows: Array) -> Array:
    """[B] ``marker_progress`` at the end of the rows of ``rows`` [B] bool, by their last tokens [B, t]."""
    if len(marker) < 2:
        return np.zeros(len(rows), dtype=np.int64)
    zero = torch.zeros(len(rows), dtype=torch.int64)
    return marker_progress(torch.from_numpy(tails), marker, zero, torch.from_numpy(rows)).numpy()


def _hash_of(totals: Array, lengths: Array) -> Array:
    """``prefix_hash.hash_of``."""
    return (totals ^ lengths) | NEVER_0
