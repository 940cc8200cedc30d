"""How many requests per second a fleet takes before its slowest requests become too slow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from budgetctl.errors import BudgetctlError
from budgetctl.simulate.fleet import Fleet
from budgetctl.simulate.outcome import Outcome
from budgetctl.simulate.policies import Policy

#: Share of the rate of full batches at which a fleet counts as idle: a limit that is missed there is missed anyway.
IDLE = 0.01
#: Requests per second beyond which no search goes.
MOST = 1e12


@dataclass(frozen=True)
class Capacity:
    """The highest rate that keeps a limit, and what the fleet does there.

    Args:
        policy: its name.
        p99: limit in seconds.
        rate: requests per second of the fleet; 0 when the limit is missed at 1 % of the load already.
        outcome: at that rate; None when it is 0.
    """

    policy: str
    p99: float
    rate: float
    outcome: Outcome | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "policy": self.policy,
            "p99": self.p99,
            "rate": self.rate,
            "outcome": None if self.outcome is None else self.outcome.as_dict(),
        }


def find_capacity(
    fleet: Fleet,
    policy: Policy,
    p99: float,
    *,
    tolerance: float = 0.02,
    progress: Callable[[], None] | None = None,
) -> Capacity:
    """The highest rate at which the 99th percentile of latency is at most ``p99`` seconds and the fleet keeps up.

    By bisection between a rate that holds and one that does not. The same requests come at each rate, closer together,
    so that the answer does not hang on the draw of each.

    Args:
        fleet: what is simulated.
        policy: what is done about long thoughts.
        p99: seconds.
        tolerance: ratio of the two rates, less 1, at which the search ends.
        progress: called after each simulation.

    Raises:
        BudgetctlError: for a limit or tolerance that is not above 0.
    """
    for name, value in {"p99": p99, "tolerance": tolerance}.items():
        if not 0 < value < math.inf:
            raise BudgetctlError(f"{name}={value!r}: expected a number above 0; correct it")

    def holds(rate: float) -> Outcome | None:
        outcome = fleet.run(policy, rate)
        if progress is not None:
            progress()
        return outcome if outcome.latency_p99 <= p99 and not outcome.saturated else None

    high = fleet.saturation(policy)
    low = IDLE * high
    best = holds(low)
    if best is None:
        return Capacity(policy.name, p99, 0.0, None)
    while (found := holds(high)) is not None and high < MOST:
        low, best, high = high, found, 2 * high
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        found = holds(middle)
        if found is None:
            high = middle
        else:
            low, best = middle, found
    return Capacity(policy.name, p99, low, best)
