"""L1's rewards equal their formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.errors import TrainingError
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.lcpo import LcpoReward, lcpo_exact, lcpo_max

TOKENS = st.integers(0, 8000)


@given(st.booleans(), TOKENS, TOKENS)
def test_exact(right: bool, target: int, length: int) -> None:
    assert lcpo_exact(right, target, length) == pytest.approx(right - 3e-4 * abs(target - length))
    assert lcpo_exact(right, target, target) == right >= lcpo_exact(right, target, length)


@given(st.booleans(), TOKENS, TOKENS)
def test_max(right: bool, target: int, length: int) -> None:
    reward = lcpo_max(right, target, length)
    inner = 3e-4 * (target - length) + 0.5
    assert reward == pytest.approx((0 if inner < 0 else 1 if inner > 1 else inner) * right)
    # A wrong answer earns nothing; a right one within its target at least half.
    assert reward <= right
    if right and length <= target:
        assert reward >= 0.5


def test_the_reward_reads_its_target(accuracy: AccuracyReward, write: Callable[..., list[int]]) -> None:
    ids = [write(10), write(10), write(10, "Answer: 4")]
    total = len(ids[0])
    columns = {"answer": ["3"] * 3, "task": ["embedded/dial"] * 3, "target_tokens": [total, 10, total + 20]}
    logged: dict[str, float] = {}
    exact = LcpoReward(accuracy, "exact", alpha=0.01)
    assert exact(["q"] * 3, [""] * 3, ids, **columns, log_metric=logged.__setitem__) == pytest.approx(
        [1, 1 - 0.01 * (total - 10), -0.2]
    )
    deviations = [0, (total - 10) / 10, 20 / (total + 20)]
    assert logged["length_deviation"] == pytest.approx(sum(deviations) / 3)
    thinking = LcpoReward(accuracy, "max", alpha=0.01, count="thinking")
    assert thinking(["q"] * 3, [""] * 3, ids, **columns) == pytest.approx([0.5 + 0.01 * (total - 10), 0.5, 0])


def test_mistakes_are_named(accuracy: AccuracyReward, write: Callable[..., list[int]]) -> None:
    with pytest.raises(TrainingError, match="expected one of exact, max"):
        LcpoReward(accuracy, "min")
    with pytest.raises(TrainingError, match="expected 0 or more"):
        LcpoReward(accuracy, alpha=-1)
    with pytest.raises(TrainingError, match="needs a column 'target_tokens'"):
        LcpoReward(accuracy)(["q"], [""], [write(1)], answer=["3"])
    unscorable = LcpoReward(accuracy)(["q"], [""], [write(1)], answer=[None], target_tokens=[5])
    assert unscorable == [None]
