"""A curve at as many tokens as something else used.

Between two settings, a user who answers a share of the questions under one and the rest under the other gets every mean
in between: accuracy at a mean number of tokens is linear between neighbours, question by question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Settings ``lower`` and ``upper`` (indices of the curve), the second for ``share`` of the questions.

    ``tokens`` is the mean that they use together, and ``inside`` whether it is what was asked for: outside the curve it is
    that of the curve's end.
    """

    lower: int
    upper: int
    share: float
    tokens: float
    inside: bool

    def of(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """The mixture of what each setting gave, [n] each."""
        first, second = np.asarray(values[self.lower], float), np.asarray(values[self.upper], float)
        return (1 - self.share) * first + self.share * second


def mixture_at(means: Sequence[float], tokens: float) -> Mixture:
    """The two neighbours that use ``tokens`` on average when mixed.

    Args:
        means: mean tokens of each setting, in any order.
        tokens: what they should use together.
    """
    order = np.argsort(np.asarray(means, dtype=np.float64), kind="stable")
    sorted_means = [float(means[at]) for at in order]
    inside = sorted_means[0] <= tokens <= sorted_means[-1]
    if tokens <= sorted_means[0] or tokens >= sorted_means[-1]:
        end = 0 if tokens <= sorted_means[0] else -1
        at = int(order[end])
        return Mixture(at, at, 0.0, sorted_means[end], inside)
    upper = next(at for at, mean in enumerate(sorted_means) if mean > tokens)
    below, above = sorted_means[upper - 1], sorted_means[upper]
    share = (tokens - below) / (above - below)
    return Mixture(int(order[upper - 1]), int(order[upper]), share, float(tokens), inside)
