"""Allocators by name: (weights, total, floor, cap) to whole tokens that sum exactly to the total.

The decays are those of Plan-and-Budget (arXiv 2505.16122, equation 7): a step's share is its weight times the shape of the
schedule at its place. Two departures. The paper has no floor, and its planner's credits rise towards the last step while
the shapes fall, so that their product all but starves it; here every allocator keeps a floor. And whole tokens follow by
largest remainders, where the paper's code gives what is left to the largest share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from budgetctl.errors import BudgetError
from budgetctl.plan import schedules
from budgetctl.plan.bounds import Bound, check_problem, proportional
from budgetctl.plan.greedy import greedy_marginal
from budgetctl.plan.uncertainty import bam_eq6, bam_exact

#: A decay shape for so many steps.
Shape = Callable[..., list[float]]

#: Decays by name, each with the name of the parameter that may stand in brackets after it, None for none.
SHAPES: dict[str, tuple[Shape, str | None]] = {
    "weighted": (schedules.constant_shape, None),
    "linear": (schedules.linear_shape, None),
    "polynomial": (schedules.polynomial_shape, "power"),
    "exponential": (schedules.exponential_shape, "gamma"),
    "cosine": (schedules.cosine_shape, "lift"),
    "rex": (schedules.rex_shape, "d"),
    "uba": (schedules.uba_shape, "phi"),
}
_OTHERS: dict[str, tuple[Callable[..., list[int]], str | None]] = {
    "bam_eq6": (bam_eq6, "beta"),
    "bam_exact": (bam_exact, "beta"),
    "greedy": (greedy_marginal, None),
}
#: Names that :meth:`Allocator.parse` knows.
ALLOCATORS = ("uniform", *SHAPES, *_OTHERS)


def uniform(weights: Sequence[float], total: int, floor: Bound = 0, cap: Bound = None) -> list[int]:
    """The same for all steps, whatever their weights.

    Raises:
        BudgetError: as :func:`~budgetctl.plan.bounds.check_problem`.
    """
    problem = check_problem(weights, total, floor, cap)
    return proportional(problem._replace(weights=[1.0] * len(problem.weights)))


def by_shape(
    weights: Sequence[float],
    total: int,
    floor: Bound = 0,
    cap: Bound = None,
    *,
    shape: Shape = schedules.constant_shape,
    **parameters: float,
) -> list[int]:
    """In proportion to the weight of each step times a decay ``shape`` at its place.

    Raises:
        BudgetError: as :func:`~budgetctl.plan.bounds.check_problem`, or for a parameter that the shape does not take.
    """
    problem = check_problem(weights, total, floor, cap)
    decay = shape(len(problem.weights), **parameters)
    return proportional(
        problem._replace(weights=[w * d for w, d in zip(problem.weights, decay, strict=True)])
    )


@dataclass(frozen=True)
class Allocator:
    """An allocator with its parameters, such as ``polynomial(3)``; call it with (weights, total, floor, cap).

    Args:
        name: one of :data:`ALLOCATORS`.
        parameters: pairs of name and value.
    """

    name: str
    parameters: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: str | Allocator) -> Allocator:
        """Read a name, with a parameter in brackets where it has one.

        Raises:
            BudgetError: for an unknown name, or a parameter that it does not take.
        """
        if isinstance(text, Allocator):
            return text
        match = (
            re.fullmatch(r"\s*([a-z0-9_]+)\s*(?:\(\s*([^()\s]+)\s*\))?\s*", text)
            if isinstance(text, str)
            else None
        )
        if match is None or match[1] not in ALLOCATORS:
            raise BudgetError(
                f"unknown schedule {text!r}: expected one of {', '.join(ALLOCATORS)}; some take a parameter, such as "
                "polynomial(3)"
            )
        name, value = match[1], match[2]
        parameter = None if name == "uniform" else (SHAPES | _OTHERS)[name][1]
        if value is None:
            return cls(name)
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if parameter is None or number != number:
            expected = "no parameter" if parameter is None else f"a number as its {parameter}"
            raise BudgetError(f"schedule {text!r}: expected {expected}; correct what stands in brackets")
        made = cls(name, ((parameter, number),))
        made([1.0, 1.0], 2)  # refuses a number out of range
        return made

    def __call__(
        self, weights: Sequence[float], total: int, floor: Bound = 0, cap: Bound = None
    ) -> list[int]:
        """Tokens of each step; they sum to ``total``.

        Args:
            weights: of the steps, not negative, not all zero.
            total: tokens.
            floor: least tokens of a step, one for all or one a step.
            cap: most tokens of a step, likewise; None for any.

        Raises:
            BudgetError: as :func:`~budgetctl.plan.bounds.check_problem`, or for a parameter out of range.
        """
        parameters: dict[str, Any] = dict(self.parameters)
        if self.name == "uniform":
            return uniform(weights, total, floor, cap)
        if self.name in SHAPES:
            return by_shape(weights, total, floor, cap, shape=SHAPES[self.name][0], **parameters)
        return _OTHERS[self.name][0](weights, total, floor, cap, **parameters)

    def __str__(self) -> str:
        values = ", ".join(f"{value:g}" for _, value in self.parameters)
        return f"{self.name}({values})" if values else self.name
