"""What the decode kernel is launched by, tried on a GPU: ``python -m budgetctl.evals.kv_tune``.

Microseconds of a launch in a CUDA graph of as many layers as do not fit into the second-level cache, for splits of a head,
slots whose importance is updated at a time, keys of a tile, warps and stages of the pipeline; and for two launches, and
without importance. Bandwidth of a copy and of a read stand below, for comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.console import Console

from budgetctl.evals.kv_gpu_checks import draw, full_state
from budgetctl.evals.kv_graphs import capture
from budgetctl.kernels import kv_decode
from budgetctl.kernels.kv_scratch import KVScratch, splits
from budgetctl.kernels.kv_state import Rule, SlotState

HEADS, GROUPS, SIZE = 8, 4, 128
#: Bytes of keys and values that a graph goes through.
LAYERS_BYTES = 288 * 2**20
REPLAYS = 7

app = typer.Typer(help=__doc__, add_completion=False)


@dataclass(frozen=True)
class Launch:
    """One way to launch; ``tile``, ``importance``, ``warps`` and ``stages`` of None are the kernel's own.

    Args:
        parts: splits of a head.
        tile: keys at a time.
        importance: slots at a time when importance is updated.
        warps: of a program.
        stages: of the pipeline.
        rule: ``none`` leaves importance out.
        fused: one launch, not two.
    """

    parts: int
    tile: int | None = None
    importance: int | None = None
    warps: int | None = None
    stages: int | None = None
    rule: Rule = "max"
    fused: bool = True

    def constants(self) -> dict[str, int]:
        """The kernel's constants that are not its own choice."""
        given = {
            "BLOCK_N": self.tile,
            "BLOCK_I": self.importance,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }
        return {name: value for name, value in given.items() if value is not None}

    def __str__(self) -> str:
        told = [f"{self.parts} splits"]
        told += [f"{name} {value}" for name, value in self.constants().items()]
        told += ["no importance"] * (self.rule == "none") + ["two launches"] * (not self.fused)
        return ", ".join(told)


def launches(batch: int, slots: int) -> Iterator[Launch]:
    """What is tried: the kernel's own choice first, then one thing changed at a time."""
    own = Launch(splits(batch, HEADS, slots))
    yield own
    yield replace(own, rule="none")
    yield replace(own, fused=False)
    for factor in (0.25, 0.5, 2, 4):
        parts = int(own.parts * factor)
        if parts >= 1 and parts * 16 <= slots:
            yield replace(own, parts=parts)
    for tile in (16, 32, 128):
        yield replace(own, tile=tile)
    for importance in (256, 512, 2048):
        yield replace(own, importance=importance)
    for warps in (1, 2, 8):
        yield replace(own, warps=warps)
    for stages in (2, 4):
        yield replace(own, stages=stages)


def microseconds(states: list[SlotState], launch: Launch) -> float:
    """Median over replays, of one layer."""
    inputs = draw(states[0], GROUPS, 0)
    scratch = KVScratch.allocate(states, GROUPS, launch.parts)
    options = kv_decode.launch_options

    def own(*arguments: Any, **named: Any) -> dict[str, int | bool]:
        return options(*arguments, **named) | launch.constants()

    def run() -> None:
        for state in states:
            kv_decode._launch(
                *inputs,
                state,
                SIZE**-0.5,
                launch.rule,
                0.97,
                "max",
                None,
                None,
                scratch,
                parts=launch.parts,
                fused=launch.fused,
            )

    with patch.object(kv_decode, "launch_options", own):
        replay = capture(run)
    found = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        found.append(1e3 * begin.elapsed_time(end) / len(states))
    return sorted(found)[REPLAYS // 2]


def bandwidths(device: torch.device, count: int = 2**30) -> dict[str, float]:
    """Bytes a second of a copy of ``count`` bfloat16 numbers, read and written, and of a read of them."""
    source = torch.empty(count, dtype=torch.bfloat16, device=device).normal_()
    target, found = torch.empty_like(source), {}
    for name, run, moved in (
        ("copy", lambda: target.copy_(source), 4 * count),
        ("read", lambda: source.view(torch.int32).max(), 2 * count),
    ):
        run()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(REPLAYS):
            run()
        end.record()
        end.synchronize()
        found[name] = moved * REPLAYS / (1e-3 * begin.elapsed_time(end))
    return found


@app.command()
def main(
    batches: Annotated[str, typer.Option(help="rows")] = "1,8,32",
    slots: Annotated[int, typer.Option(help="of a head", min=128)] = 2048,
) -> None:
    """Try them on the CUDA device."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device: expected one, as nothing of a launch can be timed without")
    device, console = torch.device("cuda"), Console()
    console.print(
        f"{torch.cuda.get_device_name(device)}\n\n| rows | launch | µs |\n|---|---|---|", markup=False
    )
    for batch in map(int, batches.split(",")):
        layer = 2 * batch * HEADS * slots * SIZE * 2
        states = [
            full_state(batch, [slots] * HEADS, SIZE, torch.bfloat16, device)
            for _ in range(-(-LAYERS_BYTES // layer))
        ]
        for launch in launches(batch, slots):
            console.print(f"| {batch} | {launch} | {microseconds(states, launch):.1f} |", markup=False)
        del states
        torch.cuda.empty_cache()
    for name, found in bandwidths(device).items():
        console.print(f"{name}: {found / 1e12:.2f} TB/s", markup=False)


if __name__ == "__main__":
    app()
