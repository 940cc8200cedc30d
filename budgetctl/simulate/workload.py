"""The requests of one simulation: when each arrives and how many tokens it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetctl.errors import BudgetctlError


@dataclass(frozen=True)
class Workload:
    """Requests in the order in which they arrive; arrays [N].

    Args:
        arrival: seconds, not decreasing.
        prompt: tokens, at least 1.
        thinking: tokens before the first token of the answer, at least 0.
        answer: tokens, at least 1.
        slots: tokens that each row keeps at most (its KV budget); None for all of them.

    Raises:
        BudgetctlError: for arrays of different lengths, or values that make no sense.
    """

    arrival: np.ndarray
    prompt: np.ndarray
    thinking: np.ndarray
    answer: np.ndarray
    slots: int | None = None

    def __post_init__(self) -> None:
        sizes = {len(a) for a in (self.arrival, self.prompt, self.thinking, self.answer)}
        if len(sizes) != 1 or not len(self.arrival):
            raise BudgetctlError(
                f"arrays of {sorted(sizes)} requests: expected as many of each, at least one; correct them"
            )
        if not np.isfinite(self.arrival).all() or (np.diff(self.arrival) < 0).any():
            raise BudgetctlError("arrivals out of order: expected times that do not decrease; sort them")
        least = {"prompt": 1, "thinking": 0, "answer": 1}
        for name, bound in least.items():
            if (getattr(self, name) < bound).any():
                raise BudgetctlError(
                    f"a {name} of {int(getattr(self, name).min())} tokens: expected at least {bound}; correct it"
                )
        if self.slots is not None and self.slots < 1:
            raise BudgetctlError(f"a KV budget of {self.slots} slots: expected at least 1; raise it")

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def written(self) -> np.ndarray:
        """[N] tokens that each request generates."""
        return self.thinking + self.answer


class Progress:
    """How far each request of a workload has come; arrays [N], which the replicas fill in.

    ``finish``, ``first_token`` and ``first_answer`` are seconds since the start, nan until then; ``waited`` the seconds
    spent in the queue; ``preemptions`` counts.
    """

    def __init__(self, workload: Workload) -> None:
        size = len(workload)
        self.computed = np.zeros(size, np.int64)
        self.generated = np.zeros(size, np.int64)
        self.blocks = np.zeros(size, np.int64)
        self.finish = np.full(size, np.nan)
        self.first_token = np.full(size, np.nan)
        self.first_answer = np.full(size, np.nan)
        self.waited = np.zeros(size)
        self.since = np.zeros(size)
        self.preemptions = np.zeros(size, np.int64)
