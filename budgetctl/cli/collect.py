"""``budgetctl collect``: sample thoughts from a model, for ``fit`` and ``calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from budgetctl.cli.options import Device, Json, Model, Seed
from budgetctl.cli.render import clean_stdout, emit_json, err, out
from budgetctl.errors import BudgetctlError, InputFileError

#: Stands for the model's path in what is collected from the embedded reasoner.
EMBEDDED_ID = "budgetctl embedded reasoner"


def collect(
    output: Annotated[Path, typer.Option("--out", help="JSON lines; an interrupted collection goes on.")],
    prompts: Annotated[
        Path | None,
        typer.Option(help='JSON lines, each {"prompt": "..."} or a plain string; needed for other models.'),
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(help="Without --prompts: draw this many of the embedded reasoner's questions.", min=1),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Stream of those questions: predictor to fit, tune to calibrate.")
    ] = "predictor",
    samples: Annotated[int, typer.Option(help="Thoughts sampled a prompt.", min=1)] = 4,
    max_new_tokens: Annotated[
        int, typer.Option(help="Thoughts that have not ended by then cannot be fitted on.", min=1)
    ] = 512,
    batch_size: Annotated[int, typer.Option(help="Generations at once.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="Above 0; that of later use.", min=0)] = 1.0,
    model: Model = None,
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Sample thoughts from a model, for fit and calibrate."""
    with clean_stdout(as_json):
        if not temperature > 0:
            raise BudgetctlError(
                f"temperature={temperature:g}: expected a number > 0, since lengths must vary; use that of later use"
            )
        from budgetctl.checks import check_temperature

        check_temperature(temperature)
        texts = _collect_prompts(prompts, questions, split, seed)
        from budgetctl.cli import load
        from budgetctl.cli.answer import render_prompts
        from budgetctl.evals.output import progress_bar
        from budgetctl.predictors.features import unclosed_share
        from budgetctl.predictors.traces import collect_traces, load_traces
        from budgetctl.reasoner.load import MODEL_ID

        loaded = load.open_model(model, None, load.choose_device(device))
        with progress_bar(err()) as bar:
            task = bar.add_task("collecting", total=len(texts) * samples)
            count = collect_traces(
                loaded.model,
                loaded.tokenizer,
                loaded.delimiters,
                render_prompts(loaded.tokenizer, texts),
                output,
                samples_per_prompt=samples,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                temperature=temperature,
                seed=seed,
                model_id=model or MODEL_ID,
                progress=lambda done: bar.advance(task, done),
            )
        unclosed = unclosed_share(load_traces(output))
    if as_json:
        emit_json(
            {"out": str(output), "prompts": len(texts), "traces": count, "unclosed_share": round(unclosed, 4)}
        )
    else:
        out().print(
            Text(f"{count} thoughts on {len(texts)} prompts in {output}; {unclosed:.1%} of them did not end"),
            soft_wrap=True,
        )


def _collect_prompts(prompts: Path | None, questions: int | None, split: str, seed: int) -> list[str]:
    from budgetctl.cli.batch_file import read_batch_file
    from budgetctl.cli.requests import Settings, make_request
    from budgetctl.reasoner.tasks import SPLIT_SEED, take_questions

    if (prompts is None) == (questions is None):
        raise BudgetctlError(
            "expected one of --prompts FILE (any model) and --questions N (the embedded reasoner's own); give one"
        )
    if prompts is None:
        assert questions is not None
        if split not in SPLIT_SEED:
            raise BudgetctlError(f"unknown split {split!r}: expected one of {', '.join(SPLIT_SEED)}")
        return [q.prompt for q in take_questions(split, questions, seed)]
    settings = Settings()
    found, bad = read_batch_file(
        prompts,
        lambda fields: make_request(fields.get("prompt"), {}, settings, has_predictor=False).prompt,
    )
    if bad:
        raise InputFileError(f"{prompts}, line {bad[0].line}: {bad[0].error}")
    return found
