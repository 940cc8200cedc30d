"""Rollouts a prompt by their value, under a fixed total (Li et al., "Knapsack RL", arXiv 2509.25849).

GRPO learns nothing from a prompt whose rollouts all get the same reward. A prompt with pass rate p and N rollouts is
worth P(not all equal) times how much one update is expected to raise the pass rate:

    Value(N, p) = (1 - p^N - (1 - p)^N) * p (1 - p)^2

The allocation maximizes the sum of values over the prompts of a generation batch. One more rollout adds
p (1 - p)^2 (p^N (1 - p) + (1 - p)^N p), which falls with N from N = 1 on, so giving each next rollout to the prompt that
gains most by it is exact; the paper's dynamic program finds the same sum.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from budgetctl.errors import TrainingError

LOW = 2
HIGH = 128


def information_gain(rate: float) -> float:
    """p (1 - p)^2, the expected rise of the pass rate by one update; greatest at p = 1/3."""
    return rate * (1 - rate) ** 2


def rollout_value(count: int, rate: float) -> float:
    """Value of ``count`` >= 1 rollouts of a prompt with pass rate ``rate``."""
    return (1 - rate**count - (1 - rate) ** count) * information_gain(rate)


def marginal_value(count: int, rate: float) -> float:
    """What one more rollout adds to ``count`` >= 1 rollouts; closed form, exact where the difference would cancel."""
    return (rate**count * (1 - rate) + (1 - rate) ** count * rate) * information_gain(rate)


def allocate(rates: Sequence[float | None], total: int, low: int = LOW, high: int = HIGH) -> list[int]:
    """Rollouts of each prompt, summing to ``total``.

    A prompt without an estimate gets the equal share (the paper's uniform warm-up), held to ``low`` and ``high``; the
    others divide the rest by value. Rollouts that have no value anywhere (pass rates of 0 and 1) go to unsolved prompts
    before solved ones, evenly, as the paper does with what is left over.

    Args:
        rates: estimated pass rate of each prompt, None where nothing is known.
        total: rollouts of all prompts together.
        low: least rollouts of a prompt, at least 1; 2, because one rollout has nothing to be compared with.
        high: most rollouts of a prompt.

    Raises:
        TrainingError: the bounds leave no such allocation, or a rate is outside 0 to 1.
    """
    prompts = len(rates)
    if not 1 <= low <= high or not prompts * low <= total <= prompts * high:
        raise TrainingError(
            f"{total} rollouts for {prompts} prompts of {low} to {high} each: expected {prompts * low} to "
            f"{prompts * high} with bounds of at least 1; change the bounds or the batch"
        )
    for rate in rates:
        if rate is not None and not 0 <= rate <= 1:
            raise TrainingError(
                f"pass rate {rate}: expected 0 to 1, or None when nothing is known; correct it"
            )
    counts = [low] * prompts
    left = total - prompts * low
    known = [index for index, rate in enumerate(rates) if rate is not None]
    unknown = [index for index, rate in enumerate(rates) if rate is None]
    # What the known prompts cannot take goes to the others as well.
    share = min(left, max((total // prompts - low) * len(unknown), left - len(known) * (high - low)))
    _spread(counts, unknown, share, high)
    _by_value(counts, {index: rates[index] or 0.0 for index in known}, left - share, high)
    return counts


def _spread(counts: list[int], chosen: Sequence[int], total: int, high: int) -> None:
    """Give ``total`` more rollouts to the chosen prompts, as evenly as can be."""
    while total:
        for index in chosen:
            if total and counts[index] < high:
                counts[index] += 1
                total -= 1


def _by_value(counts: list[int], rates: dict[int, float], total: int, high: int) -> None:
    """Give ``total`` more rollouts, each to the prompt that gains most; ties to unsolved prompts, then to the fewest."""

    def entry(index: int) -> tuple[float, bool, int, int]:
        rate = rates[index]
        return (-marginal_value(counts[index], rate), rate > 0, counts[index], index)

    heap = [entry(index) for index in rates if counts[index] < high]
    heapq.heapify(heap)
    for _ in range(total):
        *_, index = heap[0]
        counts[index] += 1
        if counts[index] < high:
            heapq.heapreplace(heap, entry(index))
        else:
            heapq.heappop(heap)
