"""Writing the notes: at the beginning of a thought, and in the first new line of each later step of its plan.

A note is written token by token in place of what the model would write. Where one has begun is read from the row's last tokens,
so that it holds for any order of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from budgetctl.closing import Boundaries
from budgetctl.limits import RowLimits, repeat_to
from budgetctl.on_device import may_hold, to_device
from budgetctl.plan.enforce import StepGuide, StepNow
from budgetctl.plan.notes import LEVELS, SpelledNotes
from budgetctl.plan.step_reader import steps_begun
from budgetctl.prefix_reader import Reading

#: A note may take this part of what is left of its step and of the thought.
MOST_OF_LEFT = 0.5


class NoteTensors(NamedTuple):
    """Notes of B rows, of at most H tokens.

    Args:
        noted: [B] bool, the row may have any.
        opening: [B, H] int64, the note that opens the thought.
        opening_length: [B] int64, 0 for none.
        levels: [B, LEVELS + 1, H] int64, by twentieths of the budget that are left.
        lengths: [B, LEVELS + 1] int64, 0 for none.
    """

    noted: torch.Tensor
    opening: torch.Tensor
    opening_length: torch.Tensor
    levels: torch.Tensor
    lengths: torch.Tensor


class NoteNow(NamedTuple):
    """What is to be written, [B] each.

    Args:
        begun: bool, a note is half-written.
        due: bool, one is to begin.
        token: int64, its next token.
    """

    begun: torch.Tensor
    due: torch.Tensor
    token: torch.Tensor


class NoteGuide:
    """The notes of one call at work.

    Args:
        spelled: one a request, or one for all; None for a request without notes.
        limits: of the requests.
        steps: their plans, None where no request has one.
    """

    def __init__(
        self, spelled: Sequence[SpelledNotes | None], limits: RowLimits, steps: StepGuide | None
    ) -> None:
        self.spelled = tuple(spelled)
        self.limits = limits
        self.steps = steps
        self._made: dict[tuple[int, torch.device], NoteTensors] = {}

    def of(self, row: int, rows: int) -> SpelledNotes | None:
        """The notes of one of so many rows."""
        return self.spelled[row // (rows // len(self.spelled))]

    def on(self, rows: int, device: torch.device) -> NoteTensors:
        """The notes of ``rows`` rows, each repeated for the beams or samples of its request; made once a device.

        Raises:
            BudgetError: when ``rows`` is no multiple of the requests.
        """
        made = self._made.get((rows, device))
        if made is None:
            with torch.inference_mode(False):
                at = repeat_to(torch.arange(len(self.spelled)), rows, torch.device("cpu"))
                made = NoteTensors(*(to_device(part[at], device) for part in self._tensors()))
            self._made[rows, device] = made
        return made

    def _tensors(self) -> NoteTensors:
        none = SpelledNotes((), ())
        notes = [one or none for one in self.spelled]
        levels = [one.levels or ((),) * (LEVELS + 1) for one in notes]
        width = max(1, *(len(ids) for one in notes for ids in (one.opening, *one.levels)))

        def filled(ids: tuple[int, ...]) -> list[int]:
            return [*ids, *[0] * (width - len(ids))]

        return NoteTensors(
            noted=torch.tensor([bool(one.opening or one.levels) for one in notes]),
            opening=torch.tensor([filled(one.opening) for one in notes]),
            opening_length=torch.tensor([len(one.opening) for one in notes]),
            levels=torch.tensor([[filled(ids) for ids in row] for row in levels]),
            lengths=torch.tensor([[len(ids) for ids in row] for row in levels]),
        )

    def now(
        self,
        input_ids: torch.Tensor,
        reading: Reading,
        steps: StepNow | None,
        rows: torch.Tensor,
        left: torch.Tensor,
        boundaries: Boundaries,
    ) -> NoteNow:
        """Which rows write a note.

        One begins with the thought, or after the first line end of a step but the first (whose heading may have that line for
        itself), where it takes no more than half of what is left of the step and of the thought, its own tokens included.

        Args:
            input_ids: [B, T] int64.
            reading: of the same rows.
            steps: where they stand in their plans, None where no row has one.
            rows: [B] bool, rows inside a thought, outside code, that may be written to.
            left: [B] int64, thinking tokens left of the whole thought.
            boundaries: line ends.
        """
        state, device = reading.state, input_ids.device
        notes = self.on(len(input_ids), device)
        rows = rows & notes.noted & (state.close_progress == 0)
        none = torch.zeros_like(rows)
        if not may_hold(rows):
            return NoteNow(none, none, torch.zeros_like(left))
        width, most = input_ids.shape[1], notes.opening.shape[1]
        line = boundaries.line
        tail = pad(input_ids, (max(most + 1 - width, 0), 0), value=-1)[:, -most - 1 :]
        sizes = torch.arange(1, most + 1, device=device)
        places = sizes - 1
        # Row s of the index: the last s tokens, which the first s of a note are compared with.
        ends = tail[:, (most + 1 - sizes[:, None] + places).clamp(max=most)]
        inside = state.thought_start[:, None] <= width - sizes
        before = tail[:, most - sizes]
        fresh = (line[before.clamp(min=0)] & (before >= 0)) & inside & (state.used[:, None] > sizes)

        same = (ends == notes.opening[:, None, :]) | (places >= sizes[:, None])
        opened = same.all(2) & (state.used[:, None] == sizes) & (sizes < notes.opening_length[:, None])
        opening = torch.where(opened, sizes, 0).amax(1)

        # The level was that of the tokens left when the note began.
        at = torch.arange(len(left), device=device)[:, None]
        total = (state.used + left)[:, None].clamp(min=1)
        longest = notes.lengths.amax(1, keepdim=True)
        begun_with = left[:, None] + torch.cat([torch.zeros_like(sizes[:1]), sizes])
        level = ((begun_with - longest).clamp(min=0) * LEVELS // total).clamp(max=LEVELS)
        texts, lengths = notes.levels[at, level], notes.lengths[at, level]
        same = (ends == texts[:, 1:]) | (places >= sizes[:, None])
        going = same.all(2) & fresh & (sizes < lengths[:, 1:])
        written = torch.where(going, sizes, 0).amax(1)

        # Both as they were when it began: the room for it, and the place.
        back = torch.where(opening > 0, opening, written)
        length = torch.where(written > 0, lengths.gather(1, written[:, None])[:, 0], lengths[:, 0])
        room = (left + back) * MOST_OF_LEFT
        start = rows & (state.used == back) & (notes.opening_length > 0) & (notes.opening_length <= room)
        step = rows & ~start & (length > 0) & (length <= room)
        if steps is not None:
            step = step & (length <= (steps.left + back) * MOST_OF_LEFT)
        step = self._at_step(input_ids, reading, steps, step, back, boundaries)
        token = torch.where(
            start,
            notes.opening.gather(1, back.clamp(max=most - 1)[:, None])[:, 0],
            texts[at[:, 0], written, written.clamp(max=most - 1)],
        )
        return NoteNow((start | step) & (back > 0), (start | step) & (back == 0), token)

    def _at_step(
        self,
        input_ids: torch.Tensor,
        reading: Reading,
        steps: StepNow | None,
        rows: torch.Tensor,
        back: torch.Tensor,
        boundaries: Boundaries,
    ) -> torch.Tensor:
        """[B] bool, of ``rows``: without its last ``back`` [B] tokens the row ends with the first line end of a step but the
        first."""
        if steps is None or self.steps is None:
            return torch.zeros_like(rows)
        width = input_ids.shape[1]
        ended = boundaries.line[input_ids]
        last = (width - 1 - back)[:, None]
        rows = rows & (steps.number > 1) & ended.gather(1, last.clamp(min=0))[:, 0]
        if not may_hold(rows):
            return rows
        plans = self.steps.on(len(input_ids), input_ids.device)
        begun = steps_begun(input_ids, reading.state.thought_start, plans, boundaries.line)
        first = (begun < steps.number[:, None]).sum(1, keepdim=True)
        columns = torch.arange(width, device=input_ids.device)
        earlier = ended & (columns > first) & (columns < last)
        return rows & (first < last)[:, 0] & ~earlier.any(1)
