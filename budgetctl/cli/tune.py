"""``budgetctl tune``: search budgets, plans and guidance for a model on dev questions, and tell what came of it on others."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetctl.cli.options import Device, Json, Model, Predictor, Seed
from budgetctl.cli.render import clean_stdout, emit_json, err, out
from budgetctl.errors import BudgetctlError

if TYPE_CHECKING:
    from budgetctl.evals.load import LoadedModel
    from budgetctl.evals.tune_questions import Asked
    from budgetctl.evals.tune_space import Setting
    from budgetctl.evals.tuning import Outcome


def tune(
    trials: Annotated[int, typer.Option(help="Settings that are tried, the default among them.", min=2)] = 40,
    price: Annotated[
        float | None,
        typer.Option(
            help="Maximise accuracy less this for each token of thought and answer.", show_default=False
        ),
    ] = None,
    at_most: Annotated[
        float | None,
        typer.Option(
            metavar="TOKENS",
            help="Maximise accuracy with at most so many tokens a question, on average.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Of the default; the search tries as many and fewer.", min=1)
    ] = 256,
    questions: Annotated[
        Path | None,
        typer.Option(
            help='Dev questions, JSON lines such as {"prompt": "...", "answer": "42"}; those of the embedded reasoner if left out.',
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Questions of the same form that the result is told on.", show_default=False),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="Of the embedded reasoner's questions: dial, walk, cups or pair.", show_default=False
        ),
    ] = None,
    count: Annotated[int, typer.Option("--n", help="Dev questions at most, and of the others.", min=2)] = 96,
    plans: Annotated[
        bool,
        typer.Option(
            "--plans/--no-plans",
            help="Try plans; the model writes them, the embedded reasoner's come by rule.",
        ),
    ] = True,
    folder: Annotated[
        Path,
        typer.Option("--out", help="Of trials, result and plans; a search that was killed goes on there."),
    ] = Path("runs/tune"),
    png: Annotated[Path | None, typer.Option(help="Draw the search.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts answered at once.", min=1)] = 32,
    model: Model = None,
    predictor: Predictor = None,
    device: Device = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Search for the setting of generate that suits a model and its questions best."""
    if find_spec("optuna") is None:
        raise BudgetctlError(
            "tune needs optuna, which is not installed: expected the package; pip install 'budgetctl-llm[tune]'"
        )
    if png is not None:
        from budgetctl.cli.explain_figure import check_path

        check_path(png)
    with clean_stdout(as_json):
        from budgetctl.cli import load
        from budgetctl.evals.output import progress_bar, write_text
        from budgetctl.evals.tune_questions import take
        from budgetctl.evals.tune_space import Space
        from budgetctl.evals.tuning import HeldOut, Objective, Trial, best_of, open_run, pareto, run_search

        objective = Objective(price, at_most)
        space = Space(max_new_tokens, predictor is not None or model is None, plans)
        dev, other = take(questions, held_out, family, count, embedded=model is None)
        search = {
            "model": model,
            "predictor": predictor,
            "questions": [str(questions), str(held_out), family, count],
            "max_new_tokens": max_new_tokens,
            "plans": plans,
            "seed": seed,
            "price": price,
            "at_most": at_most,
        }
        known = open_run(folder, search)
        artifact = load.open_predictor(model, predictor)
        loaded = load.open_model(model, artifact, load.choose_device(device))
        ask = _asker(loaded, folder / "plans", model is None, seed, batch_size)
        with progress_bar(err()) as bar:
            task = bar.add_task("trying", total=max(trials, len(known)), completed=len(known))

            def tried(trial: Trial) -> None:
                bar.update(
                    task, advance=1, description=f"accuracy {trial.accuracy:.2f} in {trial.tokens:.0f} tokens"
                )

            done = run_search(
                folder, known, space, objective, trials, seed, lambda setting: ask(setting, dev), tried
            )
            task = bar.add_task("held-out questions", total=2)
            best = best_of(done, objective)
            chosen = space.default if best.params is None else space.setting(best.params)
            base = ask(space.default, other)
            bar.advance(task)
            found = base if best.params is None else ask(chosen, other)
            bar.advance(task)
        told = {
            "default": HeldOut.of(base, base, objective),
            "best on dev": HeldOut.of(found, base, objective),
        }
        result: dict[str, Any] = {
            "search": search,
            "trials": len(done),
            "default_on_dev": done[0].as_dict(),
            "best_on_dev": best.as_dict(),
            "setting": chosen.as_dict(),
            "flags": chosen.flags(),
            "held_out": {name: one.as_dict() for name, one in told.items()},
            "front": [
                {
                    **t.as_dict(),
                    "flags": (space.default if t.params is None else space.setting(t.params)).flags(),
                }
                for t in pareto(done)
            ],
        }
        write_text(folder / "best.json", json.dumps(result, indent=1))
        if png is not None:
            from budgetctl.evals.tune_plot import draw_search

            draw_search(png, done, objective, told)
    if as_json:
        emit_json(result)
        return
    console = out()
    console.print("Accuracy and tokens on the dev questions, of what no trial beats in both:")
    for row in result["front"]:
        console.print(
            f"  {row['accuracy']:.3f} in {row['tokens']:.1f}: {shlex.join(row['flags'])}",
            markup=False,
            soft_wrap=True,
        )
    console.print(
        f"\nThe best of {len(done)} trials: {best.accuracy:.3f} in {best.tokens:.1f} tokens, worth "
        f"{objective.value(best.accuracy, best.tokens):.3f}; the default {done[0].accuracy:.3f} in {done[0].tokens:.1f}.",
        soft_wrap=True,
    )
    for name, one in told.items():
        console.print(
            f"On {len(other)} held-out questions, {name}: {one.accuracy} in {one.tokens:.1f} tokens, worth {one.value:.3f}",
            markup=False,
            soft_wrap=True,
        )
    gain = told["best on dev"]
    console.print(
        f"The gain over the default there: {gain.gain} in accuracy, {gain.more_tokens:+.1f} tokens. (The best of many trials "
        "looks better on the questions that it was chosen by than it is.)",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"\nbudgetctl generate {shlex.join(chosen.flags())} QUESTION", markup=False, soft_wrap=True)


def _asker(
    loaded: LoadedModel, plan_folder: Path, embedded: bool, seed: int, batch_size: int
) -> Callable[[Setting, Sequence[Asked]], list[Outcome]]:
    """Asks questions under a setting; question i draws from the same seed under every setting."""
    from budgetctl.cli.answer import answer
    from budgetctl.cli.plan import PlanSettings
    from budgetctl.cli.requests import Settings, make_request
    from budgetctl.evals.tuning import Outcome
    from budgetctl.plan.allocators import Allocator

    def ask(setting: Setting, questions: Sequence[Asked]) -> list[Outcome]:
        plan = None
        if setting.schedule is not None:
            plan = PlanSettings(
                schedule=Allocator.parse(setting.schedule),
                cache=plan_folder,
                embedded=embedded,
                floor=setting.floor,
                firmness=setting.firmness,
            )
        settings = Settings(
            max_new_tokens=setting.max_new_tokens,
            answer_reserve=setting.answer_reserve,
            guidance_strength=setting.guidance_strength,
            plan=plan,
            seed=seed,
            batch_size=batch_size,
        )
        limits = {"effort": setting.effort, "thinking_budget": setting.thinking_budget}
        requests = [
            make_request(
                question.prompt, limits, settings, has_predictor=loaded.installation.forecast is not None
            )
            for question in questions
        ]
        outcomes = []
        for question, given in zip(questions, answer(loaded, requests, settings), strict=True):
            planner: Any = 0 if given.plan is None else given.plan["planner_tokens"]
            tokens = given.thinking_tokens + given.answer_tokens + planner
            outcomes.append(Outcome(question.is_correct(given.answer), tokens))
        return outcomes

    return ask
