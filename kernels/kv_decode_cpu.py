"""Decode steps on the CPU in few operations, for the entries of one queue.

A step of few rows is bound by the number of operations, not by what is in them. :class:`QueuedSteps` does what
:func:`budgetctl.kernels.kv_reference.decode_step` does, but for rounding, and leaves out of a step what nobody reads before
victims are named again: slots are looked up once for all entries of the queue, positions, lengths and norms are written
once for all of them, and where no slot is empty nothing is masked. What is left is one write each of key, value and
importance, two matrix products with a softmax between them, and three operations that follow the attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from budgetctl.kernels.kv_reference import value_norm
from budgetctl.kernels.kv_state import Group, Rule, SlotState

#: Of each entry of a queue the slots [B H] int64, counted over all rows; what is added to the logits [B H, C], None where no slot
#: is empty; and for each entry which of its slots hold a token [W, B H] bool, None for all.
Entries = tuple[Sequence[torch.Tensor], torch.Tensor | None, torch.Tensor | None]


class StepScratch:
    """Working memory of steps that follow each other: logits, weights and masses. Grows to what is asked for, once."""

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None
        self._shape: tuple[int, int, int] | None = None
        self._views: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def of(
        self, pairs: int, groups: int, width: int, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [pairs, G, w], weights [pairs, G, w] and masses [pairs, w] of the dtype of ``like``."""
        whole, memory = pairs * groups * width, self._memory
        needed = 2 * whole + pairs * width
        if memory is None or memory.numel() < needed or memory.dtype != like.dtype:
            self._memory = memory = like.new_empty(needed)
            self._views = None
        if self._views is None or self._shape != (pairs, groups, width):
            self._shape = (pairs, groups, width)
            self._views = (
                memory[:whole].view(pairs, groups, width),
                memory[whole : 2 * whole].view(pairs, groups, width),
                memory[2 * whole : needed].view(pairs, width),
            )
        return self._views


class QueuedSteps:
    """The steps of one layer that take the entries of its queue, one after the other.

    Between :meth:`take` and :func:`settle`, keys, values, importance and what was evicted are as they should be; positions,
    lengths, cursor and norms of values are behind. Tokens are real: a step with padding is the reference's.

    Args:
        state: of heads that are alike, on the CPU; written.
        groups: G, query heads that share a key-value head.
        scratch: shared with other layers.
    """

    def __init__(self, state: SlotState, groups: int, scratch: StepScratch) -> None:
        self.state, self._scratch, self._groups = state, scratch, groups
        self._pairs = len(state.keys) * len(state.capacities)
        self._work = torch.promote_types(state.keys.dtype, torch.float32)
        self._keys, self._values = state.keys.flatten(0, 1), state.values.flatten(0, 1)
        self._flat_importance = state.importance.view(-1)
        self._slots: Sequence[torch.Tensor] = ()
        self._decay = 1.0
        self._width = self.taken = self.done = 0

    def take(self, entries: Entries, *, taken: int, width: int) -> None:
        """Go on with these entries of the queue.

        Args:
            entries: of this state.
            taken: entries of the queue that are taken already.
            width: no head has a token beyond its first ``width`` columns when the last entry is taken.
        """
        self._slots, self._bias, self._held = entries
        self.taken, self.done = taken, 0
        width = min(width, self.state.widest)
        if width != self._width:
            self._width = width
            by_head = [
                t.view(self._pairs, self.state.widest, -1)[:, :width]
                for t in (self.state.keys, self.state.values, self.state.importance)
            ]
            self._keys_by_head, self._values_by_head = by_head[:2]
            self._importance = by_head[2][..., 0]
        self._memory = self._scratch.of(self._pairs, self._groups, width, self._importance)

    def step(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        rule: Rule,
        decay: float,
        group: Group,
    ) -> torch.Tensor:
        """One token a row takes the next entry; arguments as of :func:`budgetctl.kernels.kv_reference.decode_step`.

        Args:
            query: [B, G H, D] or [B, G H, 1, D], of the dtype of the keys.
            key: [B, H, D] or [B, H, 1, D].
            value: [B, H, E] or [B, H, 1, E].
            scale: factor of the logits.
            rule: ``max``, ``sum`` or ``none``.
            decay: in [0, 1].
            group: ``max`` or ``mean``.

        Returns:
            [B H, G, E], memory of its own.
        """
        slot, pairs, work = self._slots[self.done], self._pairs, self._work
        if self.state.evicted is not None:
            going = self._flat_importance.index_select(0, slot)
            if self._held is not None:
                going.mul_(self._held[self.done])
            self.state.evicted.view(-1).add_(going)
        self._keys.index_copy_(0, slot, key.reshape(pairs, -1))
        self._values.index_copy_(0, slot, value.reshape(pairs, -1))
        self._flat_importance.index_fill_(0, slot, 0.0)
        self.done += 1

        grouped, keys, values = (
            query.reshape(pairs, self._groups, -1),
            self._keys_by_head,
            self._values_by_head,
        )
        if work != query.dtype or work != keys.dtype:
            grouped, keys, values = (t.to(work) for t in (grouped, keys, values))
        logits, weights, mass = self._memory
        if self._bias is None:
            torch.baddbmm(logits, grouped, keys.mT, beta=0, alpha=scale, out=logits)
        else:
            self._bias.view(-1).index_fill_(0, slot, 0.0)
            torch.baddbmm(self._bias[:, None, : self._width], grouped, keys.mT, alpha=scale, out=logits)
        torch.softmax(logits, 2, out=weights)
        output = torch.bmm(weights, values)
        if rule != "none":
            importance = self._importance
            (torch.amax if group == "max" else torch.mean)(weights, 1, out=mass)
            if decay != 1.0:
                if decay != self._decay:
                    # A number of Python's would be made a tensor at every step.
                    self._decay, self._factor = decay, torch.tensor(decay, dtype=importance.dtype)
                importance.mul_(self._factor)
            if rule == "max":
                torch.maximum(importance, mass, out=importance)
            else:
                importance.add_(mass)
        return output if work == query.dtype else output.to(query.dtype)


def is_full(state: SlotState) -> bool:
    """Whether no slot is empty. For the host that may look."""
    return int(state.positions.amin()) >= 0


def entries_of(state: SlotState, layers: int, *, taken: int, width: int, full: bool) -> list[Entries]:
    """What is left of the queue, for the steps of each layer.

    Args:
        state: of some layers, whose rows follow each other; heads are alike.
        layers: number of them.
        taken: entries that are taken already.
        width: as of :meth:`QueuedSteps.take`.
        full: whether no slot is empty.
    """
    batch, heads, interval = state.queue.shape
    each, left, slots = batch // layers, interval - taken, state.keys.shape[1]
    queue = state.queue[:, :, taken:]
    # [layers, W - taken, B H], slots counted over the rows of a layer.
    rows = torch.arange(0, each * slots, slots)[:, None, None]
    index = (queue.view(layers, each, heads, left) + rows).permute(0, 3, 1, 2).reshape(layers * left, -1)
    every = index.unbind()
    found = [every[i * left : (i + 1) * left] for i in range(layers)]
    if full:
        return [(each_layers, None, None) for each_layers in found]
    empty = state.heads(state.positions, width) < 0
    work = state.importance.dtype
    bias = torch.zeros(layers, each * heads, state.widest, dtype=work)
    bias[:, :, : empty.shape[2]].masked_fill_(empty.view(layers, each * heads, -1), torch.finfo(work).min)
    held = state.positions.gather(1, queue.flatten(1).long()) >= 0
    held = held.view(layers, each, heads, left).permute(0, 3, 1, 2).reshape(layers, left, -1)
    return list(zip(found, bias.unbind(), held.unbind(), strict=True))


def settle(state: SlotState, *, taken: int, done: int) -> None:
    """Write what ``done`` steps have left behind that took the queue from entry ``taken`` on.

    Args:
        state: of one layer or of several that took equal steps; written.
        taken: entries that were taken before.
        done: steps.
    """
    if not done:
        return
    rows, slots = state.positions.shape
    index = state.queue[:, :, taken : taken + done] + torch.arange(0, rows * slots, slots)[:, None, None]
    index = index.flatten()
    positions = state.lengths[:, :, None] + torch.arange(done, dtype=torch.int32)
    state.positions.view(-1).index_copy_(0, index, positions.flatten())
    state.lengths.add_(done)
    state.cursor.fill_(taken + done)
    if state.value_norms is not None:
        values = state.values.flatten(0, 1).index_select(0, index)
        state.value_norms.view(-1).index_copy_(0, index, value_norm(values, state.value_norms.dtype))
