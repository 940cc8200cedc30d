"""``budgetctl eval``: methods and budgets side by side on the same questions and noise."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetctl.cli.eval_options import number_list, text_list
from budgetctl.cli.options import Device, Json, Model, Predictor
from budgetctl.cli.render import clean_stdout, emit_json, err, out
from budgetctl.errors import BudgetError

if TYPE_CHECKING:
    from budgetctl.evals.harness.config import Cell, RunConfig


def evaluate(
    task: Annotated[
        list[str],
        typer.Option(
            help="embedded, embedded/dial, reasoning-gym/chain_sum, math500, gsm8k, aime24, aime25, gpqa-diamond, "
            "livecodebench, a file of questions, or a data set's file as gsm8k=path; may be given several times."
        ),
    ],
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = "full,hard-cut,budgetctl",
    budgets: Annotated[str, typer.Option(help="Thinking budgets in tokens, separated by commas.")] = "",
    efforts: Annotated[
        str, typer.Option(help="Efforts for methods that take one, separated by commas.")
    ] = "",
    count: Annotated[int, typer.Option("--n", help="Questions of each task, at most.", min=1)] = 64,
    seeds: Annotated[
        str | None, typer.Option(help="Of the noise, separated by commas; 0 if left out.", show_default=False)
    ] = None,
    question_seed: Annotated[int, typer.Option(help="Of the questions.", min=0)] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Decode greedily instead of sampling.")] = False,
    temperature: Annotated[float, typer.Option(help="Of sampling, above 0.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Thought and answer together.", min=1)] = 512,
    batch_size: Annotated[int, typer.Option(help="Questions at once.", min=1)] = 64,
    output: Annotated[
        Path, typer.Option("--out", help="The run directory; an interrupted run goes on.")
    ] = Path("runs/eval"),
    steered: Annotated[
        bool, typer.Option(help="Note which tokens guidance changed, for the report; costs a little speed.")
    ] = True,
    engine: Annotated[str, typer.Option(help="What runs the model: transformers or vllm.")] = "transformers",
    engine_options: Annotated[
        str | None,
        typer.Option(
            help="With --engine vllm: options of its LLM as a JSON object, such as '{\"tensor_parallel_size\": 2}'.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, and say what would be run.")
    ] = False,
    model: Model = None,
    predictor: Predictor = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compare methods of spending a thinking budget, and write a report."""
    with clean_stdout(as_json):
        from budgetctl.cli import load
        from budgetctl.evals.harness.config import RunConfig, cells, digest
        from budgetctl.evals.harness.directory import check_directory
        from budgetctl.evals.harness.processes import Processes
        from budgetctl.evals.harness.records import RECORDS, read_records
        from budgetctl.evals.harness.run import check_tasks, pending
        from budgetctl.evals.harness.tasks import load_tasks
        from budgetctl.evals.methods.registry import check_engine, method_named
        from budgetctl.reasoner.load import MODEL_ID

        here = Processes.here()
        chosen = [method_named(name) for name in text_list("--methods", methods)]
        settings = _engine_settings(engine, engine_options, device, here.count)
        check_engine(chosen, engine)
        caps = number_list("--budgets", budgets)
        if caps and max(caps) >= max_new_tokens:
            raise BudgetError(
                f"a budget of {max(caps)} with --max-new-tokens {max_new_tokens}: expected less than that, so that an answer "
                "follows the thought; raise --max-new-tokens or lower the budget"
            )
        levels = _efforts(efforts, has_predictor=model is None or predictor is not None)
        noise = _seeds(seeds, greedy, temperature)
        tasks = load_tasks(task, count, question_seed)
        check_tasks(tasks)
        config = RunConfig(
            tasks=tuple(task),
            n=count,
            question_seed=question_seed,
            methods=tuple(method.name for method in chosen),
            budgets=tuple(caps),
            efforts=tuple(levels),
            seeds=noise,
            max_new_tokens=max_new_tokens,
            temperature=1.0 if greedy else temperature,
            model=model or MODEL_ID,
            predictor=predictor,
            questions={name: digest(items) for name, items in tasks.items()},
            engine=engine,
        )
        asked = cells(config, list(tasks), chosen)
        check_directory(output, config)
        kept = read_records(output / RECORDS)
        batches = pending(tasks, asked, kept, batch_size)
        plan = {
            "out": str(output),
            "tasks": {name: len(items) for name, items in tasks.items()},
            "cells": len(asked),
            "answers": sum(len(tasks[cell.task]) for cell in asked),
            "answered": len(kept),
            "batches": len(batches),
        }
        artifact = load.open_predictor(model, predictor)
        place = load.choose_device(device)
        if not dry_run:
            _run(config, tasks, chosen, output, batch_size, steered, model, artifact, place, here, settings)
    if not here.main:
        return
    if as_json:
        emit_json(plan)
    else:
        out().print(_told(plan, dry_run), markup=False, soft_wrap=True)


def _run(
    config: RunConfig,
    tasks: Any,
    methods: Any,
    folder: Path,
    batch_size: int,
    steered: bool,
    model: str | None,
    artifact: Any,
    place: Any,
    here: Any,
    engine_settings: Any,
) -> None:
    """Answer, then measure and report."""
    from budgetctl.cli import load
    from budgetctl.evals.harness.environment import environment
    from budgetctl.evals.harness.run import Progress, run
    from budgetctl.evals.harness.transformers_engine import TransformersEngine
    from budgetctl.evals.measures.summary import write_summary
    from budgetctl.evals.output import progress_bar
    from budgetctl.evals.report.page import write_report

    if place.type == "cuda" and place.index is None and here.count > 1:
        place = load.choose_device(f"cuda:{here.local_rank}")

    def engine() -> Any:
        if config.engine == "vllm":
            from budgetctl.evals.harness.vllm_opening import open_vllm

            return open_vllm(model, config.predictor, engine_settings, temperature=config.temperature)
        return TransformersEngine(
            load.open_model(model, artifact, place), temperature=config.temperature, steered=steered
        )

    session = {
        **environment(place, *(["vllm"] if config.engine == "vllm" else [])),
        "command": shlex.join(["budgetctl", *sys.argv[1:]]),
        "batch_size": batch_size,
        "processes": here.count,
        **({"engine_options": engine_settings} if config.engine == "vllm" else {}),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    with progress_bar(err()) as bar:
        shown = bar.add_task("loading", total=None, visible=here.main)
        tell = Progress(
            begin=lambda total: bar.update(shown, total=total, description="answering"),
            batch=lambda cell: bar.update(shown, description=_described(cell)),
            done=lambda done: bar.advance(shown, done),
        )
        run(
            config,
            tasks,
            methods,
            engine,
            folder,
            batch_size=batch_size,
            session=session,
            processes=here,
            progress=tell,
        )
    if here.main:
        write_summary(folder)
        write_report(folder)


def _engine_settings(engine: str, options: str | None, device: str | None, processes: int) -> dict[str, Any]:
    """Options of the engine, checked."""
    if engine == "vllm":
        from budgetctl.evals.harness.vllm_opening import check_vllm

        return check_vllm(options, device, processes)
    if engine != "transformers":
        raise BudgetError(f"--engine {engine}: expected transformers or vllm; correct it")
    if options is not None:
        raise BudgetError(
            "--engine-options without --engine vllm: expected none; drop it, or give --engine vllm"
        )
    return {}


def _described(cell: Cell) -> str:
    """Like ``embedded · budgetctl 32 · seed 0``."""
    setting = cell.budget if cell.budget is not None else cell.effort
    method = cell.method if setting is None else f"{cell.method} {setting}"
    return " · ".join([cell.task, method] + ([] if cell.seed < 0 else [f"seed {cell.seed}"]))


def _told(plan: dict[str, Any], dry_run: bool) -> str:
    sizes = ", ".join(f"{name} ({size} questions)" for name, size in plan["tasks"].items())
    head = f"{plan['answers']} answers in {plan['cells']} cells of {sizes}"
    if dry_run:
        return f"{head}; {plan['answered']} are in {plan['out']}, {plan['batches']} batches are left"
    return f"{head} in {plan['out']}; see report.html there"


def _efforts(text: str, *, has_predictor: bool) -> list[str | float]:
    """Levels and shares, checked."""
    from budgetctl.budget import Effort

    found: list[str | float] = []
    for part in text_list("--efforts", text) if text else []:
        effort = Effort.parse(part)
        if effort.needs_prediction and not has_predictor:
            raise BudgetError(
                f"effort={part!r} is a fraction of the predicted length and this model comes without a length predictor: "
                "expected one; pass --predictor, or budgets in tokens instead"
            )
        try:
            found.append(float(part))
        except ValueError:
            found.append(effort.name)
    return found


def _seeds(text: str | None, greedy: bool, temperature: float) -> tuple[int, ...]:
    """(-1,) for greedy decoding."""
    from budgetctl.checks import check_temperature

    if greedy:
        if text is not None:
            raise BudgetError(
                f"--seeds {text} with --greedy: expected one of the two, as greedy decoding has no noise; drop one"
            )
        return (-1,)
    if not temperature > 0:
        raise BudgetError(
            f"temperature={temperature:g}: expected a number > 0; pass --greedy for greedy decoding"
        )
    check_temperature(temperature)
    return tuple(number_list("--seeds", text or "0", most=2**40 - 1))
