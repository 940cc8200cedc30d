"""Predicted lengths of an engine's requests: by slot, checked by a hash of the prefix, and by that hash alone.

A request that was sent back to the queue may come into another slot, with tokens behind its thought's beginning; there
the hash finds what was predicted. It is a hash of the row's own tokens, so that padding does not matter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.kernels.host_reads import may_look
from budgetctl.ledger import PredictionTable
from budgetctl.prefix_hash import hash_of, mix
from budgetctl.prefix_reader import PrefixReader, Reading
from budgetctl.protect import Spans


class SlotPredictions(PredictionTable):
    """As ``PredictionTable``, with the values of requests that are running kept by slot as well.

    Args:
        slots: number of slots; it grows.
        device: of the logits.
        dtype: of the forecast.
    """

    def __init__(self, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        # The last slot takes the writes of rows that store nothing.
        self._slot_keys = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self._slot_values = torch.zeros(slots + 1, dtype=dtype, device=device)
        #: [B] int64, of the rows in this step; rows of one slot are of one request.
        self.slots = torch.zeros(0, dtype=torch.int64, device=device)
        #: Of the values.
        self.dtype = dtype

    def forget(self, slot: int) -> None:
        """The slot is another request's now."""
        self._slot_keys[slot] = 0

    def of_slot(self, slot: int) -> torch.Tensor:
        """[] what is kept of a slot, nan for nothing."""
        return torch.where(self._slot_keys[slot] == 0, torch.nan, self._slot_values[slot])

    def grow(self, slots: int) -> None:
        """Have room for so many slots."""
        missing = slots + 1 - len(self._slot_keys)
        if missing > 0:
            added = max(missing, len(self._slot_keys))
            self._slot_keys = torch.nn.functional.pad(self._slot_keys, (0, added))
            self._slot_values = torch.nn.functional.pad(self._slot_values, (0, added))

    def store(self, keys: torch.Tensor, values: torch.Tensor, where: torch.Tensor) -> None:
        """As ``PredictionTable.store``."""
        super().store(keys, values, where)
        self._keep(keys, values, where)

    def all_of(self, keys: torch.Tensor) -> torch.Tensor | None:
        """As ``PredictionTable.all_of``."""
        if not may_look(keys.device):
            return None
        if np.count_nonzero(self.known(keys)) < len(keys):
            return None
        return torch.from_numpy(self._slot_values.numpy()[self.slots.numpy()])

    def known(self, keys: torch.Tensor) -> np.ndarray[Any, Any]:
        """[B] bool, which of ``keys`` [B] are kept by slot, on the CPU."""
        found: np.ndarray[Any, Any] = self._slot_keys.numpy()[self.slots.numpy()] == keys.numpy()
        return found

    def lookup(self, keys: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        """As ``PredictionTable.lookup``."""
        kept, values = self._slot_keys[self.slots] == keys, self._slot_values[self.slots].to(otherwise)
        found = torch.where(kept, values, super().lookup(keys, otherwise))
        self._keep(keys, found, ~kept & ~found.isnan())
        return found

    def _keep(self, keys: torch.Tensor, values: torch.Tensor, where: torch.Tensor) -> None:
        slots = torch.where(where, self.slots, len(self._slot_keys) - 1)
        self._slot_keys[slots] = torch.where(where, keys, 0)
        self._slot_values[slots] = values.to(self._slot_values)


class SlotReader(PrefixReader):
    """A ``PrefixReader`` whose ``start_key`` is a hash of the row without its padding, or what was read elsewhere."""

    def __init__(self, delimiters: ThinkingDelimiters) -> None:
        super().__init__(delimiters)
        #: Of this step's rows, where they were read already.
        self.given: Reading | None = None
        #: [B] int64, columns of padding before each row of this step.
        self.padding = torch.zeros(0, dtype=torch.int64)
        #: [B] int64, of the tokens before those of each row.
        self.salts = torch.zeros(0, dtype=torch.int64)

    def read(
        self, input_ids: torch.Tensor, prompt_length: int | torch.Tensor | None, spans: Spans | None
    ) -> Reading:
        """As ``PrefixReader.read``."""
        if self.given is not None:
            return self.given
        reading = super().read(input_ids, prompt_length, spans)
        own = hash_rows(input_ids, self.padding, reading.state.thought_start)
        return replace(reading, start_key=hash_of(own, self.salts))


def hash_rows(input_ids: torch.Tensor, padding: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
    """[B] int64 hash, never 0, of the columns from ``padding`` [B] up to ``stop`` [B] of rows [B, T] int64."""
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    own = (columns >= padding[:, None]) & (columns < stop[:, None])
    mixed = mix(mix(columns - padding[:, None] + 1) ^ input_ids)
    return hash_of((mixed * own).sum(1), stop - padding)
