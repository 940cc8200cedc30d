"""How results are shown: one JSON object, or thought (dim), answer and a summary line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from budgetctl.cli.answer import Answer

THOUGHT_STYLE = "dim"


@contextlib.contextmanager
def clean_stdout(wanted: bool) -> Iterator[None]:
    """While inside, what anything prints to stdout goes to stderr, if ``wanted``."""
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def emit_json(value: dict[str, Any]) -> None:
    """Write the one JSON object of a command to stdout."""
    typer.echo(json.dumps(value, allow_nan=False))


def out() -> Console:
    """Results; no highlighting, so that what the model wrote looks as it was written."""
    return Console(highlight=False)


def err() -> Console:
    """Progress and complaints."""
    return Console(stderr=True, highlight=False)


def summary_line(answer: Answer) -> str:
    """Like ``thinking 41 of 48 tokens (predicted 52) · closed natural``."""
    return (
        f"thinking {usage(answer.thinking_tokens, answer.thinking_budget, answer.predicted_tokens)} · "
        + ("not closed" if answer.close == "none" else f"closed {answer.close}")
        + (" · leaked into the answer" if answer.leaked else "")
        + (f" · {answer.note_tokens} of them notes" if answer.note_tokens else "")
        + _probes(answer.probe_cost)
    )


def plan_lines(plan: dict[str, Any] | None) -> list[str]:
    """A line a step, like ``step 1: 22 tokens of 25 · find the speed``; what the planner cost comes first."""
    if plan is None or plan["source"] == "fallback":
        return [] if plan is None else ["no plan was made: a single step"]
    cost = f"planned in {plan['planner_tokens']} tokens" if plan["planner_tokens"] else "planned"
    lines = [f"{cost}, shares {plan['schedule']}"]
    for number, step in enumerate(plan["steps"], start=1):
        late = "" if step["inside"] else " (late)"
        lines.append(f"step {number}: {step['used']} tokens of {step['share']}{late} · {step['text']}")
    return lines


def _probes(cost: dict[str, int] | None) -> str:
    """Like `` · 2 trial answers of 14 tokens, 161 tokens read``."""
    if cost is None:
        return ""
    count = "1 trial answer" if cost["probes"] == 1 else f"{cost['probes']} trial answers"
    return f" · {count} of {cost['probe_tokens']} tokens, {cost['read_tokens']} tokens read"


def usage(used: int, budget: int | None, predicted: float | None) -> str:
    """Like ``41 of 48 tokens (predicted 52)``."""
    limit = "" if budget is None else f" of {budget}"
    guess = "" if predicted is None else f" (predicted {predicted:.0f})"
    return f"{used}{limit} tokens{guess}"


def show_answer(console: Console, answer: Answer) -> None:
    """Thought, answer and summary."""
    if answer.thinking:
        console.print(Text(answer.thinking, style=THOUGHT_STYLE), soft_wrap=True)
        console.print()
    console.print(Text(answer.answer), soft_wrap=True)
    console.print()
    console.print(Text(summary_line(answer), style="cyan"), soft_wrap=True)
    for line in plan_lines(answer.plan):
        console.print(Text(line, style="cyan"), soft_wrap=True)
