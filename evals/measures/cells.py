"""One method under one setting, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures import adherence, calibration, efficiency
from budgetctl.evals.measures.bootstrap import CONFIDENCE, RESAMPLES, clustered_means, group_ids
from budgetctl.evals.measures.records import question_keys
from budgetctl.evals.measures.shape import Calibration, Cell, Level, MeanInterval
from budgetctl.evals.metrics import Interval

AVERAGED = (
    "correct",
    "score",
    "tokens",
    "thinking_tokens",
    "answer_tokens",
    "overhead_tokens",
    "read_tokens",
    "seconds",
    "kv_bytes",
)


@dataclass(frozen=True)
class Resampling:
    """How intervals are made."""

    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    seed: int = 0


def as_json(interval: Interval) -> MeanInterval:
    """Its JSON values."""
    return cast(MeanInterval, asdict(interval))


def column(answers: Sequence[Answer], name: str) -> np.ndarray:
    """A number of each answer, float64 [n]; NaN where it is None."""
    values = [getattr(one, name) for one in answers]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def means_of(answers: Sequence[Answer], names: Sequence[str], how: Resampling) -> dict[str, MeanInterval]:
    """Means of numbers of the answers with intervals over questions; those that no answer has are left out."""
    columns = {name: column(answers, name) for name in names}
    told = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    groups = group_ids(question_keys(answers))
    intervals = clustered_means(np.stack(list(told.values()), axis=1), groups, **asdict(how))
    return {name: as_json(interval) for name, interval in zip(told, intervals, strict=True)}


def thought_limits(answers: Sequence[Answer]) -> np.ndarray:
    """The limit of each thought, tokens [n]: the budget asked for, else what an effort or a plan made; NaN without one."""
    asked, in_force = column(answers, "budget"), column(answers, "thinking_budget")
    return np.where(np.isnan(asked), in_force, asked)


def limited(answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray]:
    """Thinking tokens and limits of the answers that have a limit."""
    limits = thought_limits(answers)
    has = ~np.isnan(limits)
    return column(answers, "thinking_tokens")[has], limits[has]


def calibrated(answers: Sequence[Answer]) -> Calibration | None:
    """The predictor on these answers; None where nothing predicted, or no predicted thought ended by itself."""
    told = [one for one in answers if one.predicted_tokens is not None or one.predicted_cdf is not None]
    own = [one for one in told if one.close == "natural" and one.predicted_cdf is not None]
    if not own:
        return None
    cdf = column(own, "predicted_cdf")
    lengths = [one for one in own if one.predicted_tokens is not None]
    predicted, actual = column(lengths, "predicted_tokens"), column(lengths, "thinking_tokens")
    return Calibration(
        n=len(own),
        censored=1 - len(own) / len(told),
        pit=calibration.pit_shares(cdf),
        coverage=calibration.central_coverage(cdf),
        mae=calibration.mean_absolute_error(predicted, actual),
        predicted=float(predicted.mean()) if lengths else None,
        actual=float(actual.mean()) if lengths else None,
    )


def levels(answers: Sequence[Answer], how: Resampling) -> list[Level]:
    """By difficulty; answers without one are left out."""
    found = []
    for level in sorted({one.level for one in answers if one.level is not None}):
        some = [one for one in answers if one.level == level]
        means = means_of(some, ("correct", "thinking_tokens"), how)
        found.append(
            Level(
                level=level,
                n=len(some),
                accuracy=means["correct"],
                thinking_tokens=means["thinking_tokens"],
            )
        )
    return found


def completion_tokens(answers: Sequence[Answer]) -> float:
    """Mean tokens of thought and answer."""
    return float(np.mean(column(answers, "thinking_tokens") + column(answers, "answer_tokens")))


def measured(answers: Sequence[Answer], how: Resampling, base_tokens: float | None, by_level: bool) -> Cell:
    """A cell of the summary.

    Args:
        answers: of one method under one setting.
        how: intervals are made.
        base_tokens: mean total tokens of the method that ``token_ratio`` divides by.
        by_level: whether levels mean the same throughout.
    """
    means: dict[str, Any] = means_of(answers, AVERAGED, how)
    used, limits = limited(answers)
    right, thinking, tokens = (column(answers, name) for name in ("correct", "thinking_tokens", "tokens"))
    peaks = [one.kv_bytes for one in answers if one.kv_bytes is not None]
    return Cell(
        method=answers[0].method,
        budget=answers[0].budget,
        effort=answers[0].effort,
        n=len(answers),
        questions=len(set(question_keys(answers))),
        seeds=len({one.seed for one in answers}),
        accuracy=means["correct"],
        score=means["score"],
        tokens=means["tokens"],
        thinking_tokens=means["thinking_tokens"],
        answer_tokens=means["answer_tokens"],
        overhead_tokens=means["overhead_tokens"],
        read_tokens=means["read_tokens"],
        close=adherence.close_shares([one.close for one in answers]),
        violation=adherence.violation_rate(used, limits),
        overshoot=adherence.mean_overshoot(used, limits),
        length_error=adherence.length_error(used, limits),
        leak=float(np.mean(column(answers, "leaked"))),
        e3=efficiency.e3(float(right.mean()), completion_tokens(answers)),
        auc_oaa=efficiency.auc_oaa(right, thinking),
        token_ratio=float(tokens.mean()) / base_tokens if base_tokens else None,
        seconds=means["seconds"],
        tokens_per_second=efficiency.tokens_per_second(tokens, column(answers, "seconds")),
        kv_bytes=means.get("kv_bytes"),
        kv_bytes_peak=max(peaks, default=None),
        calibration=calibrated(answers),
        levels=levels(answers, how) if by_level else [],
    )
