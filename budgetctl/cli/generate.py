"""``budgetctl generate``: answer one prompt, or a file of prompts, under a thinking budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from budgetctl.cli.options import (
    AnswerReserve,
    Budget,
    BudgetNotesFlag,
    Device,
    EarlyExitRule,
    Effort,
    ExtensionPhrase,
    GuidanceStrength,
    GuidedSteps,
    Json,
    KVBudgetText,
    KVMaxLoss,
    KVPolicy,
    MaxExtensions,
    MaxNewTokens,
    MinThinkingTokens,
    Model,
    PlanCacheFolder,
    PlanFirmness,
    PlanFloor,
    PlannerModel,
    PlannerUrl,
    PlanSchedule,
    PlanText,
    Predictor,
    Seed,
    ShowPlan,
    TargetTolerance,
    Temperature,
    ThinkingTarget,
    TransitionPhrase,
    read_prompt,
)
from budgetctl.cli.render import clean_stdout, emit_json, err, out, show_answer
from budgetctl.errors import BudgetctlError


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The question; - reads it from stdin.", show_default=False)
    ] = None,
    effort: Effort = None,
    thinking_budget: Budget = None,
    max_new_tokens: MaxNewTokens = 512,
    min_thinking_tokens: MinThinkingTokens = None,
    thinking_target: ThinkingTarget = None,
    target_tolerance: TargetTolerance = None,
    max_extensions: MaxExtensions = None,
    extension_phrase: ExtensionPhrase = None,
    transition_phrase: TransitionPhrase = None,
    early_exit: EarlyExitRule = None,
    answer_reserve: AnswerReserve = None,
    guidance_strength: GuidanceStrength = None,
    guided_steps: GuidedSteps = None,
    plan: PlanText = None,
    plan_schedule: PlanSchedule = None,
    plan_floor: PlanFloor = None,
    plan_firmness: PlanFirmness = None,
    show_plan: ShowPlan = False,
    budget_notes: BudgetNotesFlag = False,
    planner: PlannerModel = None,
    planner_url: PlannerUrl = None,
    plan_cache: PlanCacheFolder = None,
    kv_budget: KVBudgetText = None,
    kv_policy: KVPolicy = None,
    kv_max_loss: KVMaxLoss = None,
    temperature: Temperature = None,
    batch_file: Annotated[
        Path | None,
        typer.Option(
            help='JSON lines instead of PROMPT: {"prompt": "...", "effort": "low"}, {"prompt": "...", '
            '"thinking_budget": 64}, or a plain string. A line may also have thinking_target, target_tolerance and '
            "min_thinking_tokens, and plan: auto, a list of steps, an object that has them, or null for none. What a line "
            "has replaces what the command line says."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts answered at once.", min=1)] = 16,
    stream: Annotated[bool, typer.Option("--stream", help="Show tokens as they come.")] = False,
    model: Model = None,
    predictor: Predictor = None,
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Answer a PROMPT, or a file of prompts, under a thinking budget."""
    _check_combination(prompt, batch_file, stream, as_json)
    if budget_notes and plan is None and batch_file is None:
        raise BudgetctlError(
            "--budget-notes without --plan: expected --plan, at whose steps it is told what is left; give it or drop "
            "--budget-notes"
        )
    with clean_stdout(as_json):
        from budgetctl.cli.batch_file import BadLine, read_batch_file
        from budgetctl.cli.kv import read_kv
        from budgetctl.cli.plan import own_plan, read_plan
        from budgetctl.cli.requests import Request, Settings, make_request, own_limits, read_early_exit

        settings = Settings(
            max_new_tokens=max_new_tokens,
            answer_reserve=answer_reserve,
            guidance_strength=guidance_strength,
            guided_steps=guided_steps,
            max_extensions=max_extensions,
            extension_phrase=extension_phrase,
            transition_phrase=transition_phrase,
            early_exit=read_early_exit(early_exit),
            plan=read_plan(
                plan,
                plan_schedule,
                show_plan,
                planner,
                planner_url,
                plan_cache,
                embedded=model is None,
                floor=plan_floor,
                firmness=plan_firmness,
            ),
            budget_notes=budget_notes,
            kv=read_kv(kv_budget, kv_policy, kv_max_loss),
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
        )
        limits: dict[str, object] = {
            "effort": effort,
            "thinking_budget": thinking_budget,
            "thinking_target": thinking_target,
            "target_tolerance": target_tolerance,
            "min_thinking_tokens": min_thinking_tokens,
        }
        has_predictor = predictor is not None or model is None

        def make(fields: dict[str, object]) -> Request:
            own = own_limits(fields, limits)
            more: dict[str, Any] = {}
            if "plan" in fields:
                more["plan"] = own_plan(fields["plan"], settings.plan, embedded=model is None)
            return make_request(fields.get("prompt"), own, settings, has_predictor=has_predictor, **more)

        bad: list[BadLine] = []
        if batch_file is None:
            requests = [make({"prompt": read_prompt(prompt)})]
        else:
            # A bad limit of the command line is not the fault of every line.
            make({"prompt": "any"})
            requests, bad = read_batch_file(batch_file, make)
            for line in bad:
                typer.echo(f"budgetctl: {batch_file}, line {line.line}: {line.error}", err=True)
        answers = []
        if requests:
            from budgetctl.cli import load
            from budgetctl.cli.answer import answer
            from budgetctl.evals.output import progress_bar

            place = load.choose_device(device)
            loaded = load.open_model(model, load.open_predictor(model, predictor), place)
            if stream:
                from budgetctl.cli.stream import stream_answer

                stream_answer(loaded, requests[0], settings)
                return
            if batch_file is None:
                answers = answer(loaded, requests, settings)
            else:
                with progress_bar(err()) as bar:
                    task = bar.add_task("answering", total=len(requests))
                    answers = answer(
                        loaded, requests, settings, progress=lambda done: bar.advance(task, done)
                    )
    if as_json:
        result: dict[str, object] = {"results": [a.as_dict() for a in answers]}
        if bad:
            result["errors"] = [line.as_dict() for line in bad]
        emit_json(result)
    else:
        console = out()
        for number, one in enumerate(answers, start=1):
            if batch_file is not None:
                console.rule(Text(f"{number} of {len(answers)}"), align="left")
                console.print(Text(one.prompt, style="bold"), soft_wrap=True)
                console.print()
            show_answer(console, one)
    if bad:
        raise typer.Exit(2)


def _check_combination(prompt: str | None, batch_file: Path | None, stream: bool, as_json: bool) -> None:
    if (prompt is None) == (batch_file is None):
        came = "neither PROMPT nor" if prompt is None else "both PROMPT and"
        raise BudgetctlError(
            f"{came} --batch-file was given: expected one of them; give a question, - to read it from stdin, or a file"
        )
    if stream and as_json:
        raise BudgetctlError(
            "--stream and --json were both given: expected one, since JSON is written when all is done; drop one"
        )
    if stream and batch_file is not None:
        raise BudgetctlError(
            "--stream and --batch-file were both given: expected a single prompt to stream; drop one"
        )
