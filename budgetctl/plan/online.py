"""What to buy from one budget when offers come one by one: the threshold of the online knapsack.

An offer is taken where its value per token is at least Psi(z) = (U e / L)^z (L / e), with z the part of the budget that is
spent, and all values per token known to lie in [L, U] (Zhou, Chakrabarty and Lukose 2008; for agents arXiv 2510.16499).
Whatever the order of the offers, it gets at least 1 / (ln(U / L) + 1) of the value that could have been had by knowing all
of them, as long as each costs little of the budget. No rule without knowledge of the future does better.

An offer here is an extension of a thought ("Wait"), a probe for its answer, or a further sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from budgetctl.errors import BudgetError


@dataclass(frozen=True)
class KnapsackThreshold:
    """Whether an offer is worth its tokens, as a function of what is spent.

    Args:
        budget: tokens, above 0.
        low: L, least value per token of an offer, above 0.
        high: U, most value per token, at least ``low``.

    Raises:
        BudgetError: for values out of these ranges.
    """

    budget: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (0 < self.budget < math.inf and 0 < self.low <= self.high < math.inf):
            raise BudgetError(
                f"budget {self.budget!r} with values per token from {self.low!r} to {self.high!r}: expected a budget above 0 "
                "and 0 < low <= high; correct them"
            )

    @property
    def ratio(self) -> float:
        """What could be had at most, over what is had at least: ln(U / L) + 1."""
        return math.log(self.high / self.low) + 1

    def price(self, spent: float) -> float:
        """Least value per token of what is bought after ``spent`` tokens."""
        part = spent / self.budget
        return math.exp(part * (math.log(self.high / self.low) + 1)) * self.low / math.e

    def buys(self, value: float, cost: float, spent: float) -> bool:
        """Whether to take an offer of ``value`` for ``cost`` tokens after ``spent``; never one that does not fit, or that
        brings nothing."""
        if not (cost >= 0 and value > 0 and spent + cost <= self.budget):
            return False
        return value >= self.price(spent) * cost
