"""Soft guidance: each likely next token is weighed by the probability that the thought then ends in time.

Bayes' rule on the next token v, p(v | fits) proportional to p(v) P(L <= tokens left | v), after Budget Guidance
(arXiv 2506.13752), with three departures: the term is evaluated on the likely tokens only and the rest of the
vocabulary takes the state's own value; the closing token has a fit probability of one only where the model itself
considers closing, and is neutral elsewhere, since otherwise it would close unfinished thoughts; and the strength
falls where even the best likely continuation does not fit.

The computation stands in ``kernels.reference``, where the kernel that does the same on a GPU is measured by it.
"""

from __future__ import annotations

from budgetctl.kernels.reference import (
    CLOSE_SHARE,
    HOPELESS_FIT,
    LIKELY_SHARE,
    guidance_push,
    interval_fit,
)

__all__ = [
    "CLOSE_SHARE",
    "GREEDY_TEMPERATURE",
    "HOPELESS_FIT",
    "LIKELY_SHARE",
    "guidance_push",
    "guided_temperature",
    "interval_fit",
]

#: What guidance takes greedy decoding for. In the limit of temperature 0 Bayes' rule moves no choice, since the likeliest
#: token is then certain; at 1 it takes thoughts to be as varied as sampled ones, and changes tokens that were in time.
GREEDY_TEMPERATURE = 0.125


def guided_temperature(temperature: float | None, sampled: bool = True) -> float:
    """The temperature that guidance acts on, where decoding is by ``temperature`` (None or 0: as ``sampled`` says)."""
    if not sampled or temperature == 0:
        return GREEDY_TEMPERATURE
    return 1.0 if temperature is None else float(temperature)
