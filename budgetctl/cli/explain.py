"""``budgetctl explain``: answer one prompt, and show token by token how its thought was kept inside the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from budgetctl.cli.options import (
    AnswerReserve,
    Budget,
    Device,
    EarlyExitRule,
    Effort,
    ExtensionPhrase,
    GuidanceStrength,
    GuidedSteps,
    Json,
    MaxExtensions,
    MaxNewTokens,
    MinThinkingTokens,
    Model,
    Predictor,
    Seed,
    TargetTolerance,
    Temperature,
    ThinkingTarget,
    TransitionPhrase,
    read_prompt,
)
from budgetctl.cli.render import clean_stdout, emit_json, out


def explain(
    prompt: Annotated[str, typer.Argument(help="The question; - reads it from stdin.", show_default=False)],
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
    temperature: Temperature = None,
    png: Annotated[
        Path | None,
        typer.Option(help="Also draw the figure into this file (needs matplotlib).", show_default=False),
    ] = None,
    model: Model = None,
    predictor: Predictor = None,
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Answer a PROMPT, and show where its thought was steered and why it closed there."""
    with clean_stdout(as_json):
        from budgetctl.cli.requests import Settings, make_request, read_early_exit

        settings = Settings(
            max_new_tokens=max_new_tokens,
            answer_reserve=answer_reserve,
            guidance_strength=guidance_strength,
            guided_steps=guided_steps,
            max_extensions=max_extensions,
            extension_phrase=extension_phrase,
            transition_phrase=transition_phrase,
            early_exit=read_early_exit(early_exit),
            temperature=temperature,
            seed=seed,
        )
        limits: dict[str, object] = {
            "effort": effort,
            "thinking_budget": thinking_budget,
            "thinking_target": thinking_target,
            "target_tolerance": target_tolerance,
            "min_thinking_tokens": min_thinking_tokens,
        }
        request = make_request(
            read_prompt(prompt), limits, settings, has_predictor=predictor is not None or model is None
        )
        if png is not None:
            from budgetctl.cli.explain_figure import check_path

            check_path(png)
        from budgetctl.cli import load
        from budgetctl.cli.explanation import explain_answer

        place = load.choose_device(device)
        loaded = load.open_model(model, load.open_predictor(model, predictor), place)
        explained = explain_answer(loaded, request, settings)
        if png is not None:
            from budgetctl.cli.explain_figure import write_figure

            write_figure(explained, png)
    if as_json:
        emit_json(explained.as_dict())
        return
    from budgetctl.cli.explain_view import show

    show(out(), explained)
