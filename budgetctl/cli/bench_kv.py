"""``budgetctl bench kv``: what a cache costs a decode step as the thought grows, kind by kind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetctl.cli.bench_subjects import (
    AlsoModel,
    GgufFile,
    Reasoner,
    Shape,
    Threads,
    check_gguf,
    check_model,
    check_shapes,
    model_from,
    name_of,
    numbers,
    place_of,
    reasoner_model,
)
from budgetctl.cli.options import Device, Json
from budgetctl.cli.render import clean_stdout, emit_json, err, out
from budgetctl.errors import BudgetctlError

if TYPE_CHECKING:
    from rich.console import Console

    from budgetctl.evals.kv_bench import Timing

#: Thoughts so far: on the CPU, and on a GPU.
TOKENS = {"cpu": "512,2048,8192", "cuda": "2048,4096,8192,16384,32768"}


def kv(
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32",
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Tokens seen before the timed steps.", show_default="512,2048,8192; longer on a GPU"
        ),
    ] = None,
    capacity: Annotated[
        int, typer.Option(help="Slots a head of a BudgetCache; 0 for as many as tokens.", min=0)
    ] = 2048,
    policies: Annotated[str, typer.Option(help="Policies of a BudgetCache, by commas.")] = "diverse-max",
    shape: Shape = None,
    reasoner: Reasoner = True,
    model: AlsoModel = None,
    gguf_file: GgufFile = None,
    whole_steps: Annotated[
        bool, typer.Option("--steps/--no-steps", help="Time decode steps of the whole model.")
    ] = True,
    calls: Annotated[bool, typer.Option(help="Time calls of one layer's attention.")] = True,
    static: Annotated[bool, typer.Option(help="Also a StaticCache.")] = True,
    kvpress: Annotated[bool, typer.Option(help="Also kvpress' DecodingPress, where it is installed.")] = True,
    interval: Annotated[int, typer.Option(help="Tokens between two compressions of kvpress.", min=1)] = 128,
    graphs: Annotated[bool, typer.Option(help="On a GPU also as CUDA graphs.")] = True,
    runs: Annotated[int, typer.Option(help="At most so many runs of 16 steps of each.", min=2)] = 8,
    seconds: Annotated[
        float, typer.Option(help="About how long a batch size and length is timed.", min=0)
    ] = 20.0,
    most_gib: Annotated[
        float | None,
        typer.Option(
            help="Most memory of the caches of a batch size and length.", min=0, show_default="4; 60 on a GPU"
        ),
    ] = None,
    threads: Threads = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the cost of a token against the length, as PNG.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--out", help="JSON file of all timings.")] = Path(
        "runs/bench/kv.json"
    ),
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Milliseconds a step and a call of attention, and bytes: BudgetCache, full cache, static cache, kvpress.

    On the CPU with one thread milliseconds are those of the process, so that other programs do not count.
    """
    batches = numbers("--batch", batch)
    if tokens is not None:
        numbers("--tokens", tokens)
    check_gguf(model, gguf_file)
    if not (reasoner or model or shape) or not (whole_steps or calls):
        raise BudgetctlError(
            "nothing to time: expected --reasoner, --model or --shape, and --steps or --calls; give at least one of each"
        )
    if plot is not None:
        from budgetctl.cli.explain_figure import check_path

        check_path(plot)
    with clean_stdout(as_json):
        import torch

        from budgetctl.evals import kv_report
        from budgetctl.evals.guidance_subjects import shape_config, shaped_model
        from budgetctl.evals.kv_bench import RUN, WARM, bench
        from budgetctl.evals.kv_subjects import FULL, KVPRESS, STATIC, Setting, kvpress_missing
        from budgetctl.evals.output import progress_bar, write_text
        from budgetctl.kv.policies import find_policy

        check_shapes(shape)
        names = [part.strip() for part in policies.split(",")]
        for name in names:
            find_policy(name)
        place, dtype = place_of(device, threads)
        lengths = numbers("--tokens", tokens or TOKENS.get(place.type, TOKENS["cpu"]))
        makers: list[tuple[str, Any, Any]] = []
        if reasoner:
            makers.append(("embedded reasoner", None, lambda: reasoner_model(place, dtype)))
        if model is not None:
            check_model(model, gguf_file)
            makers.append(
                (Path(gguf_file or model).stem, None, lambda: model_from(model, gguf_file, place, dtype))
            )
        for name in shape or []:
            config = shape_config(name)
            makers.append((name, config, lambda config=config: shaped_model(config, place, dtype)))
        # A graph's steps come after the others.
        steps = WARM + runs * RUN * (2 if graphs and place.type == "cuda" else 1)
        settings = [
            Setting(rows, count, capacity, runs, steps, interval) for rows in batches for count in lengths
        ]
        missing = kvpress_missing() if kvpress and whole_steps else None
        left = [missing] if missing else []
        kinds = ["step"] * whole_steps + ["call"] * calls
        methods = {
            "step": [FULL, *names, *([KVPRESS] * (kvpress and not missing)), *([STATIC] * static)],
            "call": [FULL, *names, *([STATIC] * static)],
        }
        most = (60.0 if place.type == "cuda" else 4.0) if most_gib is None else most_gib
        timings: list[Timing] = []

        def keep() -> dict[str, Any]:
            result = {
                "device": name_of(place),
                "threads": torch.get_num_threads(),
                "clock": _clock(place.type, torch.get_num_threads()),
                "dtype": str(dtype).removeprefix("torch."),
                "timings": [timing.as_dict() for timing in timings],
                "left_out": left,
            }
            write_text(output, json.dumps(result, indent=1))
            return result

        with progress_bar(err()) as bar:
            task = bar.add_task("timing", total=len(makers) * len(kinds))
            for name, config, make in makers:
                # Calls of attention need the shapes alone.
                whole = make() if whole_steps or config is None else None
                for kind in kinds:
                    found = bench(
                        name,
                        config if whole is None else whole.config,
                        whole,
                        settings,
                        methods[kind],
                        kind=kind,
                        dtype=dtype,
                        device=place,
                        seconds=seconds,
                        most_bytes=most * 2**30,
                        left=left.append,
                        graphs=graphs,
                    )
                    for timing in found:
                        timings.append(timing)
                        where = f"{name}, {kind}, {timing.batch} rows, {timing.tokens} tokens"
                        bar.update(task, description=where)
                    keep()
                    bar.advance(task)
                del whole
        if plot is not None and timings:
            kv_report.draw(timings, plot)
        result = keep()
    if as_json:
        emit_json(result)
        return
    console = out()
    console.print(f"{result['device']}, {result['dtype']}, {result['clock']}\n", markup=False)
    if console.is_terminal:
        _show(console, kv_report.sections(timings))
    elif timings:
        console.print(kv_report.markdown(timings) + "\n", markup=False, soft_wrap=True)
    for line in left:
        console.print(line, markup=False, soft_wrap=True)


def _clock(kind: str, threads: int) -> str:
    if kind == "cuda":
        return "CUDA events"
    return "1 thread, time of the process" if threads == 1 else f"{threads} threads, time of the day"


def _show(console: Console, sections: Iterable[tuple[str, list[str], list[list[str]]]]) -> None:
    from rich.table import Table

    for title, head, lines in sections:
        table = Table(title=title, title_justify="left", title_style="bold")
        for name in head:
            table.add_column(name, justify="left" if name == "cache" else "right")
        before: list[str] | None = None
        for cells in lines:
            if before is not None and before[:2] != cells[:2]:
                table.add_section()
            table.add_row(*cells)
            before = cells
        console.print(table)
