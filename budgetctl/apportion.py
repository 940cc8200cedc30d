"""Whole numbers in proportion to weights that sum to a total: the method of largest remainders."""

from __future__ import annotations

import math
from collections.abc import Sequence

from budgetctl.errors import BudgetctlError


def apportion(total: int, weights: Sequence[float], floors: Sequence[int]) -> list[int]:
    """Whole numbers that sum to ``total``: each its floor, and of the rest a share by weight (largest remainders).

    Args:
        total: to share out, at least the sum of ``floors``.
        weights: not negative; all zero counts as all equal.
        floors: as many.

    Raises:
        BudgetctlError: when the floors do not fit, or for a weight that is negative or no number.
    """
    rest = total - sum(floors)
    if not weights or len(weights) != len(floors) or rest < 0 or not all(0 <= w < math.inf for w in weights):
        raise BudgetctlError(
            f"{total} to share out with floors {list(floors)} and weights {list(weights)}: expected floors that fit into "
            "the total and as many weights, none negative"
        )
    scale = max(weights)
    shares = [w / scale for w in weights] if scale > 0 else [1.0] * len(weights)
    whole = math.fsum(shares)
    exact = [rest * share / whole for share in shares]
    found = [math.floor(x) for x in exact]
    order = sorted(range(len(exact)), key=lambda i: (found[i] - exact[i], i))
    for i in range(rest - sum(found)):
        found[order[i % len(order)]] += 1
    return [floor + share for floor, share in zip(floors, found, strict=True)]
