"""Where the host would wait for a device, heard without one: the steps run on ``meta`` tensors, which are on no CPU and have
no values, so that the code takes the way of a device and whoever looks at a value fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from budgetctl.closing import Boundaries
from budgetctl.forecast import LengthForecast

#: In the place of a GPU.
DEVICE = torch.device("meta")
#: Operators whose result is a value on the host, or has a shape that depends on values.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.", "is_nonzero")
#: Functions that make a tensor of Python numbers: they are copied from memory of the host that is not pinned.
MAKERS = frozenset({"tensor", "as_tensor", "asarray", "new_tensor"})
INDEXING = frozenset({"__getitem__", "__setitem__"})


class _Operators(TorchDispatchMode):
    """Notes operators that read values, and those that mix host and device."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self._heard = heard

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        if any(read in name for read in READS):
            self._heard.append(name)
        if "aten.index" in name and len(args) > 1 and isinstance(args[1], list | tuple):
            masks = [a for a in args[1] if isinstance(a, torch.Tensor) and a.dtype == torch.bool]
            self._heard += [f"{name} by a mask" for _ in masks]
        result = func(*args, **kwargs)
        # A copy from pinned memory is not waited for, and a number on the host (no dimension) is passed by value,
        # but where `where` copies it.
        by_value = "where" not in name and "copy" not in name
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        kinds = {t.device.type for t in tensors if t.dim() or t.device.type != "cpu" or not by_value}
        if len(kinds) > 1 and not kwargs.get("non_blocking"):
            self._heard.append(f"{name} of host and device")
        return result


class _Functions(TorchFunctionMode):
    """Notes where Python numbers become tensors on the device, which no operator shows."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self._heard = heard

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        result = func(*args, **(kwargs or {}))
        if name in MAKERS and result.device.type != "cpu":
            given = [a for a in args if isinstance(a, torch.Tensor) and a.device == result.device]
            if name == "new_tensor" or not given:
                self._heard.append(f"{name} of Python numbers")
        if name in INDEXING and args[0].device.type != "cpu":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self._heard += [f"{name} by a list" for part in index if isinstance(part, list | range)]
        return result


@contextmanager
def listening() -> Iterator[list[str]]:
    """The list of what would have been waited for inside the block."""
    heard: list[str] = []
    with _Operators(heard), _Functions(heard):
        yield heard


def on_device(forecast: LengthForecast, boundaries: Boundaries) -> tuple[LengthForecast, Boundaries]:
    """Both as they would be beside a model on a device: the same sizes, no values."""
    moved: dict[int, Any] = {}
    for part in (forecast, forecast.predictor, forecast.source, forecast.features, forecast.head):
        moved |= {
            id(value): value.to(DEVICE) for value in vars(part).values() if isinstance(value, torch.Tensor)
        }
    there = deepcopy(forecast, moved)
    there.predictor.to(DEVICE)
    return there, boundaries.to(DEVICE)


def pin_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``to_device``, whose copies are not waited for, say so where no memory can be pinned."""

    def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
        return values.to(device, non_blocking=True)

    for name, module in list(sys.modules.items()):
        if name.startswith("budgetctl.") and hasattr(module, "to_device"):
            monkeypatch.setattr(module, "to_device", to_device)
