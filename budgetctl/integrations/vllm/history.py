"""The tokens of requests by slot, for the runner that keeps them on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from budgetctl.integrations.vllm.tally import Facts

#: Tokens before the last header that are kept of a prompt.
_BEFORE_HEADER = 16
#: Stands in the place of a sampled token that the host does not know yet.
_UNKNOWN = -1


def current_turn(prompt: Sequence[int], header: Sequence[int]) -> int:
    """Where the part of a prompt begins that matters for the state of its thought: a little before the last assistant
    header; 0 without one."""
    first, size = (header[0] if header else None), len(header)
    for at in range(len(prompt) - size, -1, -1) if size else ():
        if prompt[at] == first and list(prompt[at : at + size]) == list(header):
            return max(at - _BEFORE_HEADER, 0)
    return 0


def digest(tokens: Sequence[int]) -> int:
    """An int64 that tells what was not kept of a prompt from another's; 0 for nothing."""
    if not tokens:
        return 0
    found = blake2b(np.array(tokens, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(found, "little", signed=True)


@dataclass(eq=False)
class Entry:
    """A request in the batch.

    Args:
        slot: of the request, None where it has no limit.
        prompt: what is kept of its prompt.
        outputs: the runner's own list of new tokens, which grows.
        facts: for the counters, None where nothing is counted.
    """

    slot: int | None
    prompt: list[int]
    outputs: list[int]
    facts: Facts | None = None
    #: New tokens that are written already, and the last of them.
    written: int = field(default=0, init=False)
    last: int = field(default=_UNKNOWN, init=False)
    #: Of ``QuietWatch``: new tokens at the latest step and the last of them; the number of new tokens from which on the row
    #: has to be read again; those with which its thought is spent, its budget is, and the room before the answer's reserve
    #: is; its closing window; what the budget alone leaves in the answer, and what that may not have.
    seen: int = field(default=0, init=False)
    latest: int = field(default=_UNKNOWN, init=False)
    quiet_until: int = field(default=0, init=False)
    spent_at: int = field(default=0, init=False)
    capped: int = field(default=0, init=False)
    capped_at: int = field(default=0, init=False)
    room_until: int = field(default=0, init=False)
    window: int = field(default=0, init=False)
    bans: tuple[int, ...] | None = field(default=None, init=False)
    #: Whether the end of sequence was written.
    finished: bool = field(default=False, init=False)

    @property
    def changed(self) -> bool:
        """Whether tokens were taken back, or others have come in their places, since they were written."""
        outputs, written = self.outputs, self.written
        return written > len(outputs) or (written > 0 and outputs[written - 1] != self.last)

    def unwritten(self) -> list[int]:
        """Known tokens after the ``written`` ones, which count as written now."""
        new = self.outputs[self.written :]
        if _UNKNOWN in new:
            new = new[: new.index(_UNKNOWN)]
        if new:
            self.written += len(new)
            self.last = new[-1]
        return new

    def unread(self) -> None:
        """Write all new tokens again."""
        self.written, self.last = 0, _UNKNOWN

    @property
    def known(self) -> bool:
        """Whether every token of the prefix is."""
        return self.written == len(self.outputs)


class SlotTokens:
    """Tokens by slot, [S, T] int64, after columns of padding; both sizes grow.

    Args:
        padding: columns of 0 before each row.
    """

    def __init__(self, padding: int) -> None:
        self.padding = padding
        #: [S, padding + T].
        self.table: np.ndarray[Any, Any] = np.zeros((0, padding), dtype=np.int64)
        self._free: list[int] = []

    @property
    def slots(self) -> int:
        return len(self.table)

    def take(self) -> int:
        """A slot for a new request."""
        if not self._free:
            size = len(self.table)
            added = max(size, 16)
            self.table = np.pad(self.table, ((0, added), (0, 0)))
            self._free = list(range(size + added - 1, size - 1, -1))
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """The request has left the batch."""
        self._free.append(slot)

    def write(self, slot: int, position: int, tokens: Sequence[int]) -> None:
        """Write tokens of one slot from ``position`` on."""
        self.widen(position + len(tokens))
        begin = self.padding + position
        self.table[slot, begin : begin + len(tokens)] = tokens

    def widen(self, width: int) -> None:
        """Have room for rows of ``width`` tokens."""
        missing = self.padding + width - self.table.shape[1]
        if missing > 0:
            self.table = np.pad(self.table, ((0, 0), (0, max(missing, self.table.shape[1], 256))))
