"""Readings of an engine's requests on the host, carried on by their new tokens in one pass of NumPy over all rows.

What is kept of a slot is a function of its tokens, for the length that it was made for. It is gone on with where the
request has more tokens, none of the others has changed, and the new ones are plain (begin nothing and end nothing);
other rows are read anew, and those alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.on_device import to_device
from budgetctl.prefix_hash import NEVER_0, mix
from budgetctl.prefix_reader import Reading
from budgetctl.protect import Spans
from budgetctl.row_reader import RowReader
from budgetctl.state import ThinkingState, marker_progress

Array = np.ndarray[Any, Any]

#: Rows of the table: first the fields that are bool.
_BOOLS = ("thinking", "started", "at_start", "closed", "finished")
_COUNTS = ("used", "close_progress", "open_progress", "thought_start", "generated", "answer_tokens")
_STATE = (*_BOOLS, *_COUNTS)
_FIELDS = (*_STATE, "total", "start_key", "fence_marks")
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
        self._rows = RowReader(delimiters)
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
        gaps = np.where(kept == _UNREAD, 0, np.maximum(lengths - kept, 0))
        most = int(gaps.max())
        plain = gaps > 0
        if most:
            # The latest tokens of each row; those before its gap are none of the new ones.
            at = lengths[:, None] + (begins - max(most, self._tail)) + np.arange(max(most, self._tail))
            latest = tokens[slots[:, None], at]
            new = latest[:, -most:]
            fresh = np.arange(most, 0, -1) <= gaps[:, None]
            plain &= self._plain(fields, kept + 1, new, fresh)
        anew = ~(plain | (kept == lengths))
        if np.count_nonzero(plain):
            after = self._next(fields, lengths, gaps, new, fresh, latest[:, -self._tail :], salts)
            fields = after if plain.all() else np.where(plain, after, fields)
        if np.count_nonzero(anew):
            at = anew.nonzero()[0]
            fields[:, at] = self._anew(tokens, begins, slots[at], lengths[at], prompts[at], salts[at])
        self._table[:, slots] = fields
        self._lengths[slots] = lengths
        return fields

    def starts(self, fields: Array) -> Array:
        """[B] int64, where each thought starts, from the row's first token on, of ``fields`` [F, B]."""
        return fields[_AT["thought_start"]]

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

    def _plain(self, fields: Array, lengths: Array, new: Array, fresh: Array) -> Array:
        """[B] bool: the new tokens change nothing but counts.

        Args:
            fields: [F, B] of the rows without them.
            lengths: [B] int64, tokens of each row with the first of them.
            new: [B, m] int64, the last tokens of each row.
            fresh: [B, m] bool, which of them are new.
        """
        begun = fields[_AT["started"]] != 0
        # Near the start a marker may reach back before the turn, and a lead after the first marker be completed.
        length = np.where(begun, lengths - fields[_AT["thought_start"]], fields[_AT["generated"]] + 1)
        plain = length > self._near
        for token in self._lasts:
            plain &= ~((new == token) & fresh).any(1)
        return plain | (fields[_AT["finished"]] != 0)

    def _next(
        self,
        before: Array,
        lengths: Array,
        gaps: Array,
        new: Array,
        fresh: Array,
        tails: Array,
        salts: Array,
    ) -> Array:
        """The fields after ``gaps`` [B] plain tokens, which are the ``fresh`` ones of ``new`` [B, m]; ``tails`` [B, t] are
        the last tokens of the rows."""
        fields = before.copy()
        thinking, started, finished = (before[_AT[name]] != 0 for name in ("thinking", "started", "finished"))
        fields[_AT["used"]] += before[_AT["thinking"]] * gaps
        fields[_AT["at_start"]] = 0
        fields[_AT["generated"]] += gaps
        fields[_AT["answer_tokens"]] += (before[_AT["closed"]] & ~before[_AT["finished"]]) * gaps
        places = lengths[:, None] - np.arange(new.shape[1] - 1, -1, -1)
        fields[_AT["total"]] += (mix(mix(places) ^ new) * fresh).sum(1)
        if self._fence is not None:
            fields[_AT["fence_marks"]] += (self._fence[new] & fresh & started[:, None]).sum(1)
        if self._tail > 1:
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
        fields = np.zeros((len(_FIELDS), len(slots)), dtype=np.int64)
        rows = zip(slots.tolist(), lengths.tolist(), prompts.tolist(), strict=True)
        for column, (slot, length, prompt) in enumerate(rows):
            row = tokens[slot, begins : begins + length]
            state = self._rows.read(row.tolist(), prompt)
            start = state.thought_start
            mixed = mix(mix(np.arange(1, length + 1)) ^ row)
            fields[: len(_BOOLS) + len(_COUNTS), column] = [getattr(state, name) for name in _STATE]
            fields[_AT["total"], column] = mixed.sum()
            # Of the tokens before the thought; hashed below.
            fields[_AT["start_key"], column] = mixed[:start].sum()
            if self._fence is not None:
                fields[_AT["fence_marks"], column] = np.count_nonzero(self._fence[row[start:]])
        key = _hash_of(fields[_AT["start_key"]], fields[_AT["thought_start"]])
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
