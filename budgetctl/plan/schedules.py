"""Decay shapes: how much each of N steps counts by its place alone.

Linear, polynomial, exponential and cosine are those of Plan-and-Budget (arXiv 2505.16122), whose code adds 0.1 to the
cosine so that the last step is not left without anything; REX (arXiv 2107.04197) and UBA (arXiv 2505.24452) are learning
rate schedules, read at i / N for step i. All are positive, and none rises.
"""

from __future__ import annotations

import math

from budgetctl.errors import BudgetError


def constant_shape(count: int) -> list[float]:
    """1 for each of ``count`` steps."""
    return [1.0] * count


def linear_shape(count: int) -> list[float]:
    """N - i for step i of N."""
    return polynomial_shape(count, 1.0)


def polynomial_shape(count: int, power: float = 2.0) -> list[float]:
    """(N - i)^p, scaled to begin at 1.

    Raises:
        BudgetError: for a power that is negative or no number.
    """
    _check("polynomial", "power", power, 0 <= power < math.inf, ">= 0")
    return [(1 - i / count) ** power for i in range(count)]


def exponential_shape(count: int, gamma: float = 0.9) -> list[float]:
    """gamma^i.

    Raises:
        BudgetError: for gamma outside (0, 1].
    """
    _check("exponential", "gamma", gamma, 0 < gamma <= 1, "in (0, 1]")
    return [gamma**i for i in range(count)]


def cosine_shape(count: int, lift: float = 0.1) -> list[float]:
    """(1 + cos(pi i / (N - 1))) / 2 + lift; 1 for a single step.

    Raises:
        BudgetError: for a lift that is not positive.
    """
    _check("cosine", "lift", lift, 0 < lift < math.inf, "> 0")
    if count == 1:
        return [1.0]
    return [0.5 * (1 + math.cos(math.pi * i / (count - 1))) + lift for i in range(count)]


def rex_shape(count: int, d: float = 0.5) -> list[float]:
    """z / ((1 - d) + d z) with z = 1 - i / N: linear for d = 0, REX for 1/2, and near-constant as d comes to 1.

    Raises:
        BudgetError: for d outside [0, 1).
    """
    _check("rex", "d", d, 0 <= d < 1, "in [0, 1)")
    left = [1 - i / count for i in range(count)]
    return [z / ((1 - d) + d * z) for z in left]


def uba_shape(count: int, phi: float = 1.0) -> list[float]:
    """2 (1 + cos(pi t)) / (2 phi + (2 - phi)(1 + cos(pi t))) with t = i / N: cosine for phi = 2, near-constant as phi comes
    to 0, steeper above 2.

    Raises:
        BudgetError: for phi that is not positive.
    """
    _check("uba", "phi", phi, 0 < phi < math.inf, "> 0")
    rise = [1 + math.cos(math.pi * i / count) for i in range(count)]
    return [2 * c / (2 * phi + (2 - phi) * c) for c in rise]


def _check(shape: str, name: str, value: float, allowed: bool, expected: str) -> None:
    if not allowed:
        raise BudgetError(f"{shape} schedule with {name}={value!r}: expected a number {expected}; correct it")
