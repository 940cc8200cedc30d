"""Token by token to where it brings most: exact for costs that fall ever more slowly."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from budgetctl.plan.bounds import Bound, Problem, check_problem

#: What is lost on a step (its number) that has so many tokens; falls with the tokens, and ever more slowly.
Cost = Callable[[int, int], float]


def greedy_marginal(
    weights: Sequence[float],
    total: int,
    floor: Bound = 0,
    cap: Bound = None,
    *,
    cost: Cost | None = None,
) -> list[int]:
    """Floors first, then each token to the step whose cost it lowers most.

    For convex costs this is the least sum of costs in whole tokens. The default is that of the allocation model with
    exponent 1: the weight of a step divided by its tokens.

    Raises:
        BudgetError: as :func:`~budgetctl.plan.bounds.check_problem`.
    """
    problem = check_problem(weights, total, floor, cap)

    def reciprocal(step: int, tokens: int) -> float:
        weight = problem.weights[step]
        return weight / tokens if tokens else weight * 1e18

    return greedy(problem, cost or reciprocal)


def greedy(problem: Problem, cost: Cost) -> list[int]:
    """The same on checked arguments."""
    found = list(problem.floors)
    heap: list[tuple[float, int]] = []

    def offer(step: int) -> None:
        if found[step] < problem.caps[step]:
            heapq.heappush(heap, (_difference(cost, step, found[step] + 1), step))

    for step in range(len(found)):
        offer(step)
    for _ in range(problem.total - sum(found)):
        _, step = heapq.heappop(heap)
        found[step] += 1
        offer(step)
    return found


def best_exchanges(tokens: list[int], problem: Problem, cost: Cost) -> list[int]:
    """``tokens`` after all exchanges of one token between two steps that lower the sum of ``cost``."""
    found = list(tokens)
    for _ in range(sum(tokens) + 1):
        gains = [
            (_difference(cost, i, b + 1), i)
            for i, (b, cap) in enumerate(zip(found, problem.caps, strict=True))
            if b < cap
        ]
        losses = [
            (_difference(cost, i, b), i)
            for i, (b, low) in enumerate(zip(found, problem.floors, strict=True))
            if b > low
        ]
        if not gains or not losses:
            break
        gain, taker = min(gains)
        loss, giver = max(losses)
        if taker == giver or not gain < loss:
            break
        found[taker] += 1
        found[giver] -= 1
    return found


def _difference(cost: Cost, step: int, tokens: int) -> float:
    """How much the last of ``tokens`` changes the cost of a step (negative: it lowers it)."""
    after, before = cost(step, tokens), cost(step, tokens - 1)
    return after - before if before != after else 0.0
