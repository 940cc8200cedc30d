"""What is asked of a planner, and how a plan is shown to the model that follows it."""

from __future__ import annotations

from collections.abc import Sequence

from budgetctl.errors import PlanError
from budgetctl.plan.plan import Plan

#: Raise it with every change of what a planner is asked: plans that are kept on disk are then asked for anew.
VERSION = 1

_ASK = """Split the question below into the steps in which it is best worked out. Do not work it out yourself.

Reply with one JSON object and nothing else:
{{"steps": [{{"text": "what to find out, in one short sentence", "credit": 40, "after": []}}]}}

- 1 to {most} steps. A question that takes one thought has one step.
- "credit": how much of the work the step is, as a whole number above 0. All credits sum to 100.
- "after": numbers of the steps, counted from 1, whose results this step needs.
- No results, no guesses, no text before or after the object.

Question:
{question}"""

_AGAIN = """{prompt}

Your last reply could not be used: {why}
Reply again with the JSON object alone."""


def planning_prompt(question: str, most: int = 5, template: str | None = None) -> str:
    """What a planner is asked about a question, for at most so many steps.

    Args:
        question: to plan.
        most: steps.
        template: a prompt of the planner's own, with ``{question}`` and perhaps ``{most}`` (a brace that is written is
            doubled): one that was fine-tuned to plan needs no instructions. None for those of this file.

    Raises:
        PlanError: for a template without the question, or with any other field.
    """
    if template is None:
        return _ASK.format(question=question.strip(), most=most)
    try:
        text = template.format(question=question.strip(), most=most)
        named = "\0" in template.format(question="\0", most=most)
    except (ValueError, LookupError, AttributeError):
        named = False
    if not named:
        raise PlanError(
            f"a planning prompt {template!r}: expected a text with {{question}}, and perhaps {{most}}; correct it"
        )
    return text


def retry_prompt(prompt: str, why: str) -> str:
    """The same once more, with what was wrong."""
    return _AGAIN.format(prompt=prompt, why=why)


def show_plan(
    question: str,
    plan: Plan,
    budgets: Sequence[int] | None = None,
    total: int | None = None,
    unit: str = "words",
) -> str:
    """The question with its plan, for a prompt.

    This is how Plan-and-Budget (arXiv 2505.16122) makes its budgets known, and all that it does about them; the wording is
    ours.

    Args:
        question: of the plan.
        plan: to show.
        budgets: of each step, in ``unit``; None to show none.
        total: for all steps together, in ``unit``; None to show none.
        unit: of the budgets.
    """
    lines = [question.strip(), "", "Work through these steps:"]
    for number, step in enumerate(plan.steps, start=1):
        limit = "" if budgets is None else f" (at most {budgets[number - 1]} {unit})"
        lines.append(f"Step {number}: {step.text.strip()}{limit}")
    if total is not None:
        lines.append(f"Use at most {total} {unit} in all.")
    return "\n".join(lines)
