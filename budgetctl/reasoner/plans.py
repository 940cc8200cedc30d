"""Plans for the embedded reasoner's questions, read from their text by rule."""

from __future__ import annotations

import re
from dataclasses import replace

from budgetctl.plan.plan import Plan, Step

_PAIR = re.compile(
    r"\s*Dial 1 shows (\d): turn ([-+ \d]+)\. Dial 2 shows (\d): turn ([-+ \d]+)\. Sum of the two digits\?\s*"
)
#: A dial in the text of a step: its digit and its first turn.
_DIAL = re.compile(r"shows (\d): turn ([-+]\d)")
#: Thinking tokens for each turn of a dial, and of the last step, which cannot be written in fewer.
TURN_WEIGHT, SUM_WEIGHT, SUM_TOKENS = 9.0, 8.0, 9


def plan_question(question: str) -> Plan:
    """Two dials are two steps and their sum a third; every other question is a single step (``source`` "fallback").

    The weights go by the number of turns, which the question says. The reasoner writes no headings: a step is told by how
    its first line begins, in either of the two ways that it has been trained on, and begun by the first two of its tokens.
    """
    match = _PAIR.fullmatch(question)
    if match is None:
        return Plan.single(question)
    first, turns, second, others = match.groups()
    return with_marks(
        Plan(
            (
                Step(_dial(first, turns), TURN_WEIGHT * len(turns.split())),
                Step(_dial(second, others), TURN_WEIGHT * len(others.split())),
                Step("Sum of the two digits?", SUM_WEIGHT, (1, 2)),
            ),
            source="planned",
        )
    )


def with_marks(plan: Plan) -> Plan:
    """A plan of the reasoner's question, whoever wrote it, with the marks and headings that are the reasoner's own.

    They are read from the text of each step, which is a dial with its turns, or a sum. Any other step keeps what it has:
    by default a line ``Step N: ...``, which the reasoner has never seen.
    """
    return replace(plan, steps=tuple(_with_marks(step, at == 0) for at, step in enumerate(plan.steps)))


def _with_marks(step: Step, opens: bool) -> Step:
    if opens:
        return replace(step, heading="")
    if step.text.startswith("Sum"):
        least = max(step.least_tokens, SUM_TOKENS)
        return replace(step, heading="Sum ", marks=("Sum",), least_tokens=least)
    dial = _DIAL.search(step.text)
    if dial is None:
        return step
    begin, turn = dial.groups()
    heading = f"{begin}{turn}"
    return replace(step, heading=heading, marks=(heading, f"We are at {begin}, then {turn}"))


def _dial(start: str, turns: str) -> str:
    return f"A dial shows {start}: turn {turns}. Where does it stop?"
