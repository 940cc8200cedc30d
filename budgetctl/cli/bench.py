"""``budgetctl bench guidance``: what steering costs beside the decode step, next to other ways of holding a budget.

``budgetctl bench kv`` is in :mod:`budgetctl.cli.bench_kv`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetctl.cli import bench_kv
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
    from budgetctl.evals.guidance_bench import Timing

#: Width of the states behind logits that are made without a model.
HIDDEN = 1024

app = typer.Typer(help="Time what budgetctl does.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Time what budgetctl does."""


@app.command()
def guidance(
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32",
    vocab: Annotated[str, typer.Option(help="Vocabularies of logits without a model; empty for none.")] = "",
    shape: Shape = None,
    reasoner: Reasoner = True,
    model: AlsoModel = None,
    gguf_file: GgufFile = None,
    thinking_tokens: Annotated[
        int, typer.Option(help="Of the thought before the timed steps.", min=64)
    ] = 512,
    compiled: Annotated[
        bool, typer.Option(help="Compare with a compiled decode step on a static cache.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="About how long each method is timed.", min=0)] = 2.0,
    steps: Annotated[int, typer.Option(help="At most so many steps of each.", min=20)] = 400,
    threads: Threads = None,
    png: Annotated[
        Path | None,
        typer.Option(
            help="Also time sweeps of length, rows and vocabulary, and draw them.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--out", help="JSON file of all timings.")] = Path(
        "runs/bench/guidance.json"
    ),
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Milliseconds a step, and per cent of the decode step: hard cut, guidance, controller, other designs."""
    batches, vocabs = numbers("--batch", batch), numbers("--vocab", vocab) if vocab else []
    if vocabs and min(vocabs) <= HIDDEN:
        raise BudgetctlError(
            f"--vocab {vocab!r}: expected more than {HIDDEN} tokens, the width of the states that the logits come from"
        )
    check_gguf(model, gguf_file)
    if not (reasoner or model or shape or vocabs or png):
        raise BudgetctlError(
            "nothing to time: expected --reasoner, --model, --shape or --vocab; give at least one"
        )
    if png is not None:
        from budgetctl.cli.explain_figure import check_path

        check_path(png)
    with clean_stdout(as_json):
        import torch

        from budgetctl.evals import guidance_report
        from budgetctl.evals.guidance_bench import bench as timings_of
        from budgetctl.evals.guidance_subjects import logits_alone, model_subject, shaped
        from budgetctl.evals.guidance_sweeps import sweep
        from budgetctl.evals.output import progress_bar, write_text

        check_shapes(shape)
        place, half = place_of(device, threads)
        makers: list[Any] = []
        if reasoner:
            makers.append(lambda: model_subject(reasoner_model(place, half), "embedded reasoner"))
        if model is not None:
            check_model(model, gguf_file)
            makers.append(lambda: model_subject(model_from(model, gguf_file, place, half), Path(model).name))
        makers += [lambda name=name: shaped(name, place, half) for name in shape or []]
        makers += [lambda size=size: logits_alone(size, place, HIDDEN) for size in vocabs]
        timings: list[Timing] = []
        sweeps: dict[str, list[Timing]] = {}

        def keep() -> dict[str, Any]:
            result = {
                "device": name_of(place),
                "threads": torch.get_num_threads(),
                "timings": [timing.as_dict() for timing in timings],
                "sweeps": {name: [t.as_dict() for t in found] for name, found in sweeps.items()},
            }
            write_text(output, json.dumps(result, indent=1))
            return result

        with progress_bar(err()) as bar:
            task = bar.add_task("timing", total=len(makers) + (3 if png else 0))
            for make in makers:
                subject = make()
                room = subject.most_thinking_tokens(steps)
                found = timings_of(
                    subject,
                    batches,
                    thinking_tokens=min(thinking_tokens, room),
                    steps=steps,
                    seconds=seconds,
                    compiled=compiled,
                )
                for timing in found:
                    timings.append(timing)
                    bar.update(task, description=f"{timing.subject}, {timing.batch} rows: {timing.method}")
                keep()
                bar.advance(task)
            if png is not None:
                for name in ("thinking_tokens", "rows", "vocab"):
                    bar.update(task, description=f"sweep of {name}")
                    sweeps[name] = list(sweep(name, place, steps=steps, seconds=seconds))
                    keep()
                    bar.advance(task)
                guidance_report.draw(sweeps, png)
        result = keep()
    if as_json:
        emit_json(result)
        return
    where = f"{result['device']}, {result['threads']} threads" if place.type == "cpu" else result["device"]
    out().print(f"{where}\n\n{guidance_report.tables(timings)}", markup=False, soft_wrap=True)


app.command("kv")(bench_kv.kv)
