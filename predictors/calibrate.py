"""How far predicted quantiles can be trusted, and split-conformal levels that make them so.

One position a question is taken (of a random trace, the first thinking position or a random one), so that the PIT
values P(L) under the prediction are exchangeable across questions. The level for a coverage c is then the
ceil((n + 1) c)-th smallest of n PIT values: on a further question like these the predicted quantile at that level is
at least L with probability at least c (Vovk et al. 2005; Romano et al. 2019 for quantiles).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch

from budgetctl.errors import InputFileError
from budgetctl.kernels.log_gamma_cdf import log_gamma_cdf
from budgetctl.predictors.features import ThoughtPositions
from budgetctl.predictors.gamma import GammaLengthPredictor

COVERAGES = (0.5, 0.8, 0.9)


def one_per_question(positions: ThoughtPositions, where: str = "first", seed: int = 0) -> ThoughtPositions:
    """One position a question: the ``first`` thinking position of a random trace, or ``any`` of all its positions."""
    if where == "first":
        positions = positions[positions.position == 0]
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
    _, groups = positions.question[order].unique(return_inverse=True)
    chosen = torch.full((int(groups.max()) + 1 if len(groups) else 0,), len(positions))
    chosen.scatter_reduce_(0, groups, torch.arange(len(positions)), "amin")
    return positions[order[chosen]]


@torch.no_grad()
def pit_values(predictor: GammaLengthPredictor, positions: ThoughtPositions) -> torch.Tensor:
    """[N] float64, P(L <= observed) under the state's prediction; uniform if the prediction is right."""
    concentration, rate = predictor.state_parameters(positions.hidden.to(predictor.hidden_mean))
    return (
        log_gamma_cdf(
            concentration.double(), rate.double(), positions.remaining.to(rate.device).double().log1p()
        )
        .exp()
        .cpu()
    )


def pit_histogram(values: torch.Tensor, bins: int = 10) -> list[float]:
    """Share of the PIT values in each of ``bins`` equal parts of [0, 1]; all 1 / bins if calibrated."""
    counts = torch.histc(values.float(), bins, 0.0, 1.0)
    return (counts / counts.sum().clamp(min=1)).tolist()


def conformal_levels(values: torch.Tensor, coverages: Sequence[float] = COVERAGES) -> dict[float, float]:
    """The quantile level for each coverage, from the PIT values of n calibration questions.

    Raises:
        InputFileError: when there are too few questions for a coverage (below c / (1 - c)).
    """
    ordered = values.sort().values
    count = len(ordered)
    levels = {}
    for coverage in coverages:
        # Rounded first: (n + 1) c of 0.9 and 9 is 9.000000000000002 in floating point.
        rank = math.ceil(round((count + 1) * coverage, 9))
        if rank > count:
            raise InputFileError(
                f"{count} calibration questions for a coverage of {coverage:g}: expected at least "
                f"{math.ceil(round(coverage / (1 - coverage), 9))}; collect traces of more questions"
            )
        levels[float(coverage)] = float(ordered[max(rank, 1) - 1])
    return levels


def level_for(levels: Mapping[float, float], coverage: float) -> float:
    """The level for any coverage: linear between the calibrated ones, (0, 0) and (1, 1); ``coverage`` if uncalibrated."""
    known = sorted({0.0: 0.0, **levels, 1.0: 1.0}.items())
    for (low, at_low), (high, at_high) in pairwise(known):
        if low <= coverage <= high:
            return at_low + (at_high - at_low) * (coverage - low) / (high - low)
    raise ValueError(f"coverage {coverage!r}: expected a number from 0 to 1")


@torch.no_grad()
def empirical_coverage(
    predictor: GammaLengthPredictor, positions: ThoughtPositions, levels: Mapping[float, float]
) -> dict[float, float]:
    """For each coverage the share of ``positions`` whose L is at most the predicted quantile at its level."""
    parameters = predictor.state_parameters(positions.hidden.to(predictor.hidden_mean))
    lengths = positions.remaining.to(parameters[0].device)
    return {
        coverage: float((lengths <= predictor.quantile(*parameters, level)).double().mean())
        for coverage, level in levels.items()
    }
