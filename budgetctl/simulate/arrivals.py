"""When requests arrive at a fleet, and which of them reach the replicas that are simulated."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from budgetctl.errors import BudgetctlError

Kind = Literal["poisson", "burst", "even"]
KINDS: tuple[Kind, ...] = ("poisson", "burst", "even")


def arrival_times(
    indices: np.ndarray, rate: float, kind: Kind, noise: np.random.Generator, burst: int = 1
) -> np.ndarray:
    """Seconds at which the requests ``indices`` [N] (not decreasing, counted over the whole fleet) arrive.

    Times of requests in between are not drawn one by one: the gap over k of them is a Gamma variable of shape k. So a
    sample of 16 replicas out of 10,000 has exactly the arrivals that round robin would bring it.

    Args:
        indices: 0 for the fleet's first request.
        rate: requests per second of the whole fleet.
        kind: ``poisson``; ``burst``, where ``burst`` requests come at once and bursts are a Poisson process; ``even``.
        noise: source of the draws.
        burst: requests of a burst.

    Raises:
        BudgetctlError: for a rate that is not above 0, an unknown kind, or a burst below 1.
    """
    if not 0 < rate < math.inf:
        raise BudgetctlError(f"a rate of {rate!r} requests per second: expected a number above 0; correct it")
    if kind not in KINDS:
        raise BudgetctlError(f"arrivals {kind!r}: expected one of {', '.join(KINDS)}; correct it")
    if burst < 1:
        raise BudgetctlError(f"a burst of {burst} requests: expected at least 1; correct it")
    if kind == "even":
        return indices / rate
    size = burst if kind == "burst" else 1
    groups = indices // size
    gaps = np.diff(groups, prepend=-1)
    return np.cumsum(noise.standard_gamma(gaps)) * (size / rate)


def round_robin_indices(count: int, replicas: int, sampled: int) -> np.ndarray:
    """[count] the first requests of a fleet of ``replicas`` that go to the first ``sampled`` of them."""
    turn, place = np.divmod(np.arange(count), sampled)
    return turn * replicas + place
