"""What every allocator shares: its arguments checked, and shares in proportion between a floor and a cap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

from budgetctl.apportion import apportion
from budgetctl.budget import check_tokens
from budgetctl.errors import BudgetError

#: A floor or cap: one for all steps, or one a step.
Bound = int | Sequence[int] | None


class Problem(NamedTuple):
    """A total to share out, checked: as many floors and caps (tokens) as there are weights."""

    weights: list[float]
    total: int
    floors: list[int]
    caps: list[int]


def check_problem(weights: Sequence[float], total: int, floor: Bound = 0, cap: Bound = None) -> Problem:
    """The arguments of an allocator, one floor and one cap a step.

    Raises:
        BudgetError: for weights that are negative, no numbers, or all zero; for bounds that are no whole numbers or leave
            no way to give out exactly ``total``.
    """
    given = list(weights)
    numbers = all(isinstance(w, Real) and not isinstance(w, bool) for w in given)
    if not given or not numbers or not all(0 <= float(w) < math.inf for w in given) or not any(given):
        raise BudgetError(
            f"weights {given!r}: expected at least one number, none negative and not all zero; give each step a weight"
        )
    count = len(given)
    whole = _whole(total, "total", 1)[0]
    floors = _whole(floor, "floor", count)
    caps = [whole] * count if cap is None else [min(c, whole) for c in _whole(cap, "cap", count)]
    if any(low > high for low, high in zip(floors, caps, strict=True)) or not (
        sum(floors) <= whole <= sum(caps)
    ):
        raise BudgetError(
            f"{whole} tokens for {count} steps with floor {floor!r} and cap {cap!r}: expected floors that sum to at most "
            "the total and caps that sum to at least that; lower the floor, raise the cap, or change the total"
        )
    return Problem([float(w) for w in given], whole, floors, caps)


def _whole(value: object, name: str, count: int) -> list[int]:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count
    advice = "give one for all steps or one a step"
    found = [number for v in values if (number := check_tokens(v, name, advice)) is not None]
    if len(found) != count:
        raise BudgetError(f"{name}={value!r} for {count} steps: expected whole numbers >= 0; {advice}")
    return found


def proportional(problem: Problem) -> list[int]:
    """Whole tokens in proportion to the weights, within the bounds; they sum to the total.

    The exact shares are clamp(s w, floor, cap) with the one s at which they sum to the total; whole numbers follow by
    largest remainders. A floor takes nothing from a step that has its fair share anyway.
    """
    return whole_shares(problem.total, clamped(problem), problem.caps)


def clamped(problem: Problem) -> list[float]:
    """The exact shares of :func:`proportional`."""
    weights, total, floors, caps = problem
    scale = max(weights)
    weights = [w / scale for w in weights]
    # The sum is a rising line in s with a corner where a step meets a bound: find the piece that holds the total.
    corners = sorted(
        {bound / w for w, *ends in zip(weights, floors, caps, strict=True) if w > 0 for bound in ends}
    )

    def at(s: float) -> list[float]:
        return [
            min(max(s * w, low), high) if w > 0 else float(low)
            for w, low, high in zip(weights, floors, caps, strict=True)
        ]

    below = max((s for s in corners if math.fsum(at(s)) <= total), default=0.0)
    above = min((s for s in corners if s > below), default=below)
    middle = below + (above - below) / 2
    found = at(below)
    missing = total - math.fsum(found)
    slope = math.fsum(
        w for w, low, high in zip(weights, floors, caps, strict=True) if low < middle * w < high
    )
    if missing > 0 and slope > 0:
        found = at(min(below + missing / slope, above))
        missing = total - math.fsum(found)
    if missing > 0.5:  # every step with a weight is at its cap: the rest goes to those without
        rest = Problem([1.0] * len(weights), total, [math.floor(x) for x in found], caps)
        return clamped(rest)
    return found


def whole_shares(total: int, exact: Sequence[float], caps: Sequence[int]) -> list[int]:
    """``exact`` shares, which sum to ``total``, as whole numbers of the same sum, none above its cap."""
    lows = [min(math.floor(x + 1e-9), cap) for x, cap in zip(exact, caps, strict=True)]
    parts = [max(x - low, 0.0) if low < cap else 0.0 for x, low, cap in zip(exact, lows, caps, strict=True)]
    surplus = sum(lows) - total
    if surplus > 0:  # rounding noise alone
        for i in sorted(range(len(lows)), key=lambda i: exact[i] - lows[i])[:surplus]:
            lows[i] -= 1
        return lows
    return apportion(total, parts, lows)
