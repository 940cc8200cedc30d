"""One method over its settings: its curve, and what the curve says in single numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures import adherence, curves, efficiency
from budgetctl.evals.measures.bootstrap import (
    column_means,
    group_ids,
    percentile_interval,
    resampled_means,
)
from budgetctl.evals.measures.cells import (
    Resampling,
    as_json,
    calibrated,
    column,
    completion_tokens,
    limited,
)
from budgetctl.evals.measures.records import question_keys
from budgetctl.evals.measures.shape import Area, Cell, MeanInterval, Method, Point, SharedArea


def method_points(cells: Sequence[Cell]) -> list[Point]:
    """The curve, by mean total tokens."""
    points = [
        Point(
            budget=cell["budget"],
            effort=cell["effort"],
            tokens=cell["tokens"]["mean"],
            thinking_tokens=cell["thinking_tokens"]["mean"],
            accuracy=cell["accuracy"]["mean"],
            low=cell["accuracy"]["low"],
            high=cell["accuracy"]["high"],
        )
        for cell in cells
    ]
    return sorted(points, key=lambda point: point["tokens"])


def area_under(x: Sequence[float], y: Sequence[float]) -> Area | None:
    """Over the curve's own range; None with fewer than two abscissae."""
    linear = curves.curve_area(x, y)
    if linear is None:
        return None
    return Area(start=min(x), stop=max(x), linear=linear, log=curves.curve_area(x, y, log=True))


def shared_area(points: Sequence[Point], reference: Sequence[Point]) -> SharedArea | None:
    """Of both curves over the mean total tokens that both span; None where that is a point or nothing."""
    (x, y), (other_x, other_y) = (_tokens_accuracy(one) for one in (points, reference))
    start, stop = max(min(x), min(other_x)), min(max(x), max(other_x))
    if stop <= start:
        return None
    linear, theirs = (curves.curve_area(a, b, start, stop) for a, b in ((x, y), (other_x, other_y)))
    assert linear is not None
    assert theirs is not None
    return SharedArea(
        start=start,
        stop=stop,
        linear=linear,
        log=curves.curve_area(x, y, start, stop, log=True),
        reference_linear=theirs,
        reference_log=curves.curve_area(other_x, other_y, start, stop, log=True),
    )


def anytime(answers: Sequence[Answer], how: Resampling) -> MeanInterval | None:
    """Accuracy at a budget drawn uniformly from those of the answers; None with fewer than two."""
    some = [one for one in answers if one.budget is not None and one.effort is None]
    budgets = sorted({one.budget for one in some if one.budget is not None})
    if len(budgets) < 2:
        return None
    right, asked = column(some, "correct"), column(some, "budget")
    columns = np.where(asked[:, None] == np.array(budgets), right[:, None], np.nan)
    draws = resampled_means(columns, group_ids(question_keys(some)), how.resamples, how.seed)
    mean = curves.anytime_accuracy(column_means(columns))
    return as_json(percentile_interval(float(mean), curves.anytime_accuracy(draws), how.confidence))


def act(answers: Sequence[Answer], base: Sequence[Answer]) -> float | None:
    """ThinkDial's score of the named efforts against the base method's answers."""
    modes = {
        mode: [one for one in answers if one.effort == mode and one.budget is None]
        for mode in efficiency.ACT_WEIGHTS
    }
    if not base or not all(modes.values()):
        return None
    return efficiency.act_score(
        {mode: float(column(some, "correct").mean()) for mode, some in modes.items()},
        {mode: completion_tokens(some) for mode, some in modes.items()},
        float(column(base, "correct").mean()),
        completion_tokens(base),
    )


def measured_method(
    answers: Sequence[Answer],
    cells: Sequence[Cell],
    reference: Sequence[Point] | None,
    base: Sequence[Answer],
    how: Resampling,
) -> Method:
    """A method of the summary.

    Args:
        answers: of the method, under all its settings.
        cells: the same, measured.
        reference: curve of the reference method; None for itself, or without one.
        base: answers that ACT divides by.
        how: intervals are made.
    """
    points = method_points(cells)
    budgeted = [point for point in points if point["budget"] is not None and point["effort"] is None]
    budgets = [float(point["budget"] or 0) for point in budgeted]
    thinking = [point["thinking_tokens"] for point in points]
    accuracies = [point["accuracy"] for point in points]
    used, limits = limited(answers)
    return Method(
        points=points,
        area_budget=area_under(budgets, [point["accuracy"] for point in budgeted]) if budgets else None,
        area_tokens=area_under(*_tokens_accuracy(points)),
        area_shared=shared_area(points, reference) if reference else None,
        anytime=anytime(answers, how),
        control=curves.s1_control([point["thinking_tokens"] for point in budgeted], budgets),
        scaling=curves.s1_scaling(thinking, accuracies),
        performance=curves.s1_performance(accuracies),
        requested_used=adherence.requested_used_correlation(used, limits),
        act=act(answers, base),
        calibration=calibrated(answers),
    )


def _tokens_accuracy(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point["tokens"] for point in points], [point["accuracy"] for point in points]
