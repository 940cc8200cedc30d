"""The limits of an engine's requests on the device, one row a slot."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import torch

from budgetctl.integrations.vllm.knobs import RequestLimits
from budgetctl.limits import RowTensors
from budgetctl.on_device import to_device

_COLUMNS = 9
_CAP, _FRACTION, _LIMITED, _MINIMUM, _ROOM, _TARGET, _TEMPERATURE, _SALT, _GREEDY = range(_COLUMNS)


class SlotLimits:
    """Limits by slot, [S, 9] int64 on the device. They are staged on the host and copied together.

    Args:
        slots: number of slots; it grows where a higher one is written.
        device: of the logits.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self._device = device
        self._table = torch.zeros(slots, _COLUMNS, dtype=torch.int64, device=device)
        self._staged: dict[int, list[int]] = {}
        self._known: dict[int, RequestLimits] = {}
        self._latest: tuple[torch.Tensor, SlotRows] | None = None

    def write(self, slot: int, limits: RequestLimits, salt: int = 0) -> None:
        """Stage the limits of the request that has the ``slot`` now; ``salt`` int64 stands for tokens before those that
        are kept of it."""
        bits = np.array([limits.fraction, limits.temperature], dtype=np.float32).view(np.int32).tolist()
        self._known[slot] = limits
        self._staged[slot] = [
            limits.cap,
            bits[0],
            int(limits.limited),
            limits.minimum,
            limits.room,
            int(limits.target),
            bits[1],
            salt,
            int(limits.greedy),
        ]

    def of(self, slot: int) -> RequestLimits:
        """Of the request that has the ``slot``."""
        return self._known[slot]

    def flush(self) -> None:
        """Copy what is staged to the device; the host does not wait."""
        if not self._staged:
            return
        self._latest = None
        slots, rows = list(self._staged), list(self._staged.values())
        self._staged.clear()
        missing = max(slots) + 1 - len(self._table)
        if missing > 0:
            added = max(missing, len(self._table))
            self._table = torch.nn.functional.pad(self._table, (0, 0, 0, added))
        at = to_device(torch.tensor(slots), self._device)
        self._table[at] = to_device(torch.tensor(rows), self._device)

    def rows(self, slots: torch.Tensor, known: Iterable[int]) -> SlotRows:
        """The limits of rows whose slots are ``slots`` [B] int64; ``known`` are all slots that may be among them. The same
        tensor stands for the same rows until something is written."""
        if self._latest is None or self._latest[0] is not slots:
            requests = [self._known[slot] for slot in known if slot in self._known]
            self._latest = slots, SlotRows(self._table[slots], requests)
        return self._latest[1]


class SlotRows:
    """The limits of one step's rows, in place of :class:`~budgetctl.limits.RowLimits`."""

    def __init__(self, table: torch.Tensor, requests: list[RequestLimits]) -> None:
        # Columns one by one: a list of them would be copied to the device, and waited for.
        fractions, temperatures = (_floats(table[:, column]) for column in (_FRACTION, _TEMPERATURE))
        caps = table[:, _CAP]
        self._rows = RowTensors(
            caps,
            fractions,
            table[:, _LIMITED].bool(),
            table[:, _MINIMUM],
            table[:, _ROOM],
            table[:, _TARGET].bool(),
            torch.zeros_like(caps),
        )
        #: [B, 1] float32, of the sampling that follows.
        self.temperatures = temperatures[:, None]
        #: [B] int64, of the tokens before those that are kept.
        self.salts = table[:, _SALT]
        #: [B] bool, rows that take the likeliest token.
        self.greedy = table[:, _GREEDY].bool()
        self.budgets = SimpleNamespace(needs_prediction=any(r.needs_prediction for r in requests))
        self.has_minimum = any(r.minimum > 0 for r in requests)
        self.has_target = any(r.target for r in requests)
        self.idle = False

    def on(self, rows: int, device: torch.device) -> RowTensors:
        """As :meth:`RowLimits.on <budgetctl.limits.RowLimits.on>`."""
        return self._rows


def _floats(bits: torch.Tensor) -> torch.Tensor:
    """float32 numbers whose bits are kept as int64."""
    return bits.to(torch.int32).view(torch.float32)
