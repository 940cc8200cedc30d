"""Slots of one attention layer under a KV budget: the tensors that the decode step reads and writes.

The reference (``kv_reference``) and a kernel work on the same :class:`SlotState`. Nothing here is ever grown or moved:
a new token overwrites a slot in place, so addresses and sizes stay what they were when the layer was set up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import torch

from budgetctl.errors import KernelError

#: How a slot's importance follows the attention mass m it gets at a step; see ``kv_reference.decode_step``.
Rule = Literal["max", "sum", "none"]
#: How the query heads that share a key are taken together.
Group = Literal["max", "mean"]
#: ``SlotState.answers`` of a row that has no answer yet.
NO_ANSWER = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class Protection:
    """Which positions are never victims, beside the answer's. Its defaults are those of the cache.

    Args:
        sinks: first tokens of the sequence (StreamingLLM, arXiv 2309.17453).
        recent: latest tokens, counted when victims are picked.
        prompt_share: a prompt of at most this share of a head's capacity is protected as a whole; a longer one
            competes by importance.
    """

    sinks: int = 4
    recent: int = 32
    prompt_share: float = 0.2


@dataclass
class SlotState:
    """State of one layer: B rows, H key-value heads, S slots a row, of which head h owns ``offsets[h]:offsets[h+1]``.

    All tensors are on one device; the last dimension has stride 1. Nothing is shared between rows or heads, so a kernel
    may give each (row, head) to a program of its own, which alone writes to it.

    Args:
        keys: [B, S, D] of the model's dtype, rotated as the model gave them.
        values: [B, S, E] of the model's dtype.
        positions: [B, S] int32, place of the token in its row (padding not counted), -1 for an empty slot.
        importance: [B, S] float32 (float64 for float64 keys), by the policy's rule; of no meaning in empty slots.
        value_norms: [B, S] like ``importance``, L1 norm of the value; None where no policy asks for it.
        queue: [B, H, W] int32, slots (counted over the whole row, 0 to S - 1) that the next W tokens take, distinct
            within a head.
        cursor: [B, H] int32, entries of the queue that have been taken.
        lengths: [B, H] int32, tokens that the row has seen, which is the position of the next one; equal over heads.
        prompts: [B, H] int32, tokens of the prompt; equal over heads.
        answers: [B, H] int32, position of the answer's first token, ``NO_ANSWER`` before there is one; equal over heads.
        evicted: [B, H] like ``importance``, sum of the importance of the tokens that were overwritten, each as it was then;
            None where nobody asks for it.
        offsets: H + 1 slot counts, from 0 to S.
        full: whether the host knows that no slot is empty; true only while one who has looked has victims named.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    importance: torch.Tensor
    value_norms: torch.Tensor | None
    queue: torch.Tensor
    cursor: torch.Tensor
    lengths: torch.Tensor
    prompts: torch.Tensor
    answers: torch.Tensor
    evicted: torch.Tensor | None
    offsets: tuple[int, ...]
    full: bool = False

    @classmethod
    def allocate(
        cls,
        batch: int,
        capacities: Sequence[int],
        key_size: int,
        value_size: int,
        *,
        interval: int = 1,
        value_norms: bool = False,
        evicted: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> SlotState:
        """Empty slots.

        Args:
            batch: rows.
            capacities: slots of each key-value head, at least 1.
            key_size: D.
            value_size: E.
            interval: W, tokens from one pick of victims to the next.
            value_norms: whether the policy reads norms of values.
            evicted: whether the importance of what is overwritten is summed up.
            dtype: of keys and values.
            device: of all tensors.

        Raises:
            KernelError: when a head has no slot or the interval is longer than its slots.
        """
        if min(capacities, default=0) < max(interval, 1):
            raise KernelError(
                f"capacities {tuple(capacities)} with an interval of {interval}: expected at least one slot a head "
                "and an interval no longer than that; raise the capacity or shorten the interval"
            )
        offsets = (0, *accumulate(capacities))
        heads, slots = len(capacities), offsets[-1]
        work = torch.promote_types(dtype, torch.float32)

        def empty(*shape: int, kind: torch.dtype = torch.int32, value: float = 0) -> torch.Tensor:
            return torch.full(shape, value, dtype=kind, device=device)

        return cls(
            keys=empty(batch, slots, key_size, kind=dtype),
            values=empty(batch, slots, value_size, kind=dtype),
            positions=empty(batch, slots, value=-1),
            importance=empty(batch, slots, kind=work),
            value_norms=empty(batch, slots, kind=work) if value_norms else None,
            queue=empty(batch, heads, interval),
            cursor=empty(batch, heads, value=interval),
            lengths=empty(batch, heads),
            prompts=empty(batch, heads),
            answers=empty(batch, heads, value=NO_ANSWER),
            evicted=empty(batch, heads, kind=work) if evicted else None,
            offsets=offsets,
        )

    @cached_property
    def capacities(self) -> tuple[int, ...]:
        """Slots of each head."""
        return tuple(b - a for a, b in zip(self.offsets, self.offsets[1:], strict=False))

    @cached_property
    def widest(self) -> int:
        """C, the most slots that a head has."""
        return max(self.capacities)

    @property
    def uniform(self) -> bool:
        """Whether all heads have as many slots, so that a view by head needs no copy."""
        return min(self.capacities) == self.widest

    @cached_property
    def contiguous(self) -> bool:
        """Whether every tensor is contiguous, which kernels rely on; looked up once, as none is ever replaced."""
        return all(tensor.is_contiguous() for tensor in self.tensors().values())

    @cached_property
    def first(self) -> torch.Tensor:
        """[H] int64, each head's first slot."""
        return torch.tensor(self.offsets[:-1], device=self.keys.device)

    @cached_property
    def sizes(self) -> torch.Tensor:
        """[H] int64, slots of each head."""
        return torch.tensor(self.capacities, device=self.keys.device)

    @cached_property
    def outside(self) -> torch.Tensor:
        """[H, C] bool, columns that a narrower head does not have."""
        return torch.arange(self.widest, device=self.keys.device) >= self.sizes[:, None]

    @cached_property
    def _columns(self) -> torch.Tensor:
        """[H, C] int64 slot of each head's columns; a narrower head repeats its last."""
        columns = torch.arange(self.widest, device=self.keys.device)
        return self.first[:, None] + torch.minimum(columns, self.sizes[:, None] - 1)

    def heads(self, tensor: torch.Tensor, width: int | None = None) -> torch.Tensor:
        """[B, H, C, ...] of a tensor [B, S, ...], only the first ``width`` columns; a view where heads are alike.

        Columns that a head does not have show its last slot; :meth:`head_positions` marks them empty.
        """
        width = self.widest if width is None else min(width, self.widest)
        if self.uniform:
            return tensor.unflatten(1, (len(self.capacities), self.widest))[:, :, :width]
        return tensor[:, self._columns[:, :width]]

    def head_positions(self, width: int | None = None) -> torch.Tensor:
        """[B, H, C] int32 positions by head, -1 where there is no token."""
        found = self.heads(self.positions, width)
        if self.uniform:
            return found
        return found.masked_fill(self.outside[:, : found.shape[2]], -1)

    def put_heads(self, tensor: torch.Tensor, by_head: torch.Tensor) -> None:
        """Write [B, H, w] back to the first w columns of the heads of ``tensor`` [B, S]."""
        width = by_head.shape[2]
        if self.uniform:
            self.heads(tensor, width).copy_(by_head)
            return
        inside = ~self.outside[:, :width]
        tensor[:, self._columns[:, :width][inside]] = by_head[:, inside]

    def slots(self, columns: torch.Tensor) -> torch.Tensor:
        """Slots of the row [B, H, n] int64 that columns [B, H, n] of the heads stand for."""
        return columns + self.first[:, None]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name; the first dimension of each is the row."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, torch.Tensor)}

    def reorder(self, rows: torch.Tensor) -> None:
        """Put row ``rows[i]`` [B] into row i, in place."""
        for tensor in self.tensors().values():
            tensor.copy_(tensor.index_select(0, rows.to(tensor.device)))

    def select(self, rows: torch.Tensor) -> SlotState:
        """New state of the given rows [n] int64."""
        chosen: dict[str, Any] = {
            name: t.index_select(0, rows.to(t.device)) for name, t in self.tensors().items()
        }
        return replace(self, **chosen)

    def of_rows(self, start: int, stop: int) -> SlotState:
        """The rows from ``start`` to ``stop``, in the same memory."""
        parts: dict[str, Any] = {name: tensor[start:stop] for name, tensor in self.tensors().items()}
        return replace(self, **parts)

    def clear(self) -> None:
        """Forget every token; the memory stays."""
        self.positions.fill_(-1)
        self.cursor.fill_(self.queue.shape[2])
        self.lengths.zero_()
        self.prompts.zero_()
        self.answers.fill_(NO_ANSWER)
        if self.evicted is not None:
            self.evicted.zero_()

    @property
    def bytes(self) -> int:
        """Bytes allocated, keys and values and all state."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())
