"""The tokens of requests on the device, for the runner that keeps them on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import torch

from budgetctl.integrations.request_table import to_device

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


@dataclass
class Entry:
    """A request in the batch.

    Args:
        slot: of the request.
        prompt: what is kept of its prompt.
        outputs: the runner's own list of new tokens, which grows.
    """

    slot: int
    prompt: list[int]
    outputs: list[int]
    _written: int = field(default=0, init=False)
    _last: int = field(default=_UNKNOWN, init=False)

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return len(self.prompt) + len(self.outputs)

    def unwritten(self) -> list[tuple[int, int]]:
        """Positions and tokens that are not on the device yet, or that have changed. Tokens may be taken back, and ones
        that were unknown may have become known."""
        outputs = self.outputs
        changed = self._written > len(outputs) or (self._written and outputs[self._written - 1] != self._last)
        if changed:
            self._written = 0
        new = outputs[self._written :]
        base = len(self.prompt) + self._written
        if _UNKNOWN in new:
            new = new[: new.index(_UNKNOWN)]
        self._written += len(new)
        self._last = outputs[self._written - 1] if self._written else _UNKNOWN
        return [(base + at, token) for at, token in enumerate(new)]

    @property
    def known(self) -> bool:
        """Whether every token of the prefix is."""
        return self._written == len(self.outputs)


class SlotTokens:
    """Tokens by slot, [S, T] int64 on the device; both sizes grow.

    Args:
        device: of the logits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tokens = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self._free: list[int] = []

    @property
    def slots(self) -> int:
        return len(self._tokens)

    def take(self) -> int:
        """A slot for a new request."""
        if not self._free:
            size = len(self._tokens)
            added = max(size, 16)
            self._tokens = torch.nn.functional.pad(self._tokens, (0, 0, 0, added))
            self._free = list(range(size + added - 1, size - 1, -1))
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """The request has left the batch."""
        self._free.append(slot)

    def begin(self, slot: int, prompt: Sequence[int]) -> None:
        """Write the tokens of a prompt."""
        self._widen(len(prompt))
        self._tokens[slot, : len(prompt)] = to_device(torch.tensor(prompt, dtype=torch.int64), self._device)

    def write(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """Write tokens, as slot, position and id."""
        if tokens:
            slots, positions, ids = zip(*tokens, strict=True)
            self._widen(max(positions) + 1)
            slot, position, token = to_device(torch.tensor([slots, positions, ids]), self._device)
            self._tokens[slot, position] = token

    def prefixes(self, slots: torch.Tensor, lengths: torch.Tensor, width: int) -> torch.Tensor:
        """Prefixes of ``lengths`` [B], left-padded with 0 to [B, ``width``] int64."""
        self._widen(width)
        at = torch.arange(width, device=lengths.device) - (width - lengths)[:, None]
        return torch.where(at >= 0, self._tokens[slots[:, None], at.clamp(min=0)], 0)

    def _widen(self, width: int) -> None:
        missing = width - self._tokens.shape[1]
        if missing > 0:
            self._tokens = torch.nn.functional.pad(
                self._tokens, (0, max(missing, self._tokens.shape[1], 256))
            )
