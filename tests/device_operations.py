"""How many operators a step of the controller gives to a device, counted without one, on ``meta`` tensors.

``python -m tests.device_operations`` prints a table of them, with ``--compiled`` what compiled steps are made of on a CPU.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from budgetctl import controller
from budgetctl.kernels import host_reads
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


def launches(code: str) -> tuple[int, int]:
    """Of generated code: its own kernels, and calls of the library's."""
    body = code[code.index("def call") :]
    own = re.findall(r"^\s+cpp_fused_\w+\(", body, re.MULTILINE)
    return len(own), len(re.findall(r"= torch\.ops\.aten\.|^\s+extern_kernels\.", body, re.MULTILINE))


def compiled_steps(steps: int = 200) -> Iterator[str]:
    """What compiled steps are made of, and what they cost on a CPU beside steps that do all that a device is given; for
    ``steps`` steps of growing rows."""
    from tests.budgetctl import test_device_operations as cases

    covers, may_look = controller.covers, host_reads.may_look
    readers = [m for n, m in sys.modules.items() if n.startswith("budgetctl.") and hasattr(m, "may_look")]
    ids = torch.full((cases.ROWS, cases.WIDTH + steps), 6)
    ids[:, :3] = torch.tensor([8, 9, 10])
    scores = torch.randn(cases.ROWS, cases.VOCAB, dtype=torch.float64)
    graphs = torch._dynamo.utils.counters["stats"]
    for options, predicts, _ in cases.STEPS:
        torch._dynamo.reset()
        plain, fast = (cases.controller_on_host(options, predicts, compiled) for compiled in (False, True))
        controller.covers = lambda device: True
        _, found = run_and_get_code(fast, ids[:, : cases.WIDTH], scores)
        made, before = [launches(code) for code in found], graphs["unique_graphs"]
        costs: dict[bool, list[float]] = {True: [], False: []}
        for width in range(cases.WIDTH + 1, cases.WIDTH + steps):
            for blind, step in ((False, fast), (True, plain)):
                for reader in readers:
                    reader.may_look = (lambda device: False) if blind else may_look  # type: ignore[attr-defined]
                controller.covers = lambda device, blind=blind: not blind
                begin = time.process_time()
                step(ids[:, :width], scores)
                costs[blind].append(1e3 * (time.process_time() - begin))
        for reader in readers:
            reader.may_look = may_look  # type: ignore[attr-defined]
        controller.covers = covers
        yield (
            f"{cases.named(options, predicts)}: {len(made)} functions of {sum(own for own, _ in made)} kernels and "
            f"{sum(others for _, others in made)} calls; {median(costs[False]):.2f} ms for {median(costs[True]):.2f}; "
            f"compiled anew {graphs['unique_graphs'] - before} times in {steps} steps"
        )


def main() -> None:
    """A table of the options of :mod:`tests.budgetctl.test_device_operations`; compiled with ``--compiled``."""
    from tests.budgetctl.test_device_operations import table

    if "--compiled" in sys.argv:
        for line in compiled_steps():
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    else:
        for name, count in table().items():
            sys.stdout.write(f"{count:5d}  {name}\n")


if __name__ == "__main__":
    main()
