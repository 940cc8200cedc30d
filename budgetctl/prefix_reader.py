"""Reads the rows of a generation token by token: what depends on the whole prefix, at a cost that does not grow with it.

Everything here is a function of the rows alone. What is kept is the reading of the step before and a copy of its rows;
it is gone on with only where these rows are the new ones but for their last token, and where that token is plain
(begins nothing and ends nothing). In all other cases the rows are read anew.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.prefix_hash import hash_of, mix, prefix_totals
from budgetctl.protect import Spans
from budgetctl.state import ThinkingState, marker_progress, thinking_state

#: Rows that have changed places are told apart by this many last tokens, and then compared in full.
TOLD_APART = 16


@dataclass(frozen=True)
class Reading:
    """What rows [B, T] say; tensors [B].

    Args:
        state: where each row stands in its thought.
        total: int64, running total of the row's hash (``prefix_totals``).
        start_key: int64, hash of the prefix before the first thinking token.
        fence_marks: int64, tokens since then that open or close a code fence; zeros without ``spans``.
    """

    state: ThinkingState
    total: torch.Tensor
    start_key: torch.Tensor
    fence_marks: torch.Tensor

    def rows(self, index: torch.Tensor) -> Reading:
        """The reading of the rows ``index`` [B] int64."""
        state = ThinkingState(**{f.name: getattr(self.state, f.name)[index] for f in fields(ThinkingState)})
        return Reading(state, self.total[index], self.start_key[index], self.fence_marks[index])


def read_rows(
    input_ids: torch.Tensor,
    delimiters: ThinkingDelimiters,
    prompt_length: int | torch.Tensor | None,
    spans: Spans | None,
) -> Reading:
    """The reading of rows [B, T] int64, from all their tokens."""
    state = thinking_state(input_ids, delimiters, prompt_length=prompt_length)
    totals = torch.nn.functional.pad(prefix_totals(input_ids), (1, 0))
    start = totals.gather(1, state.thought_start[:, None]).squeeze(1)
    marks = torch.zeros_like(state.used)
    if spans is not None:
        marks = spans.fence_marks(input_ids, state.thought_start)
    return Reading(state, totals[:, -1], hash_of(start, state.thought_start), marks)


class PrefixReader:
    """Readings of the growing rows of one generation.

    On the CPU a step costs the same at any length but for one comparison of token ids. On other devices that
    comparison would stop the host until the device has caught up, so all is read at each step.

    Args:
        delimiters: the markers.
    """

    def __init__(self, delimiters: ThinkingDelimiters) -> None:
        self._delimiters = delimiters
        markers = (*delimiters.all_opens, *delimiters.all_ends)
        self._lasts = np.array(sorted({marker[-1] for marker in markers} | set(delimiters.eos_ids)))
        self._tail = max(map(len, (*markers, delimiters.forced_end_ids)))
        self._prompt: int | torch.Tensor | None = None
        self._known: Reading | None = None
        self._rows = torch.zeros(0, 0, dtype=torch.int64)
        self._width = 0
        #: Of each column, as ``prefix_totals`` mixes it.
        self._columns = np.zeros(0, dtype=np.int64)

    def read(
        self, input_ids: torch.Tensor, prompt_length: int | torch.Tensor | None, spans: Spans | None
    ) -> Reading:
        """The reading of rows [B, T] int64; the arguments are those of :func:`read_rows`, ``spans`` a constant."""
        if input_ids.device.type != "cpu" or prompt_length is None:
            return read_rows(input_ids, self._delimiters, prompt_length, spans)
        if self._again(input_ids, prompt_length):
            assert self._known is not None
            return self._known
        known = self._before(input_ids, prompt_length)
        if known is not None and self._plain(input_ids, known.state):
            reading = self._next(input_ids, known, spans)
        else:
            reading = read_rows(input_ids, self._delimiters, prompt_length, spans)
        self._keep(input_ids, prompt_length, reading, grown=known is not None)
        return reading

    def _again(self, input_ids: torch.Tensor, prompt_length: int | torch.Tensor) -> bool:
        """Whether these are the rows of the step before, asked for once more."""
        return (
            self._known is not None
            and input_ids.shape == (len(self._rows), self._width)
            and _same(prompt_length, self._prompt)
            and torch.equal(input_ids, self._rows[:, : self._width])
        )

    def _before(self, input_ids: torch.Tensor, prompt_length: int | torch.Tensor) -> Reading | None:
        """The reading of the rows without their last token, where it is known."""
        rows, width = input_ids.shape
        if (
            self._known is None
            or width != self._width + 1
            or rows != len(self._rows)
            or not _same(prompt_length, self._prompt)
        ):
            return None
        before, kept = input_ids[:, :-1], self._rows[:, : self._width]
        if torch.equal(before, kept):
            return self._known
        last = slice(max(self._width - TOLD_APART, 0), self._width)
        alike = (before[:, None, last] == kept[None, :, last]).all(2)
        index = alike.to(torch.int8).argmax(1)
        if isinstance(prompt_length, torch.Tensor) or not torch.equal(before, kept[index]):
            return None
        self._rows = self._rows[index]
        return self._known.rows(index)

    def _plain(self, input_ids: torch.Tensor, state: ThinkingState) -> bool:
        """Whether the last tokens change no state but counts."""
        width = input_ids.shape[1]
        ends_marker = (input_ids.numpy()[:, -1:] == self._lasts).any(1)
        # Near the start a marker may reach back before the turn, and a lead after the first marker be completed.
        length = np.where(
            state.started.numpy(), width - state.thought_start.numpy(), state.generated.numpy() + 1
        )
        near = length <= max(len(self._delimiters.lead_ids), self._tail)
        return np.count_nonzero((ends_marker | near) & ~state.finished.numpy()) == 0

    def _next(self, input_ids: torch.Tensor, known: Reading, spans: Spans | None) -> Reading:
        """The reading one plain token later; by NumPy, whose operations on few numbers cost less."""
        before, width = known.state, input_ids.shape[1]
        thinking, finished, started = (
            tensor.numpy() for tensor in (before.thinking, before.finished, before.started)
        )
        last = input_ids.numpy()[:, -1]
        used = before.used.numpy() + thinking
        if len(self._columns) < width:
            self._columns = mix(np.arange(1, 2 * width + 1))
        total = torch.from_numpy(known.total.numpy() + mix(self._columns[width - 1] ^ last))
        thought_start, start_key = before.thought_start, known.start_key
        if not started.all():
            thought_start = torch.where(before.started, thought_start, width)
            start_key = torch.where(before.started, start_key, hash_of(total, width))
        counts = torch.from_numpy(used)
        state = replace(
            before,
            used=counts,
            at_start=torch.from_numpy(thinking & (used == 0)),
            close_progress=self._progress(input_ids, self._delimiters.forced_end_ids, thinking),
            open_progress=self._progress(input_ids, self._delimiters.open_ids, ~thinking & ~finished),
            thought_start=thought_start,
            generated=torch.from_numpy(before.generated.numpy() + 1),
            answer_tokens=torch.from_numpy(
                before.answer_tokens.numpy() + (before.closed.numpy() & ~finished)
            ),
        )
        marks = known.fence_marks
        if spans is not None:
            marks = torch.from_numpy(marks.numpy() + (spans.fence.numpy()[last] & started))
        return Reading(state, total, start_key, marks)

    def _progress(self, input_ids: torch.Tensor, marker: Tokens, rows: np.ndarray[Any, Any]) -> torch.Tensor:
        """``marker_progress`` at the end of the rows of ``rows`` [B] bool, whose thought or answer is long enough."""
        zero = torch.zeros(len(rows), dtype=torch.int64)
        if len(marker) < 2:
            return zero
        return marker_progress(input_ids[:, -self._tail :], marker, zero, torch.from_numpy(rows))

    def _keep(
        self, input_ids: torch.Tensor, prompt_length: int | torch.Tensor, reading: Reading, grown: bool
    ) -> None:
        """Remember the reading, and the rows as a copy of their own: the caller's may be written to again."""
        rows, width = input_ids.shape
        if grown and width <= self._rows.shape[1]:
            self._rows[:, width - 1] = input_ids[:, -1]
        else:
            self._rows = input_ids.new_empty(rows, width + width // 2 + 64)
            self._rows[:, :width] = input_ids
        self._known, self._width = reading, width
        # A tensor of prompt lengths may be written to as well.
        self._prompt = prompt_length.clone() if isinstance(prompt_length, torch.Tensor) else prompt_length


def _same(one: int | torch.Tensor, other: int | torch.Tensor | None) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return isinstance(one, int) and isinstance(other, int) and one == other
