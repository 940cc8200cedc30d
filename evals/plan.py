"""Plans and step budgets on questions of several parts: ``python -m budgetctl.evals.plan``.

The questions are the embedded reasoner's pairs of dials, of at least four turns; the plans come from their text by rule, and
with ``--planner`` from a model as well, whose tokens are counted.
A question's budget is so many thinking tokens for each turn, and nine for the sum: what the question says, and no label of
its difficulty. Compared are no plan, the plan in the prompt (alone, with a budget in words for each step as Plan-and-Budget
has it, or with one for all), one cap for the whole thought, and shares that are enforced step by step, each with and without
the length predictor. All draw from the same noise. Writes records, ``summary.json`` and ``table.md`` to ``--out``; a run
that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from budgetctl.evals.load import LoadedModel, load_model
from budgetctl.evals.metrics import bootstrap_mean, paired_difference
from budgetctl.evals.output import progress_bar, write_text
from budgetctl.evals.plan_arms import Arm, arm_records, breaks_off, uses_of
from budgetctl.evals.plan_planner import agreement, load_planner, plan_all, take_pairs
from budgetctl.evals.plan_systems import ALWAYS, MIDDLE, planned_by
from budgetctl.evals.runner import Record, kept_records
from budgetctl.plan.difficulty import weigh_by_length
from budgetctl.plan.plan import Plan
from budgetctl.reasoner.plans import SUM_TOKENS, plan_question, with_marks
from budgetctl.reasoner.tasks import Question


def budget_of(question: Question, a_turn: float) -> int:
    """Thinking tokens of a question."""
    return round(a_turn * question.level) + SUM_TOKENS


def written_tokens(loaded: LoadedModel, plans: Sequence[Plan]) -> list[int]:
    """Tokens of each plan as a planner would have to write it."""
    texts = [
        json.dumps({"steps": [{"text": s.text, "credit": round(s.weight)} for s in plan.steps]})
        for plan in plans
    ]
    return [len(ids) for ids in loaded.tokenizer(texts, add_special_tokens=False).input_ids]


def digest(plans: Sequence[Plan]) -> str:
    """Tells plans apart in the name of a file."""
    return hashlib.sha256(json.dumps([plan.as_dict() for plan in plans]).encode()).hexdigest()[:8]


def e3(correct: np.ndarray, tokens: np.ndarray, resamples: int = 2000) -> tuple[float, float, float]:
    """A^2 / T with A in percent and T the mean tokens, and its 95 % percentile-bootstrap interval."""
    at = np.random.default_rng(0).integers(0, len(correct), (resamples, len(correct)))
    values = (100 * correct[at].mean(1)) ** 2 / tokens[at].mean(1)
    low, high = np.quantile(values, [0.025, 0.975])
    return float((100 * correct.mean()) ** 2 / tokens.mean()), float(low), float(high)


def summarise(
    loaded: LoadedModel,
    arm: Arm,
    records: Sequence[Record],
    plans: Sequence[Plan],
    against: Sequence[Record] | None,
    planner: Sequence[int],
) -> dict[str, Any]:
    """Accuracy, tokens, E3 and steps of one system."""
    correct = np.array([r.correct for r in records], dtype=float)
    tokens = np.array([r.thinking_tokens + r.answer_tokens for r in records], dtype=float)
    accuracy = bootstrap_mean(correct)
    value, low, high = e3(correct, tokens)
    uses = uses_of(loaded, records, plans)
    row: dict[str, Any] = {
        "system": arm.name,
        "n": len(records),
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "budget": float(np.mean([r.thinking_budget or 0 for r in records])),
        "thinking_tokens": float(np.mean([r.thinking_tokens for r in records])),
        "tokens": float(tokens.mean()),
        "over_budget": float(np.mean([r.thinking_tokens > (r.thinking_budget or 0) for r in records])),
        "e3": value,
        "e3_low": low,
        "e3_high": high,
        "steps_inside": float(np.mean([step.inside and step.begun for steps in uses for step in steps])),
        "all_begun": float(np.mean([all(step.begun for step in steps) for steps in uses])),
        "broken_off": float(np.mean([breaks_off(loaded, record) for record in records])),
        "forced": float(np.mean([r.close == "forced" for r in records])),
    }
    if arm.shown or arm.schedule:
        row["planner_tokens"] = float(np.mean(planner))
        row["e3_with_planner"] = e3(correct, tokens + np.array(planner))[0]
        row["fallbacks"] = float(np.mean([plan.source == "fallback" for plan in plans]))
    if against is not None:
        gain = paired_difference(list(correct), [r.correct for r in against])
        row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        others = np.array([r.thinking_tokens + r.answer_tokens for r in against], dtype=float)
        row["more_tokens"] = float(tokens.mean() - others.mean())
        reference = (100 * np.mean([r.correct for r in against])) ** 2 / others.mean()
        if "planner_tokens" in row and reference:
            # Where E3 with the planner counted is that of the reference.
            row["planner_tokens_worth"] = float((100 * correct.mean()) ** 2 / reference - tokens.mean())
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of the summaries."""
    lines = [
        "| tokens a turn | system | accuracy [95 %] | thinking tokens (budget) | over budget | E³ [95 %] | E³, planner counted (its tokens) "
        "| steps inside | broken off | gain [95 %] | tokens more |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        gain = f"{r['gain']:+.3f} [{r['gain_low']:+.3f}, {r['gain_high']:+.3f}]" if "gain" in r else ""
        more = f"{r['more_tokens']:+.1f}" if "gain" in r else ""
        planner = f"{r['e3_with_planner']:.1f} ({r['planner_tokens']:.0f})" if "e3_with_planner" in r else ""
        lines.append(
            f"| {r['a_turn']:g} | {r['system']} | {r['accuracy']:.3f} [{r['accuracy_low']:.3f}, {r['accuracy_high']:.3f}] "
            f"| {r['thinking_tokens']:.1f} ({r['budget']:.1f}) | {r['over_budget']:.2f} | {r['e3']:.1f} [{r['e3_low']:.1f}, "
            f"{r['e3_high']:.1f}] | {planner} | {r['steps_inside']:.2f} | {r['broken_off']:.2f} | {gain} | {more} |"
        )
    return "\n".join(lines)


def main(
    count: Annotated[int, typer.Option("--n", help="questions")] = 200,
    a_turn: Annotated[
        str, typer.Option(help="budgets in tokens a turn; the middle one has all systems")
    ] = "3,4.5,6",
    split: Annotated[str, typer.Option(help="stream of questions")] = "test",
    seed: Annotated[int, typer.Option(help="first noise seed")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="thought and answer together")] = 320,
    model: Annotated[str | None, typer.Option(help="directory; the embedded reasoner when left out")] = None,
    predictor: Annotated[str | None, typer.Option(help="its length predictor")] = None,
    planner_model: Annotated[
        Path | None, typer.Option("--planner", help="folder of a model that plans as well")
    ] = None,
    planner_prompt: Annotated[
        str | None, typer.Option(help="what it is asked, with {question}; the project's if left out")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for records, summary and table")] = Path("runs/plan"),
) -> None:
    """Run every system at every budget."""
    loaded = load_model(model, predictor, with_predictor=True)
    asked = take_pairs(split, count)
    plans = [plan_question(question.prompt) for question in asked]
    planner = written_tokens(loaded, plans)
    by_model: list[Plan] = []
    seeds = [seed + i for i in range(count)]
    budgets = [float(value) for value in a_turn.split(",")]
    middle = budgets[len(budgets) // 2]
    rows: list[dict[str, Any]] = []
    extra: Sequence[tuple[Arm, str]] = ()
    with progress_bar(Console(stderr=True)) as progress:
        if planner_model is not None:
            planning = progress.add_task("planning", total=count)
            writes = load_planner(planner_model, out / "plans", planner_prompt)
            written = plan_all(writes, asked, partial(progress.advance, planning))
            write_text(out / "planner.json", json.dumps(agreement(written, plans), indent=1))
            by_model = [with_marks(plan) for plan in written]
            extra = planned_by(planner_model.name)
        arms = {value: [*ALWAYS, *extra, *(MIDDLE if value == middle else ())] for value in budgets}
        task = progress.add_task("answering", total=count * (1 + sum(map(len, arms.values()))))
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "progress": partial(progress.advance, task),
        }

        def run(arm: Arm, value: float, used: Sequence[Plan]) -> list[Record]:
            limits = [budget_of(question, value) for question in asked]
            label = "".join(c if c.isalnum() else "-" for c in arm.name)
            if arm.by_model:
                label += f"-{digest(used)}"
            path = out / f"{label}-{value:g}-{split}-{count}-seed{seed}.jsonl"
            make = partial(arm_records, loaded, arm, asked, used, limits, seeds, **options)
            return kept_records(path, make)

        for value in budgets:
            done = {"no plan": run(Arm("no plan"), middle, plans)}
            if value == middle:
                row = summarise(loaded, Arm("no plan"), done["no plan"], plans, None, planner)
                rows.append({"a_turn": value, **row})
            for arm, reference in arms[value]:
                used = by_model if arm.by_model else plans
                if "predicted length" in arm.name:
                    used = [weigh_by_length(plan, loaded.installation) for plan in plans]
                if arm.parts_only:
                    used = [replace(plan, steps=plan.steps[:-1]) for plan in used]
                done[arm.name] = run(arm, value, used)
                against = None if reference is None else done[reference]
                scheduled = [p.with_schedule(arm.schedule) if arm.schedule else p for p in used]
                tokens = [plan.planner_tokens for plan in used] if arm.by_model else planner
                row = summarise(loaded, arm, done[arm.name], scheduled, against, tokens)
                rows.append({"a_turn": value, **row})
    write_text(out / "summary.json", json.dumps(rows, indent=1))
    write_text(out / "table.md", table(rows) + "\n")
    Console().print(table(rows), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
