"""The budget allocation model of Plan-and-Budget (arXiv 2505.16122, equation 6), and its exact optimum.

What is left uncertain after ``b`` tokens on a step is c / b^beta: c is the weight of the step (what is unknown before),
beta how fast thinking settles it. The sum is minimal where all steps gain equally from a further token:
c beta / b^(beta + 1) = lambda for all. The paper's closed form drops lambda from the shares, which is right where all betas
are equal and only there; :func:`bam_optimum` finds lambda.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from scipy.optimize import brentq

from budgetctl.errors import BudgetError
from budgetctl.plan.bounds import Bound, Problem, check_problem, clamped, proportional
from budgetctl.plan.greedy import best_exchanges, greedy

#: One exponent for all steps, or one a step.
Exponents = float | Sequence[float]


def uncertainty(weights: Sequence[float], tokens: Sequence[float], beta: Exponents = 1.0) -> float:
    """Sum of c / b^beta over the steps, infinite where a step with a weight has nothing.

    Raises:
        BudgetError: for exponents that are not positive, or not as many as weights.
    """
    parts = zip(weights, tokens, exponents(beta, len(weights)), strict=True)
    return math.fsum(left_after(c, b, power) for c, b, power in parts)


def left_after(weight: float, tokens: float, beta: float) -> float:
    """Uncertainty c / b^beta of one step."""
    if weight == 0:
        return 0.0
    return weight / tokens**beta if tokens > 0 else math.inf


def bam_eq6(
    weights: Sequence[float], total: int, floor: Bound = 0, cap: Bound = None, *, beta: Exponents = 1.0
) -> list[int]:
    """Tokens in proportion to (c beta)^(1 / (beta + 1)), as the paper has it.

    Raises:
        BudgetError: as :func:`~budgetctl.plan.bounds.check_problem`, or for exponents that are not positive.
    """
    problem = check_problem(weights, total, floor, cap)
    powers = exponents(beta, len(problem.weights))
    shares = [(c * b) ** (1 / (b + 1)) for c, b in zip(problem.weights, powers, strict=True)]
    return proportional(problem._replace(weights=shares))


def bam_exact(
    weights: Sequence[float], total: int, floor: Bound = 0, cap: Bound = None, *, beta: Exponents = 1.0
) -> list[int]:
    """Whole tokens of the least uncertainty.

    :func:`bam_optimum` rounded, and then single tokens exchanged as long as that lowers the uncertainty. For a sum of
    convex functions no better whole numbers are left then.

    Raises:
        BudgetError: as :func:`~budgetctl.plan.bounds.check_problem`, or for exponents that are not positive.
    """
    problem = check_problem(weights, total, floor, cap)
    powers = exponents(beta, len(problem.weights))

    def cost(step: int, tokens: int) -> float:
        return left_after(problem.weights[step], tokens, powers[step])

    exact = _optimum(problem, powers)
    lows = [max(math.floor(x) - 1, low) for x, low in zip(exact, problem.floors, strict=True)]
    return best_exchanges(greedy(problem._replace(floors=lows), cost), problem, cost)


def bam_optimum(
    weights: Sequence[float], total: int, floor: Bound = 0, cap: Bound = None, *, beta: Exponents = 1.0
) -> list[float]:
    """Real numbers of tokens of the least uncertainty: b = clamp((c beta / lambda)^(1 / (beta + 1)), floor, cap), with
    lambda from a root search over its logarithm.

    Raises:
        BudgetError: as :func:`~budgetctl.plan.bounds.check_problem`, or for exponents that are not positive.
    """
    problem = check_problem(weights, total, floor, cap)
    return _optimum(problem, exponents(beta, len(problem.weights)))


def _optimum(problem: Problem, powers: Sequence[float]) -> list[float]:
    steps = list(zip(problem.weights, powers, problem.floors, problem.caps, strict=True))

    def at(log_rate: float) -> list[float]:
        found = []
        for c, beta, low, high in steps:
            log_tokens = -math.inf if c == 0 else (math.log(c * beta) - log_rate) / (beta + 1)
            found.append(min(max(math.exp(min(log_tokens, 700.0)), low), high))
        return found

    def excess(log_rate: float) -> float:
        return math.fsum(at(log_rate)) - problem.total

    # Where every step with a weight has one token, and where each has all of them.
    low = min(math.log(c * b) - (b + 1) * math.log(problem.total + 1) for c, b, _, _ in steps if c > 0)
    high = max(math.log(c * b) for c, b, _, _ in steps if c > 0) + 60 * (max(powers) + 1)
    if excess(low) <= 0:  # all that may take more is full: the rest goes where there is no weight
        found = at(low)
        return clamped(
            Problem([1.0] * len(steps), problem.total, [math.floor(x) for x in found], problem.caps)
        )
    if excess(high) >= 0:  # floors take everything
        return at(high)
    return at(brentq(excess, low, high, xtol=1e-12, rtol=1e-14, maxiter=500))


def exponents(beta: Exponents, count: int) -> list[float]:
    """One exponent a step.

    Raises:
        BudgetError: for exponents that are not positive, or not as many.
    """
    values = [beta] * count if isinstance(beta, Real) else list(beta)  # type: ignore[arg-type]
    ok = all(isinstance(b, Real) and not isinstance(b, bool) and 0 < float(b) < math.inf for b in values)
    if not ok or len(values) != count:
        raise BudgetError(
            f"beta={beta!r}: expected positive numbers, one for all steps or one a step; correct it"
        )
    return [float(b) for b in values]
