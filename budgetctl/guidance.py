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

__all__ = ["CLOSE_SHARE", "HOPELESS_FIT", "LIKELY_SHARE", "guidance_push", "interval_fit"]
