"""Working memory of the decode kernel: how many programs share a head, and what they hand on to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from budgetctl.kernels.kv_state import SlotState

__all__ = ["KVScratch", "logits_stride", "splits"]

#: Programs that keep a large GPU busy: one on each of the 132 multiprocessors of an H100 or H200. More were slower there:
#: what the last program of a head does grows with the splits (docs/kernels.md).
ENOUGH_PROGRAMS = 132
#: Fewest slots that are worth a program of their own.
LEAST_SLOTS = 128


def splits(batch: int, heads: int, slots: int) -> int:
    """Programs that share a head's slots: as many as fill the GPU once, each with at least :data:`LEAST_SLOTS` slots.

    A power of two, so that few kernels are compiled where the batch varies.

    Args:
        batch: B.
        heads: H, key-value heads.
        slots: C, of the widest head.
    """
    most = max(min(ENOUGH_PROGRAMS // (batch * heads), slots // LEAST_SLOTS), 1)
    return 1 << most.bit_length() - 1


@dataclass(frozen=True)
class KVScratch:
    """Working memory of the decode kernel, at fixed addresses; layers whose steps follow each other share one.

    Two launches that may overlap (on different streams) need one each.

    Args:
        partials: float32, at least B H splits G E numbers, sums of values by split.
        extremes: float32, at least 2 B H splits G, largest logit and sum of weights by split.
        logits: float32, at least B H G C rounded up to 16, in units of log2.
        counters: int32, at least B H, programs of a head that are done; 0 between launches.
    """

    partials: torch.Tensor
    extremes: torch.Tensor
    logits: torch.Tensor
    counters: torch.Tensor

    @classmethod
    def allocate(cls, states: Sequence[SlotState], groups: int, parts: int | None = None) -> KVScratch:
        """Enough for a step of each of the states.

        Args:
            states: at least one, all on one device.
            groups: G, query heads that share a key-value head.
            parts: splits; None for what :func:`splits` says.
        """
        needed = [_needed(state, groups, parts) for state in states]
        sizes = [max(each) for each in zip(*needed, strict=True)]
        device = states[0].keys.device
        partials, extremes, logits = (
            torch.empty(size, dtype=torch.float32, device=device) for size in sizes[:3]
        )
        counters = torch.zeros(sizes[3], dtype=torch.int32, device=device)
        return cls(partials, extremes, logits, counters)

    def fits(self, state: SlotState, groups: int, parts: int | None = None) -> bool:
        """Whether a step of this state can work in it."""
        held = (self.partials, self.extremes, self.logits, self.counters)
        needed = _needed(state, groups, parts)
        return self.partials.device == state.keys.device and all(
            tensor.numel() >= size for tensor, size in zip(held, needed, strict=True)
        )

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return sum(
            t.numel() * t.element_size() for t in (self.partials, self.extremes, self.logits, self.counters)
        )


def _needed(state: SlotState, groups: int, parts: int | None) -> tuple[int, int, int, int]:
    """Elements of the tensors of a :class:`KVScratch`."""
    return _elements(*state.cursor.shape, state.widest, state.values.shape[2], groups, parts)


@lru_cache
def _elements(
    batch: int, heads: int, slots: int, value_size: int, groups: int, parts: int | None
) -> tuple[int, int, int, int]:
    if parts is None:
        parts = splits(batch, heads, slots)
    rows = batch * heads * groups
    return rows * parts * value_size, rows * parts * 2, rows * _rounded(slots), batch * heads


def logits_stride(state: SlotState) -> int:
    """Logits of a query head in :attr:`KVScratch.logits`: C rounded up to 16."""
    return _rounded(state.widest)


def _rounded(slots: int) -> int:
    return -(-slots // 16) * 16
