"""Constants that are made once a device, and what may be asked of a tensor without stopping the host for its device."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from budgetctl.kernels.host_reads import may_look


def constant(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """``values`` as int64 [n]; the same tensor at every step, which nobody may write to.

    Making it anew would copy from the host to the device at each step. A compiled function computes it from numbers in
    its code.
    """
    if not torch.compiler.is_compiling():
        return _made(values, device)
    columns = torch.arange(len(values), device=device)
    made = torch.full_like(columns, values[0] if values else 0)
    for column, value in enumerate(values[1:], start=1):
        made = torch.where(columns == column, value, made)
    return made


@lru_cache(maxsize=1024)
def _made(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return to_device(torch.tensor(values, dtype=torch.int64), device)


#: Of each device, the numbers of as many columns as were asked for.
_COLUMNS: dict[torch.device, torch.Tensor] = {}


def columns_of(width: int, device: torch.device) -> torch.Tensor:
    """0 to ``width`` - 1 as int64 [T], a part of what is kept for the device, which nobody may write to."""
    if torch.compiler.is_compiling():
        return torch.arange(width, device=device)
    known = _COLUMNS.get(device)
    if known is None or len(known) < width:
        with torch.inference_mode(False):
            known = _COLUMNS[device] = torch.arange(2 * width + 1024, device=device)
    return known[:width]


@lru_cache(maxsize=64)
def _true(device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.ones(1, 1, dtype=torch.bool, device=device)


def all_true(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """[rows, columns] bool, which nobody may write to; made once a device."""
    if torch.compiler.is_compiling():
        return torch.ones(rows, columns, dtype=torch.bool, device=device)
    return _true(device).expand(rows, columns)


def but_not(these: torch.Tensor, those: torch.Tensor) -> torch.Tensor:
    """``these`` and not ``those``, bool of shapes that broadcast: one operation."""
    return these > those


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``values`` on a device; the host does not wait for the copy, since its own memory is pinned."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def may_hold(rows: torch.Tensor) -> bool:
    """Whether any of ``rows`` bool may be true: False only where that is known without waiting for a device."""
    return not may_look(rows.device) or bool(np.count_nonzero(rows.numpy()))
