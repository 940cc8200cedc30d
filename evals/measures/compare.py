"""One setting of a method against a reference method, on the same questions and noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeAlias

import numpy as np

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures.bootstrap import clustered_mean, clustered_means, group_ids
from budgetctl.evals.measures.cells import Resampling, as_json, column
from budgetctl.evals.measures.matched import mixture_at
from budgetctl.evals.measures.shape import Comparison, Matched

Key: TypeAlias = tuple[str, str, int]


def by_key(answers: Iterable[Answer]) -> dict[Key, Answer]:
    """What is paired: task, question and seed."""
    return {(one.task, one.item, one.seed): one for one in answers}


def paired_keys(*sides: Mapping[Key, Answer]) -> list[Key]:
    """Keys that all sides have, in order."""
    first, *others = sides
    return sorted(key for key in first if all(key in other for other in others))


def picked(side: Mapping[Key, Answer], keys: Sequence[Key], name: str) -> np.ndarray:
    """A number of the answers at ``keys``, float64 [n]."""
    return column([side[key] for key in keys], name)


def matched_tokens(
    answers: Sequence[Answer], curve: Sequence[Sequence[Answer]], how: Resampling
) -> Matched | None:
    """Gain in accuracy over the reference's settings mixed so that they use as many total tokens.

    On the questions and seeds that all of them answered; the interval takes the mixture as it is.
    """
    ours, theirs = by_key(answers), [by_key(one) for one in curve]
    keys = paired_keys(ours, *theirs)
    if not keys:
        return None
    tokens = float(picked(ours, keys, "tokens").mean())
    mixture = mixture_at([float(picked(one, keys, "tokens").mean()) for one in theirs], tokens)
    expected = mixture.of([picked(one, keys, "correct") for one in theirs])
    groups = group_ids(key[:2] for key in keys)
    return Matched(
        tokens=tokens,
        reference_tokens=mixture.tokens,
        inside=mixture.inside,
        reference_accuracy=float(expected.mean()),
        pairs=len(keys),
        gain=as_json(clustered_mean(picked(ours, keys, "correct") - expected, groups, **asdict(how))),
    )


def compared(answers: Sequence[Answer], curve: Sequence[Sequence[Answer]], how: Resampling) -> Comparison:
    """A comparison of the summary.

    Args:
        answers: of one method under one setting.
        curve: answers of the reference method, a list for each of its settings.
        how: intervals are made.
    """
    first = answers[0]
    same = [one for one in curve if (one[0].budget, one[0].effort) == (first.budget, first.effort)]
    ours, theirs = by_key(answers), by_key(same[0]) if same else {}
    keys = paired_keys(ours, theirs)
    gain = token_gain = None
    if keys:
        names = ("correct", "tokens")
        gains = np.stack([picked(ours, keys, n) - picked(theirs, keys, n) for n in names], axis=1)
        intervals = clustered_means(gains, group_ids(key[:2] for key in keys), **asdict(how))
        gain, token_gain = (as_json(interval) for interval in intervals)
    return Comparison(
        method=first.method,
        budget=first.budget,
        effort=first.effort,
        reference=curve[0][0].method,
        pairs=len(keys),
        gain=gain,
        token_gain=token_gain,
        matched=matched_tokens(answers, curve, how),
    )
