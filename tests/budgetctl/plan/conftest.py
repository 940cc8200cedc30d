"""Plans over the toy model's tokens: spelled by hand, since it has no tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from budgetctl.closing import Boundaries
from budgetctl.plan.plan import Plan, Step
from budgetctl.plan.row_plans import RowPlans, SpelledStep

LINE, A, B = 2, 5, 6
#: A first step without heading, a mark that is the whole heading, a mark that is a part of it, and two ways to begin one.
TOY_STEPS = (
    SpelledStep((), (), (), 0),
    SpelledStep(((A,),), (False,), (A,), 1),
    SpelledStep(((B, B),), (False,), (B, B, A, LINE), 2),
    SpelledStep(((B, A), (LINE, A, B)), (False, True), (B, A), 2),
)
#: The same with a heading for the first step.
HEADED = (SpelledStep(((12, 12),), (False,), (12, 12, LINE), 2), *TOY_STEPS[1:])


def toy_plan(
    weights: Sequence[float], schedule: str = "weighted", floor: float = 0.0, firmness: float = 1.0
) -> Plan:
    steps = tuple(Step(f"step {n}", w) for n, w in enumerate(weights, start=1))
    return Plan(steps).with_schedule(schedule, floor=floor, firmness=firmness)


@pytest.fixture(scope="session")
def row_plans(boundaries: Boundaries) -> Callable[..., RowPlans]:
    """Plans with these weights for each row, None for no plan; ``headed`` rows write a heading for the first step."""

    def make(
        weights: Sequence[Sequence[float] | None], headed: Sequence[bool] = (), **options: Any
    ) -> RowPlans:
        plans = tuple(None if w is None else toy_plan(w, **options) for w in weights)
        spelled = tuple(
            () if w is None else (HEADED if headed and headed[row] else TOY_STEPS)[: len(w)]
            for row, w in enumerate(weights)
        )
        return RowPlans(plans, spelled, LINE, boundaries.line)

    return make
