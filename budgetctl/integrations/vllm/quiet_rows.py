"""Rows of vLLM's first runner of which is known for how long nothing but guidance, or the answer's bans, is done with them.

It is told when a row has been read and the controller has asked all of it, and holds while the row gets one more token at
a time that neither begins nor ends anything. Till then the row is not read, and its tokens are not even copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from budgetctl.closing import Boundaries
from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.integrations.vllm.history import Entry
from budgetctl.integrations.vllm.quiet_terms import QuietAnswers, QuietRows, QuietTerms
from budgetctl.integrations.vllm.slots import SlotLimits
from budgetctl.leak_guard import beginnings
from budgetctl.on_device import to_device
from budgetctl.quiet_step import QuietStep, Warmth

Array = np.ndarray[Any, Any]

#: Steps that stand for all that are to come.
ALWAYS = 1 << 40


@dataclass(frozen=True)
class _Constants:
    """What stays the same while the same rows are in the middle of their thoughts."""

    entries: list[Entry]
    index: torch.Tensor | None
    slots: torch.Tensor
    known: list[int]
    warmth: Warmth


class QuietWatch:
    """Tells quiet rows from others.

    Args:
        delimiters: the markers.
        boundaries: where lines and sentences end.
        quiet: what is done in the middle of a thought.
        limits: of the requests, by slot.
        device: of the logits.
    """

    def __init__(
        self,
        delimiters: ThinkingDelimiters,
        boundaries: Boundaries,
        quiet: QuietStep,
        limits: SlotLimits,
        device: torch.device,
    ) -> None:
        self._quiet, self._limits, self._device = quiet, limits, device
        self._closes: tuple[Tokens, ...] = ()
        if not delimiters.resumes_turn:
            self._closes = beginnings(delimiters.end_variants, delimiters.close_refusal)
        self._opens = beginnings(delimiters.all_opens, delimiters.open_refusal)
        self._sizes = tuple(map(len, delimiters.all_opens))
        markers = (*delimiters.all_opens, *delimiters.all_ends, delimiters.forced_end_ids)
        half = {token for marker in (*self._closes, *self._opens) for token in marker[:-1]}
        # Of such a marker no other has a token.
        every = [token for marker in markers if len(marker) > 1 for token in marker]
        every += [*delimiters.eos_ids, *(token for marker in delimiters.all_opens for token in marker)]
        self._eos_ids = frozenset(delimiters.eos_ids)
        self._single = {marker[0] for marker in delimiters.all_ends if len(marker) == 1} - set(every)
        fences = [] if boundaries.spans is None else boundaries.spans.fence.nonzero()[:, 0].tolist()
        lasts = {marker[-1] for marker in markers}
        # The last is what stands for a token that is not known yet.
        self._loud = frozenset(lasts | set(delimiters.eos_ids) | half | quiet.begun | set(fences) | {-1})
        ends = (boundaries.line, boundaries.sentence, boundaries.digit)
        self._lines, self._sentences, self._digits = (frozenset(t.nonzero()[:, 0].tolist()) for t in ends)
        self._lead = list(delimiters.lead_ids)
        size = len(self._lead)
        # A lead that a marker ends with cannot be told from the marker.
        self._tells_lead = size > 0 and all(
            list(marker[-size:]) != self._lead for marker in delimiters.all_opens
        )
        self._constants: _Constants | None = None
        self._bans: tuple[list[tuple[int, Tokens]], QuietAnswers] | None = None

    def split(self, entries: Sequence[Entry]) -> tuple[list[int], list[int], list[int], list[int]]:
        """Of ``entries``: which are in the middle of a thought, the tokens that each of these has left, which are in an
        answer, and which are none of the two, as places in ``entries``."""
        thinking: list[int] = []
        left: list[int] = []
        answers: list[int] = []
        others: list[int] = []
        loud = self._loud
        for place, entry in enumerate(entries):
            outputs = entry.outputs
            count = len(outputs)
            if (
                count < entry.quiet_until
                and count == entry.seen + 1
                and ((token := outputs[-1]) not in loud or entry.finished)
                and (count == 1 or outputs[-2] == entry.latest)
            ):
                if entry.bans is not None:
                    answers.append(place)
                else:
                    rest = entry.spent_at - count
                    if rest <= entry.window and self._at_end(token, entry):
                        others.append(place)
                        continue
                    thinking.append(place)
                    left.append(rest)
                entry.seen, entry.latest = count, token
            elif self._answers_now(entry):
                answers.append(place)
            else:
                others.append(place)
        return thinking, left, answers, others

    def _answers_now(self, entry: Entry) -> bool:
        """Whether the row's thought has just been closed by a marker of one token, or its answer is at the point where the
        bans change."""
        outputs = entry.outputs
        count = len(outputs)
        if not 1 < count <= entry.quiet_until or count != entry.seen + 1 or outputs[-2] != entry.latest:
            return False
        token, thought = outputs[-1], entry.bans is None
        if not thought and token in self._eos_ids:
            entry.finished, entry.bans = True, ()
            entry.seen, entry.latest, entry.quiet_until = count, token, ALWAYS
            return True
        if token not in self._single if thought else token in self._loud:
            return False
        if thought:  # the close is none of its tokens
            entry.capped = entry.capped_at - count + 1
        left = max(min(entry.capped, entry.room_until - count), 0)
        steps, entry.bans = self._answer(left, entry.window)
        entry.seen, entry.latest, entry.quiet_until = count, token, count + steps
        return steps > 0

    def _at_end(self, token: int, entry: Entry) -> bool:
        """``Boundaries.at_end`` of a row that ends with the ``token``."""
        if token in self._lines:
            return True
        if token not in self._sentences:
            return False
        row = entry.outputs if len(entry.outputs) > 1 else entry.prompt + entry.outputs
        return len(row) < 2 or row[-2] not in self._digits

    def thoughts(
        self, rows: int, order: Sequence[int], entries: list[Entry], left: list[int]
    ) -> QuietRows | None:
        """Of ``entries`` in the middle of their thoughts in the rows ``order`` among ``rows`` of logits."""
        if not entries:
            return None
        at = self._constants
        if at is None or (at.entries is not entries and at.entries != entries):
            known = [entry.slot for entry in entries if entry.slot is not None]
            at = self._constants = _Constants(
                entries,
                None if len(order) == rows else to_device(torch.tensor(order), self._device),
                to_device(torch.tensor(known), self._device),
                known,
                self._quiet.warmth(
                    torch.tensor([self._limits.of(slot).temperature for slot in known]), len(known)
                ),
            )
        return QuietRows(at.index, at.slots, at.known, at.warmth, left)

    def answers(self, order: Sequence[int], entries: Sequence[Entry]) -> QuietAnswers | None:
        """Of ``entries`` in their answers in the rows ``order`` of the logits; None where nothing is banned."""
        wanted = [(row, entry.bans) for row, entry in zip(order, entries, strict=True) if entry.bans]
        if not wanted:
            return None
        if self._bans is None or self._bans[0] != wanted:
            pairs = [(row, token) for row, bans in wanted for token in bans]
            banned = np.array(pairs, dtype=np.int64).T
            self._bans = wanted, QuietAnswers(dict(zip(order, entries, strict=True)), *banned)
        return self._bans[1]

    def forget(self) -> None:
        """The batch has changed."""
        self._constants = self._bans = None

    def note(self, entries: Sequence[Entry], starts: Array, told: QuietTerms) -> None:
        """Keep what a step of the controller has told of its rows.

        Args:
            entries: of the rows.
            starts: [B] int64, where each thought starts, from the row's first token on.
            told: by the controller.
        """
        columns = (told.thoughts, told.left, told.used, told.window, told.margin, told.inside)
        others = (told.capped, told.room, told.answers, told.passes, told.finished, starts)
        rows = zip(entries, *(column.tolist() for column in (*columns, *others)), strict=True)
        for entry, *facts in rows:
            thinks, left, used, window, margin, inside, capped, room, answers, passes, finished, start = facts
            count = len(entry.outputs)
            entry.capped, entry.capped_at, entry.room_until = capped, count + capped, count + room
            entry.seen, entry.latest, entry.finished = count, entry.outputs[-1] if count else -1, False
            entry.bans, entry.spent_at, entry.window = None, count + left, window
            steps = 0
            if answers:
                steps, entry.bans = self._answer(left, window)
            elif passes:
                steps, entry.bans = ALWAYS, ()
                entry.finished = finished
            elif thinks and (used >= len(self._lead) or self._led(entry, start)):
                # A fence that is open has to be closed, which takes tokens; the last step is that of the close.
                steps = max(left - margin, 0) if inside else left + 1
            entry.quiet_until = count + steps

    def _answer(self, left: int, window: int) -> tuple[int, Tokens]:
        """For how many steps the bans of an answer stay as they are, this one included, and the banned tokens: a marker of
        several tokens is not banned before its last."""
        bans = {marker[0] for marker in self._closes if len(marker) == 1}
        steps = ALWAYS
        for size, marker in zip(self._sizes, self._opens, strict=True):
            above = left - max(size, window)
            if above > 0:
                steps = min(steps, above)
            elif len(marker) == 1:
                bans.add(marker[0])
        return steps, tuple(sorted(bans))

    def _led(self, entry: Entry, start: int) -> bool:
        """Whether the lead stands before the thought's first token, so that none can come any more."""
        size = len(self._lead)
        row = entry.prompt + entry.outputs
        return self._tells_lead and start >= size and row[start - size : start] == self._lead
