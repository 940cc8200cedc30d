"""Layers whose slots lie next to each other in the CPU's memory, so that what is done to all of them is one operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from budgetctl.kernels.kv_state import SlotState

if TYPE_CHECKING:
    from budgetctl.kv.slots import Slots

#: Most slots of all rows and heads of a stack: what is computed for each of them is to stay in the processor's cache.
MOST_SLOTS = 1 << 16


@dataclass(frozen=True)
class Stack:
    """The slots of some layers.

    Args:
        layers: that follow each other in a model.
        state: of all of them, the rows of one after those of the other.
        parts: views of it, one a layer.
    """

    layers: tuple[Slots, ...]
    state: SlotState
    parts: tuple[SlotState, ...]

    def part_of(self, layer: Slots) -> SlotState:
        """The slots of ``layer``."""
        return next(part for other, part in zip(self.layers, self.parts, strict=True) if other is layer)

    @property
    def together(self) -> bool:
        """Whether all layers still have their slots here, have seen as many tokens, and have no victim left."""
        length = self.layers[0].cumulative_length
        return all(
            layer.stack is self and layer.queued == 0 and layer.cumulative_length == length
            for layer in self.layers
        )


def allocate(
    layer: Slots,
    layers: Sequence[Slots],
    batch: int,
    key_size: int,
    value_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> SlotState:
    """Empty slots of ``layer``; on the CPU those of the next layers with them, which get theirs when they ask.

    Args:
        layer: without slots.
        layers: of its cache; may be none.
        batch: rows of the state.
        key_size: D.
        value_size: E.
        dtype: of keys and values.
        device: of the layer.
    """
    if layer.stack is not None:
        part = layer.stack.part_of(layer)
        asked = (batch, sum(layer.capacities), key_size, value_size, dtype, device)
        if (*part.keys.shape, part.values.shape[2], part.keys.dtype, part.keys.device) == asked:
            return part
        layer.stack = None
    found = [layer]
    if device.type == "cpu" and layer.rows is None:
        at = next((i for i, other in enumerate(layers) if other is layer), len(layers))
        most = MOST_SLOTS // (batch * sum(layer.capacities))
        for other in layers[at + 1 : at + most]:
            if other.capacities != layer.capacities or other.stack is not None or other.batch >= 0:
                break
            found.append(other)
    state = SlotState.allocate(
        batch * len(found),
        layer.capacities,
        key_size,
        value_size,
        interval=layer.interval,
        value_norms=layer.policy.value_norms,
        evicted=layer.sums_evicted,
        dtype=dtype,
        device=device,
    )
    if len(found) == 1:
        return state
    parts = tuple(state.of_rows(i * batch, (i + 1) * batch) for i in range(len(found)))
    stack = Stack(tuple(found), state, parts)
    for other in found:
        other.stack = stack
    return parts[0]
