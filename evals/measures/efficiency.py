"""Accuracy and tokens in one number. Each favours something: read none without the accuracy and the tokens it is made of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

OAA_HORIZON = 1000
ACT_WEIGHTS = {"low": 0.5, "medium": 0.5, "high": 1.0}


def e3(accuracy: float, tokens: float) -> float | None:
    """A² / T, A being the accuracy in percent and T the mean completion tokens, thought and answer, planner and probes not
    (Plan-and-Budget, arXiv 2505.16122). None where T is 0: nothing was generated that efficiency could be told of."""
    return (100 * accuracy) ** 2 / tokens if tokens > 0 else None


def act_score(
    accuracies: Mapping[str, float],
    costs: Mapping[str, float],
    base_accuracy: float,
    base_cost: float,
    weights: Mapping[str, float] = ACT_WEIGHTS,
) -> float | None:
    """ThinkDial's score of a set of modes, in percent: the mean over modes of β A / A_base + (1 - β) (1 - C / C_base), β
    being 1 for the high mode and 1/2 for the others (arXiv 2508.18773).

    Args:
        accuracies: of each mode.
        costs: mean tokens of each mode, thought and answer.
        base_accuracy: of the model without a mode.
        base_cost: its mean tokens.
        weights: β of each mode.

    Returns:
        None where a mode is missing, or the base has no right answer or no tokens.
    """
    if base_accuracy <= 0 or base_cost <= 0 or not weights.keys() <= accuracies.keys():
        return None
    parts = [
        beta * accuracies[mode] / base_accuracy + (1 - beta) * (1 - costs[mode] / base_cost)
        for mode, beta in weights.items()
    ]
    return 100 * sum(parts) / len(parts)


def auc_oaa(correct: ArrayLike, thinking_tokens: ArrayLike, horizon: int = OAA_HORIZON) -> float:
    """Area under the overthinking-adjusted accuracy OAA_t, the share of questions answered right with fewer than t
    thinking tokens, for t from 0 to ``horizon``, divided by it (OptimalThinkingBench, arXiv 2508.13141).

    The integral has a closed form: a right answer counts 1 - tokens / horizon, at least 0. Without any thought it is the
    accuracy.
    """
    right, spent = np.asarray(correct, dtype=np.float64), np.asarray(thinking_tokens, dtype=np.float64)
    return float(np.mean(right * np.maximum(1 - spent / horizon, 0)))


def tokens_per_second(tokens: ArrayLike, seconds: ArrayLike) -> float | None:
    """All tokens over all seconds, [n] each; None where no time was counted."""
    spent = float(np.sum(np.asarray(seconds, dtype=np.float64)))
    return float(np.sum(np.asarray(tokens, dtype=np.float64))) / spent if spent > 0 else None
