"""vLLM's first model runner: a persistent batch on the host, told of by updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.integrations.vllm.history import Entry, SlotTokens, current_turn, digest
from budgetctl.integrations.vllm.host_reader import Array, HostReader
from budgetctl.integrations.vllm.knobs import RequestLimits
from budgetctl.integrations.vllm.quiet_rows import QuietWatch
from budgetctl.integrations.vllm.quiet_terms import QuietAnswers, QuietRows, QuietTerms
from budgetctl.integrations.vllm.slots import SlotLimits
from budgetctl.integrations.vllm.step_rows import StepRows
from budgetctl.integrations.vllm.tally import Facts, Tally
from budgetctl.on_device import to_device
from budgetctl.protect import Spans


@dataclass(frozen=True)
class _Places:
    """Requests of the batch as they stay until the next update, for ``rows`` rows of logits.

    Args:
        rows: of the logits.
        order: which of them have the requests.
        entries: the requests, in the order of their rows.
        index: ``order`` on the device; None for all of them in order.
        slots: [B] int64, of the entries.
        on_device: ``slots`` on the device.
        known: the same as a list.
        prompts: [B] int64, tokens of the prompts.
        salts: [B] int64, of the tokens before those that are kept of the prompts.
    """

    rows: int
    order: list[int]
    entries: list[Entry]
    index: torch.Tensor | None
    slots: Array
    on_device: torch.Tensor
    known: list[int]
    prompts: Array
    salts: Array


@dataclass(frozen=True)
class HostStep:
    """One step: rows of which all has to be asked, rows in the middle of their thoughts, and bans of answers."""

    rest: StepRows | None = None
    thoughts: QuietRows | None = None
    answers: QuietAnswers | None = None


class HostRows:
    """Which requests with a limit are in the batch, in which rows, and what their tokens say.

    Args:
        device: of the logits.
        delimiters: the markers.
        spans: what a close may not cut in two.
        limits_for: of a request, by its sampling parameters and the length of its prompt, None where that is not known.
        limits: where the limits of the requests are kept.
        context: most tokens of prompt and generation.
    """

    def __init__(
        self,
        device: torch.device,
        delimiters: ThinkingDelimiters,
        spans: Spans | None,
        limits_for: Callable[[Any, int | None], RequestLimits],
        limits: SlotLimits,
        context: int,
    ) -> None:
        self._device = device
        self._delimiters = delimiters
        self._limits_for = limits_for
        self._limits, self._context = limits, context
        #: Is told of the requests that leave, where they are counted.
        self.tally: Tally | None = None
        self._entries: dict[int, Entry] = {}
        self._salts: dict[int, int] = {}
        cpu = torch.device("cpu")
        self._reader = HostReader(delimiters, None if spans is None else spans.to(cpu))
        self._tokens = SlotTokens(self._reader.tail)
        self._places: _Places | None = None
        self._rest: _Places | None = None
        self._latest: tuple[_Places, Array] | None = None
        #: Tells rows that need not be read; None where all are read at every step.
        self.watch: QuietWatch | None = None

    @property
    def slots(self) -> int:
        """Slots that there are."""
        return self._tokens.slots

    def update(self, batch_update: Any) -> None:
        """Follow a ``BatchUpdate``, None when the batch is as it was. A request may come into a row, or be moved over
        one, whose request has finished without a word."""
        if batch_update is None:
            return
        self._places = self._rest = None
        if self.watch is not None:
            self.watch.forget()
        for row in batch_update.removed:
            self._drop(row)
        for row, sampling_params, prompt, outputs in batch_update.added:
            self._drop(row)
            self._add(row, sampling_params, prompt, outputs)
        for source, target, direction in batch_update.moved:
            moved, other = self._entries.pop(source, None), self._entries.pop(target, None)
            if moved is not None:
                self._entries[target] = moved
            if other is not None and direction.name == "SWAP":
                self._entries[source] = other
            elif other is not None:
                self._leave(other)

    def step(self, rows: int, *, quietly: bool = False) -> HostStep | None:
        """The rows with a limit among the ``rows`` of the logits, None when there is none; ``quietly`` where quiet rows may
        be told apart.

        Raises:
            RuntimeError: when the engine keeps sampled tokens to itself.
        """
        if self._places is None or self._places.rows != rows:
            self._places = self._arrange(rows, self._entries)
        at = self._places
        if not at.entries:
            return None
        if not quietly or self.watch is None:
            return HostStep(self._read(at))
        thinking, left, answering, others = self.watch.split(at.entries)
        if len(thinking) == len(at.entries):
            return HostStep(None, self.watch.thoughts(rows, at.order, at.entries, left))
        thought, answer, other = (
            ([at.order[place] for place in places], [at.entries[place] for place in places])
            for places in (thinking, answering, others)
        )
        rest = None
        if len(others) == len(at.entries):
            rest = self._read(at)
        elif others:
            if self._rest is None or self._rest.order != other[0] or self._rest.rows != rows:
                self._rest = self._arrange(rows, dict(zip(*other, strict=True)))
            rest = self._read(self._rest)
        return HostStep(rest, self.watch.thoughts(rows, *thought, left), self.watch.answers(*answer))

    def note(self, terms: QuietTerms) -> None:
        """Keep what the controller has told of the rows of the latest step that were read."""
        if self.watch is not None and self._latest is not None:
            at, starts = self._latest
            self.watch.note(at.entries, starts, terms)

    def read(self, rows: int, requests: dict[int, Entry]) -> StepRows:
        """Some ``requests``, by their rows of the ``rows`` of the logits."""
        return self._read(self._arrange(rows, requests))

    def _read(self, at: _Places) -> StepRows:
        """Rows with the reading of all their tokens."""
        lengths = np.array([len(entry.outputs) for entry in at.entries])
        lengths += at.prompts
        self._tokens.widen(int(lengths.max()))
        self._write(at)
        self._limits.flush()
        fields = self._reader.read(
            self._tokens.table, self._tokens.padding, at.slots, lengths, at.prompts, at.salts
        )
        tails = self._tokens.table[at.slots[:, None], lengths[:, None] + np.arange(self._tokens.padding)]
        self._latest = at, self._reader.starts(fields)
        return StepRows(
            at.index,
            to_device(torch.from_numpy(tails), self._device),
            at.on_device,
            at.known,
            self._reader.reading(fields, self._device),
            to_device(torch.from_numpy(lengths), self._device),
        )

    def _write(self, at: _Places) -> None:
        """Write what is new; most often that is one token a row."""
        ids: list[int] = []
        for entry in at.entries:
            outputs, written = entry.outputs, entry.written
            plain = len(outputs) == written + 1 and (written == 0 or outputs[-2] == entry.last)
            if not plain or outputs[-1] < 0:
                break
            ids.append(outputs[-1])
        if len(ids) == len(at.entries):
            columns = [len(entry.prompt) + entry.written + self._tokens.padding for entry in at.entries]
            self._tokens.table[at.slots, columns] = ids
            for entry, token in zip(at.entries, ids, strict=True):
                entry.written += 1
                entry.last = token
            return
        for slot, entry in zip(at.known, at.entries, strict=True):
            if entry.changed:
                entry.unread()
                self._reader.forget(slot)
            begin = len(entry.prompt) + entry.written
            new = entry.unwritten()
            if new:
                self._tokens.write(slot, begin, new)
            if not entry.known:
                raise RuntimeError(
                    "the engine shows placeholders for sampled tokens, so that budgets cannot be kept: expected the "
                    "processor to be given by --logits-processors, and not by an entry point; start vLLM so"
                )

    def _arrange(self, rows: int, requests: dict[int, Entry]) -> _Places:
        order = sorted(row for row, entry in requests.items() if entry.slot is not None)
        entries = [requests[row] for row in order]
        known = [entry.slot for entry in entries if entry.slot is not None]
        slots = np.array(known, dtype=np.int64)
        return _Places(
            rows,
            order,
            entries,
            None if len(order) == rows else to_device(torch.tensor(order), self._device),
            slots,
            to_device(torch.from_numpy(slots), self._device),
            known,
            np.array([len(entry.prompt) for entry in entries], dtype=np.int64),
            np.array([self._salts[slot] for slot in known], dtype=np.int64),
        )

    def _add(self, row: int, sampling_params: Any, prompt: Sequence[int] | None, outputs: list[int]) -> None:
        thought = self._delimiters
        limits = self._limits_for(sampling_params, None if prompt is None else len(prompt))
        facts = None
        if self.tally is not None and prompt is not None:
            facts = Facts.of(sampling_params, limits, len(prompt), self._context, thought)
        if not limits.asked and facts is None:
            return
        begin = 0
        if prompt is None:  # embeddings: what the template would write is all that can be known
            opened = (*thought.open_ids, *thought.lead_ids) if thought.opened_by_template else ()
            prompt = [*thought.turn_start_ids, *opened]
        else:
            begin = current_turn(prompt, thought.turn_start_ids)
        slot = self._tokens.take() if limits.asked else None
        entry = self._entries[row] = Entry(slot, list(prompt[begin:]), outputs, facts)
        if slot is None:
            return
        self._reader.grow(self._tokens.slots)
        self._reader.forget(slot)
        self._tokens.write(slot, 0, entry.prompt)
        salt = self._salts[slot] = digest(prompt[:begin])
        self._limits.write(slot, limits, salt)
        if self.tally is not None:
            self.tally.begin(slot)

    def _drop(self, row: int) -> None:
        entry = self._entries.pop(row, None)
        if entry is not None:
            self._leave(entry)

    def _leave(self, entry: Entry) -> None:
        """The request has left the batch: at its end, or to come back."""
        if self.tally is not None and entry.facts is not None:
            self.tally.left(entry.facts, entry.prompt, entry.outputs, entry.slot)
        if entry.slot is not None:
            self._tokens.give_back(entry.slot)
