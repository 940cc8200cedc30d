"""Plans for the embedded reasoner's questions, read from their text by rule: it is too small to write plans itself."""

from __future__ import annotations

import re

from budgetctl.plan.plan import Plan, Step

_PAIR = re.compile(
    r"\s*Dial 1 shows (\d): turn ([-+ \d]+)\. Dial 2 shows (\d): turn ([-+ \d]+)\. Sum of the two digits\?\s*"
)
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
    begin, turn = second, others.split()[0]
    heading = f"{begin}{turn}"
    return Plan(
        (
            Step(_dial(first, turns), TURN_WEIGHT * len(turns.split()), heading=""),
            Step(
                _dial(second, others),
                TURN_WEIGHT * len(others.split()),
                heading=heading,
                marks=(heading, f"We are at {begin}, then {turn}"),
            ),
            Step(
                "Sum of the two digits?",
                SUM_WEIGHT,
                (1, 2),
                heading="Sum ",
                marks=("Sum",),
                least_tokens=SUM_TOKENS,
            ),
        ),
        source="planned",
    )


def _dial(start: str, turns: str) -> str:
    return f"A dial shows {start}: turn {turns}. Where does it stop?"
