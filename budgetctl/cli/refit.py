"""``budgetctl refit``: collect, fit and calibrate in one command, for a model whose thoughts have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from budgetctl.cli.collect import collect
from budgetctl.cli.fit import calibrate, fit
from budgetctl.cli.options import Device, Json, Model, Seed
from budgetctl.cli.render import clean_stdout, emit_json, out
from budgetctl.errors import BudgetctlError, InputFileError

FITTED_ON, CALIBRATED_ON = "traces.jsonl", "tune.jsonl"


def refit(
    output: Annotated[
        Path, typer.Option("--out", help="Directory of the predictor; the thoughts are kept there too.")
    ],
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines to fit on, as `budgetctl collect` takes them.")
    ] = None,
    calibration_prompts: Annotated[
        Path | None, typer.Option(help="Others, to calibrate on; needed with --prompts.")
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(
            help="Without --prompts: as many of the embedded reasoner's questions; half as many to calibrate on.",
            min=20,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Thoughts sampled a prompt that is fitted on.", min=1)] = 4,
    max_new_tokens: Annotated[
        int, typer.Option(help="Thoughts that have not ended by then cannot be fitted on.", min=1)
    ] = 512,
    batch_size: Annotated[int, typer.Option(help="Generations at once.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="Above 0; that of later use.", min=0)] = 1.0,
    epochs: Annotated[int, typer.Option(help="Of the fit, at most; stops early.", min=1)] = 16,
    guidance_strength: Annotated[float, typer.Option(help="Stored as the predictor's default.", min=0)] = 2.0,
    model: Model = None,
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Sample a model's thoughts, fit its length predictor on them and calibrate it, for example after fine-tuning."""
    if (prompts is None) != (calibration_prompts is None):
        raise BudgetctlError(
            "--prompts and --calibration-prompts: expected both or neither, since a predictor is calibrated on questions "
            "that it was not fitted on; split your prompts into two files"
        )
    for path in (prompts, calibration_prompts):
        if path is not None and not path.is_file():
            raise InputFileError(f"{path} is no file: expected JSON lines of prompts; correct the path")
    common: dict[str, Any] = {"model": model, "device": device, "seed": seed}
    drawn: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "temperature": temperature,
        **common,
    }
    traces, others = output / FITTED_ON, output / CALIBRATED_ON
    with clean_stdout(as_json):
        collect(traces, prompts, questions, samples=samples, **drawn)
        half = None if questions is None else max(1, questions // 2)
        collect(others, calibration_prompts, half, "tune", samples=1, **drawn)
        fit(traces, output, epochs=epochs, guidance_strength=guidance_strength, **common)
        calibrate(output, others, **common)
    if as_json:
        from budgetctl.predictors.artifact import load_predictor

        metadata = load_predictor(output).metadata
        levels = {f"{coverage:g}": level for coverage, level in metadata.calibration.items()}
        emit_json({"out": str(output), "calibration": levels, **metadata.data_card})
    else:
        out().print(Text(f"use it: budgetctl generate --predictor {output} …"), soft_wrap=True)
