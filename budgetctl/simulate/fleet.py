"""A fleet of replicas that are alike, behind a router; a sample of them is simulated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from budgetctl.errors import BudgetctlError
from budgetctl.simulate.arrivals import Kind, arrival_times, round_robin_indices
from budgetctl.simulate.lengths import Lengths
from budgetctl.simulate.outcome import Outcome, measure
from budgetctl.simulate.policies import Policy
from budgetctl.simulate.replica import Replica
from budgetctl.simulate.step_time import ReplicaShape, StepTime
from budgetctl.simulate.workload import Progress, Workload

Router = Literal["round-robin", "least-loaded"]
ROUTERS: tuple[Router, ...] = ("round-robin", "least-loaded")
#: Requests that are enough to fill the batches of one replica.
SATURATING = 1000


@dataclass(frozen=True)
class Fleet:
    """What is simulated.

    Args:
        lengths: of the requests; drawn with replacement.
        step: how long a step takes.
        shape: of each replica.
        replicas: of the fleet.
        router: ``round-robin``, or ``least-loaded`` by the number of requests that wait or run.
        arrivals: ``poisson``, ``burst`` or ``even``.
        burst: requests of a burst.
        requests: that are simulated, over all simulated replicas.
        sampled: replicas that are simulated at most. Under round robin their arrivals are exactly what they would get in
            the fleet. Under least loaded they share their part of the arrivals among themselves, which is an
            approximation: one that falls with their number, since only ties and nearly idle replicas are decided elsewhere.
        warm_up: share of the requests that are not counted.
        seed: of arrivals and lengths; the same requests come under every policy and, closer together, at every rate.
        controlled: how long a step takes under a thinking budget of budgetctl, whose controller works in it; None for as long
            as any.

    Raises:
        BudgetctlError: for values that make no sense.
    """

    lengths: Lengths
    step: StepTime
    shape: ReplicaShape
    replicas: int = 1
    router: Router = "round-robin"
    arrivals: Kind = "poisson"
    burst: int = 1
    requests: int = 4000
    sampled: int = 4
    warm_up: float = 0.2
    seed: int = 0
    controlled: StepTime | None = None

    def __post_init__(self) -> None:
        for name in ("replicas", "requests", "sampled", "burst"):
            if getattr(self, name) < 1:
                raise BudgetctlError(f"{name}={getattr(self, name)!r}: expected at least 1; correct it")
        if self.router not in ROUTERS:
            raise BudgetctlError(f"router {self.router!r}: expected one of {', '.join(ROUTERS)}; correct it")
        if not 0 <= self.warm_up < 1 or int(self.requests * self.warm_up) >= self.requests:
            raise BudgetctlError(
                f"warm_up={self.warm_up!r}: expected a share of the requests, below 1; lower it"
            )
        if not len(self.lengths):
            raise BudgetctlError("no lengths: expected at least one recorded request; give some")

    @property
    def simulated(self) -> int:
        """Replicas that are simulated."""
        return min(self.replicas, self.sampled)

    def step_under(self, policy: Policy) -> StepTime:
        """How long a step takes under the policy."""
        return self.step if self.controlled is None or policy.method != "budgetctl" else self.controlled

    def workload(self, policy: Policy, rate: float) -> Workload:
        """The requests that reach the simulated replicas at ``rate`` requests per second of the fleet; an infinite rate
        brings all of them at once."""
        when, which = (np.random.default_rng([self.seed, part]) for part in (0, 1))
        count, simulated = self.requests, self.simulated
        if rate == math.inf:
            arrival = np.zeros(count)
        elif self.router == "round-robin":
            indices = round_robin_indices(count, self.replicas, simulated)
            arrival = arrival_times(indices, rate, self.arrivals, when, self.burst)
        else:
            share = simulated / self.replicas
            burst = max(1, round(self.burst * share))
            arrival = arrival_times(np.arange(count), rate * share, self.arrivals, when, burst)
        rows = which.integers(len(self.lengths), size=count)
        thinking, answer = policy.apply(self.lengths)
        return Workload(arrival, self.lengths.prompt[rows], thinking[rows], answer[rows], policy.slots)

    def run(self, policy: Policy, rate: float, progress: Callable[[float], None] | None = None) -> Outcome:
        """Simulate one policy at ``rate`` requests per second of the fleet.

        Args:
            policy: what is done about long thoughts.
            rate: requests per second of the whole fleet.
            progress: called now and then with the share that was done since the last call.

        Raises:
            BudgetctlError: for a rate that is not above 0, or a request that no pool could hold.
        """
        workload = self.workload(policy, rate)
        state = Progress(workload)
        step = self.step_under(policy)
        replicas = [Replica(self.shape, step, workload, state) for _ in range(self.simulated)]
        told = progress or (lambda share: None)
        if self.router == "round-robin":
            for number, replica in enumerate(replicas):
                mine = range(number, len(workload), len(replicas))
                _serve(replica, workload, mine)
                told(1 / len(replicas))
        else:
            _serve_least_loaded(replicas, workload, told)
        kind = "recorded" if policy.recorded(self.lengths) else "capped"
        share = self.simulated / self.replicas
        return measure(policy.name, kind, rate, share, workload, state, replicas, self.warm_up)

    def saturation(self, policy: Policy) -> float:
        """Requests per second that the fleet finishes when all come at once: about the most that it can serve."""
        few = replace(self, requests=min(self.requests, SATURATING))
        workload = few.workload(policy, math.inf)
        state = Progress(workload)
        replica = Replica(self.shape, self.step_under(policy), workload, state)
        _serve(replica, workload, range(len(workload)))
        # With the last rows the batch thins out; the rate until three quarters have finished is that of full batches.
        finish = np.sort(state.finish)
        at = max(1, int(0.75 * len(finish)))
        return float(at / finish[at - 1]) * self.replicas


def _serve(replica: Replica, workload: Workload, requests: range) -> None:
    for request in requests:
        time = float(workload.arrival[request])
        replica.advance(time)
        replica.submit(request, time)
    replica.advance()


def _serve_least_loaded(
    replicas: list[Replica], workload: Workload, progress: Callable[[float], None]
) -> None:
    size, told = len(workload), max(1, len(workload) // 20)
    for request, time in enumerate(workload.arrival.tolist()):
        for replica in replicas:
            replica.advance(time)
        # Among equals the turn goes round.
        order = (replicas[(request + step) % len(replicas)] for step in range(len(replicas)))
        min(order, key=lambda replica: replica.load).submit(request, time)
        if request % told == told - 1:
            progress(told / size)
    for replica in replicas:
        replica.advance()
