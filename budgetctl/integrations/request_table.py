"""What is kept of every request of a continuous batch, on the device: its tokens, its forecast, how it could close."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch

from budgetctl.ledger import Predictions
from budgetctl.on_device import to_device

#: Meaning of the codes in ``RequestTable.kinds``; 0 stands for a step that was not recorded.
KINDS = ("", "natural", "forced", "steered")
#: Finished requests whose record is kept for reports.
KEPT = 1 << 14
_FINISHED = 3  # transformers' RequestStatus.FINISHED; FAILED is above it
_MANY = 256  # slots that are not given up for others


@dataclass(frozen=True)
class Record:
    """What a report needs of one request: ``kinds`` [T + 1] uint8, the code of a close that would begin after so many
    tokens; ``predicted`` [] tokens, nan without a forecast."""

    kinds: torch.Tensor
    predicted: torch.Tensor


@dataclass
class _Slot:
    index: int
    state: Any
    length: int
    step: int


class RequestTable:
    """One slot a request: tokens [S, T] int64, kinds of close [S, T] uint8, predicted length [S].

    The tokens are the device's own: the prompt is copied once, and every step writes the last token, which it has on
    the device, at its position. So a host that is one token behind, as in asynchronous batching, does not matter, and
    a position that is written twice holds the same token.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.tokens = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self.kinds = torch.zeros(0, 0, dtype=torch.uint8, device=device)
        self.predicted = torch.zeros(0, dtype=dtype, device=device)
        self._lock = RLock()
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # the least recently used first
        self._free: list[int] = []
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._step = 0

    def locate(self, states: list[Any], lengths: list[int]) -> list[int]:
        """The slots of ``states`` (transformers' ``RequestState``) whose prefixes have ``lengths`` tokens; a request
        that is new here is given one, with the tokens that the host knows."""
        with self._lock:
            self._step += 1
            self._widen(max(lengths) + 1)
            pairs = zip(states, lengths, strict=True)
            return [self._slot_of(state, length, len(states)).index for state, length in pairs]

    def write_last(self, slots: torch.Tensor, lengths: torch.Tensor, last: torch.Tensor) -> None:
        """Put the tokens ``last`` [B] at the end of the prefixes of ``lengths`` [B]."""
        self.tokens[slots, lengths - 1] = last.to(torch.int64)

    def prefixes(self, slots: torch.Tensor, lengths: torch.Tensor, width: int, pad: int) -> torch.Tensor:
        """Prefixes of ``lengths`` [B], left-padded with ``pad`` to [B, ``width``] int64."""
        at = torch.arange(width, device=lengths.device) - (width - lengths)[:, None]
        return torch.where(at >= 0, self.tokens[slots[:, None], at.clamp(min=0)], pad)

    def record_of(self, request_id: str) -> Record | None:
        """What is known of a request, running or finished; None when it had no limit or is forgotten."""
        with self._lock:
            slot = self._slots.get(request_id)
            return self._records.get(request_id) if slot is None else self._record(slot)

    def _slot_of(self, state: Any, length: int, rows: int) -> _Slot:
        slot = self._slots.get(state.request_id)
        known = slot
        if slot is None:
            slot = self._slots[state.request_id] = _Slot(self._take(rows), state, length, self._step)
        if known is None or known.state is not state:
            slot.state, slot.length = state, length
            tokens = torch.tensor([*state.initial_tokens, *state.generated_tokens][:length])
            self.tokens[slot.index, : len(tokens)] = to_device(tokens, self.tokens.device)
            # One that was sent back to the queue and is prefilled again keeps its forecast.
            if known is None or not state._true_initial_tokens:
                self.predicted[slot.index] = torch.nan
                self.kinds[slot.index] = 0
        slot.length, slot.step = length, self._step
        self._slots.move_to_end(state.request_id)
        return slot

    def _take(self, rows: int) -> int:
        """A free slot: one of a finished request, else the table grows."""
        if not self._free:
            for name in [name for name, slot in self._slots.items() if self._over(slot)]:
                self._evict(name)
        if not self._free:
            size = len(self.tokens)
            # Cancelled requests are never marked; in a table far larger than the batch the oldest are such.
            oldest = next(iter(self._slots), None)
            if oldest is not None and size >= max(8 * rows, _MANY) and self._slots[oldest].step < self._step:
                self._evict(oldest)
            else:
                added = max(size, 16)
                self.tokens = torch.nn.functional.pad(self.tokens, (0, 0, 0, added))
                self.kinds = torch.nn.functional.pad(self.kinds, (0, 0, 0, added))
                self.predicted = torch.nn.functional.pad(self.predicted, (0, added))
                self._free = list(range(size + added - 1, size - 1, -1))
        return self._free.pop()

    def _over(self, slot: _Slot) -> bool:
        # A request that is sent back to the queue is marked as finished too, but its end is not stamped.
        state = slot.state
        return state.status >= _FINISHED and state.lifespan[1] >= 0 and slot.step < self._step

    def _evict(self, name: str) -> None:
        slot = self._slots.pop(name)
        self._free.append(slot.index)
        self._records.pop(name, None)
        self._records[name] = self._record(slot)
        if len(self._records) > KEPT:
            self._records.popitem(last=False)

    def _record(self, slot: _Slot) -> Record:
        return Record(self.kinds[slot.index, : slot.length + 1].clone(), self.predicted[slot.index].clone())

    def _widen(self, width: int) -> None:
        missing = width - self.tokens.shape[1]
        if missing > 0:
            added = max(missing, self.tokens.shape[1], 256)
            self.tokens = torch.nn.functional.pad(self.tokens, (0, added))
            self.kinds = torch.nn.functional.pad(self.kinds, (0, added))


class SlotMemory(Predictions):
    """Stands in for a controller's ``PredictionTable`` and ``CloseLog``: the same values, kept by slot of a table. The
    padding of a row changes with the batch, and with it the prefix hashes under which those two keep them.

    Args:
        table: the requests.
        greedy: [B] bool, rows whose most likely token is taken.
    """

    def __init__(self, table: RequestTable, greedy: torch.Tensor) -> None:
        self._table = table
        self._greedy = greedy
        #: Slots and prefix lengths of the rows in this step, [B] int64.
        self.slots = self.lengths = torch.zeros(0, dtype=torch.int64)

    def store(self, keys: torch.Tensor, values: torch.Tensor, where: torch.Tensor) -> None:
        """As ``PredictionTable.store``; the keys are not needed."""
        kept = self._table.predicted
        kept[self.slots] = torch.where(where, values.to(kept.dtype), kept[self.slots])

    def lookup(self, keys: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        """As ``PredictionTable.lookup``."""
        found = self._table.predicted[self.slots].to(otherwise)
        return torch.where(found.isnan(), otherwise, found)

    def record(
        self,
        keys: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        preferred: torch.Tensor,
        forced: torch.Tensor,
    ) -> None:
        """As ``CloseLog.record``; what ``CloseLog.kinds`` would say is kept."""
        allowed = torch.where(forced, 1.0, after.float())
        own = torch.where(self._greedy, preferred, before.float() >= 0.5 * allowed)
        codes = torch.where(own, KINDS.index("natural"), torch.where(forced, KINDS.index("forced"), 3))
        codes = torch.where(keys == 0, 0, codes)
        self._table.kinds[self.slots, self.lengths] = codes.to(torch.uint8)


class PastMemory:
    """The same for a report of one finished request."""

    def __init__(self, record: Record) -> None:
        self._record = record
        #: Prefix hash by length of the prefix.
        self.keys: list[int] = []

    def lookup(self, keys: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        """[B] the predicted length; ``otherwise`` [B] where there is none."""
        predicted = self._record.predicted.to(otherwise)
        return torch.where(predicted.isnan(), otherwise, predicted)

    def kinds(self, greedy: bool) -> dict[int, str]:
        """As ``CloseLog.kinds`` (host sync)."""
        codes = zip(self.keys, self._record.kinds.tolist(), strict=False)
        return {key: KINDS[code] for key, code in codes if code}
