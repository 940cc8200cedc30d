"""ThinkDial's length reward and leak penalty."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.errors import TrainingError
from budgetctl.training.completions import CompletionReader
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.leak import LeakReward, leaks
from budgetctl.training.rewards.mode_length import ModeLengthReward, group_length_rewards

Write = Callable[..., list[int]]
ROLLOUTS = st.lists(st.tuples(st.integers(1, 5000), st.booleans()), min_size=1, max_size=8)


@given(ROLLOUTS)
def test_length_rewards_within_a_group(rollouts: list[tuple[int, bool]]) -> None:
    lengths, correct = [length for length, _ in rollouts], [right for _, right in rollouts]
    rewards = group_length_rewards(lengths, correct)
    if len(set(lengths)) == 1:
        assert rewards == [0] * len(lengths)
        return
    for length, right, reward in zip(lengths, correct, rewards, strict=True):
        score = 0.5 - (length - min(lengths)) / (max(lengths) - min(lengths))
        assert reward == pytest.approx(score if right else min(0, score))
        assert -0.5 <= reward <= 0.5 * right


def test_each_mode_weighs_its_own_group(accuracy: AccuracyReward, write: Write) -> None:
    ids = [write(4), write(8), write(10), write(30), write(20, "Answer: 4"), write(10), write(4), write(9)]
    rewards = ModeLengthReward(accuracy)(
        ["q", "q", "q", "q", "q", "r", "r", "r"],
        [""] * 8,
        ids,
        answer=["3"] * 8,
        task=["embedded/dial"] * 8,
        mode=["high", "high", "low", "low", "low", "medium", "medium", "medium"],
    )
    assert rewards == pytest.approx([0, 0, 0.5, -0.5, 0, -0.25, 0.25, 0.5 * (0.5 - 5 / 6)])


def test_lengths_count_the_answer_too(accuracy: AccuracyReward, write: Write) -> None:
    columns = {"answer": ["3"] * 2, "task": ["embedded/dial"] * 2, "mode": ["low"] * 2}
    ids = [write(4, "Answer: 7777777777 3"), write(8)]
    assert ModeLengthReward(accuracy)(["q"] * 2, [""] * 2, ids, **columns) == [-0.5, 0.5]


def test_an_unknown_mode_is_named(accuracy: AccuracyReward, write: Write) -> None:
    with pytest.raises(TrainingError, match="expected one of high, medium, low"):
        ModeLengthReward(accuracy)(["q"], [""], [write(1)], answer=["3"], mode=["max"])
    with pytest.raises(TrainingError, match="needs a column 'mode'"):
        ModeLengthReward(accuracy)(["q"], [""], [write(1)], answer=["3"])


@pytest.mark.parametrize(
    ("answer", "leaking"),
    [
        ("Answer: 3", False),
        ("Wait, it is 4.", True),
        ("It is 4. However, ...", True),
        ("Let me think again: 4", True),
        ("I am awaiting it", False),
        ("the actual value", False),
        ("", False),
    ],
)
def test_transition_words_are_leaks(answer: str, leaking: bool) -> None:
    assert leaks(answer) is leaking


def test_leak_rewards(reader: CompletionReader, write: Write) -> None:
    ids = [
        write(3),
        write(3, "Wait, 4"),
        write(3, answer=None),
        write(3, "3</think>3"),
        write(3, "Hmm, 4"),
    ]
    assert LeakReward(reader)(["q"] * 5, [""] * 5, ids) == [0.5, -0.5, -0.5, -0.5, -0.5]
    assert LeakReward(reader, words=["plus"], bonus=1.0)(["q"], [""], ids[1:2]) == [1.0]
