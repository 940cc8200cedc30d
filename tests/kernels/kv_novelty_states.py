"""States with keys of some common direction, and the reference of novelty."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from budgetctl.kernels.kv_novelty import difference, diverse
from budgetctl.kernels.kv_state import SlotState


def fill(
    batch: int,
    capacities: list[int],
    size: int,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int,
    *,
    occupied: float = 1.0,
    interval: int = 4,
) -> SlotState:
    """Slots of which that share holds a token; what empty ones hold would be seen."""
    generator = torch.Generator().manual_seed(seed)
    state = SlotState.allocate(
        batch, capacities, size, size, interval=interval, value_norms=True, dtype=dtype, device=device
    )
    assert state.value_norms is not None
    slots = state.offsets[-1]
    keys = torch.randn(batch, slots, size, generator=generator) * torch.rand(
        batch, slots, 1, generator=generator
    )
    state.keys.copy_(keys + 0.3)
    state.importance.copy_(torch.rand(batch, slots, generator=generator) ** 8)
    state.value_norms.copy_(torch.rand(batch, slots, generator=generator) + 0.5)
    positions = torch.rand(batch, slots, generator=generator).argsort(1).int()
    positions[torch.rand(batch, slots, generator=generator) >= occupied] = -1
    empty = (positions < 0).to(device)
    state.positions.copy_(positions)
    state.keys[empty], state.importance[empty], state.value_norms[empty] = 50.0, 9.0, 7.0
    state.lengths.fill_(3 * max(capacities))
    return state


def in_double(state: SlotState) -> SlotState:
    """A copy in float64."""
    changed: dict[str, Any] = {}
    for field in fields(state):
        tensor = getattr(state, field.name)
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            changed[field.name] = tensor.double()
    return replace(state, **changed)


def reference(state: SlotState, weight: float | None, width: int | None) -> torch.Tensor:
    return difference(state, width) if weight is None else diverse(state, weight, width)
