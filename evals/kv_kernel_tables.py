"""The tables of docs/kernels.md on the KV kernels: ``python -m budgetctl.evals.kv_kernel_tables resources|traffic``.

``resources`` compiles the kernels ahead of time, without a GPU. ``traffic`` counts the bytes of a decode step, for a full
cache and for a budget, and the least time that they take; nothing of it is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import typer
from rich.console import Console

from budgetctl.evals.guidance_subjects import shape_config
from budgetctl.evals.kv_bytes import (
    DEVICES,
    CacheShape,
    budget_bytes,
    full_bytes,
    least_bytes,
)
from budgetctl.evals.kv_fill import Drawn
from budgetctl.kernels.kv_resources import (
    Resources,
    compiled_combine,
    compiled_decode,
    compiled_novelty,
    compiled_victims,
)
from budgetctl.kernels.kv_scratch import splits
from budgetctl.kv.policies import find_policy

BATCHES = (1, 8, 32)
LENGTHS = (2048, 4096, 8192, 16_384, 32_768)
CAPACITY = 2048

app = typer.Typer(help=__doc__, add_completion=False)


def variants() -> Iterator[tuple[str, str, Resources, str]]:
    """``(kernel, variant, resources, PTX)`` of what is compiled."""
    cases: list[tuple[str, dict[str, int | str | torch.dtype]]] = [
        ("G = 4, D = 128, bfloat16, 16 splits", {}),
        ("the same, 1 split", {"parts": 1}),
        ("the same, first of two launches", {"launches": 2}),
        ("the same, no importance", {"rule": "none"}),
        ("G = 2, D = 64, float16, 4 splits", {"groups": 2, "size": 64, "parts": 4, "dtype": torch.float16}),
        ("G = 8, D = 256, bfloat16, 16 splits", {"groups": 8, "size": 256}),
        ("G = 4, D = 128, float32, 16 splits", {"dtype": torch.float32}),
    ]
    for name, options in cases:
        yield "decode", name, *compiled_decode(**options)  # type: ignore[arg-type]
    yield "combine", "G = 4, D = 128, bfloat16, 16 splits", *compiled_combine()
    for slots in (2048, 8192, 32_768):
        yield "victims", f"{slots:,} slots, guarded score", *compiled_victims(slots)
    yield "victims", "2,048 slots, scores given", *compiled_victims(2048, scores=True)
    names = ("sum of directions", "distance to it", "score")
    for name, found in zip(names, compiled_novelty(), strict=True):
        yield "novelty", f"D = 128, bfloat16, 4 splits: {name}", *found


@app.command()
def resources() -> None:
    """Registers, spills and shared memory of the kernels, compiled for sm_90."""
    lines = [
        "| kernel | variant | registers a thread | spilled bytes | shared bytes | threads | loads ahead | tensor cores |",
        "|---" * 8 + "|",
    ]
    for kernel, variant, found, ptx in variants():
        ahead = "yes" if "cp.async" in ptx else "no"
        cores = "yes" if "wgmma" in ptx or "mma.sync" in ptx else "no"
        lines.append(
            f"| {kernel} | {variant} | {found.registers} | {found.spilled} | {found.shared:,} | {found.threads} "
            f"| {ahead} | {cores} |"
        )
    _show(lines)


@app.command()
def traffic(
    shape: Annotated[str, typer.Option(help="of a model: qwen3-0.6b, qwen3-1.7b, qwen3-8b")] = "qwen3-8b",
    capacity: Annotated[int, typer.Option(help="slots a head", min=64)] = CAPACITY,
) -> None:
    """Bytes of a decode step in bfloat16 because of the cache, and the least time they take (counted, not measured)."""
    drawn = Drawn(shape_config(shape), 1, torch.bfloat16, torch.device("cpu"))
    model = CacheShape.of(drawn)
    policy = find_policy(None).fitted(capacity)
    heads = [f"ms at least, {name}: full, budget" for name in DEVICES]
    lines = [
        "| rows | tokens | cache, GiB: full, budget | MiB a step: limit of a full cache | DynamicCache | budget | limit of "
        "the budget | programs a layer | " + " | ".join(heads) + " |",
        "|---" * (8 + len(heads)) + "|",
    ]
    for batch in BATCHES:
        for tokens in LENGTHS:
            held = min(capacity, tokens)
            limit, bounded = least_bytes(model, batch, tokens), least_bytes(model, batch, held)
            ours = budget_bytes(model, batch, held, policy)
            programs = batch * model.heads * splits(batch, model.heads, held)
            full, budget = (batch * model.token * count / 2**30 for count in (tokens, held))
            cells = [
                str(batch),
                f"{tokens:,}",
                f"{full:.2f}, {budget:.2f}",
                *(_mib(count) for count in (limit, full_bytes(model, batch, tokens), ours, bounded)),
                f"{programs:,}",
            ]
            for bandwidth, _ in DEVICES.values():
                cells.append(f"{1e3 * limit / bandwidth:.3g}, {1e3 * ours / bandwidth:.3g}")
            lines.append(f"| {' | '.join(cells)} |")
    _show(lines)


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f}"


def _show(lines: list[str]) -> None:
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
