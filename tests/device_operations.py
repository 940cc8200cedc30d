"""How many operators a step of the controller gives to a device, counted without one, on ``meta`` tensors.

``python -m tests.device_operations`` prints a table of them.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.device_waits import DEVICE

#: Operators that only look at a tensor in another way, or make a number on the host.
VIEWS = frozenset(
    [
        "alias",
        "as_strided",
        "detach",
        "expand",
        "permute",
        "scalar_tensor",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
        "view",
        "_reshape_alias",
        "_unsafe_view",
        "lift_fresh",
        "promote_types",
    ]
)


class Operators(TorchDispatchMode):
    """Counts, in ``count``, the operators inside the block that a device would launch something for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def operators_of(controller: Any, rows: int, width: int, vocab: int) -> int:
    """Of a step on prefixes of ``width`` + 1 tokens, after one before it, when constants have been made."""
    for length in (width, width + 1):
        ids = torch.zeros(rows, length, dtype=torch.int64, device=DEVICE)
        scores = torch.zeros(rows, vocab, dtype=torch.float64, device=DEVICE)
        with Operators() as operators:
            assert controller(ids, scores) is not scores
    return operators.count


def main() -> None:
    """A table of the options of :mod:`tests.budgetctl.test_device_operations`."""
    from tests.budgetctl.test_device_operations import table

    for name, count in table().items():
        sys.stdout.write(f"{count:5d}  {name}\n")


if __name__ == "__main__":
    main()
