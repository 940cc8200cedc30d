"""e1's reward: bounded by a share of the running mean of full-effort thoughts, whatever the processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.errors import TrainingError
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.effort import EffortReward, effort_reward
from budgetctl.training.rewards.mode_length import ModeLengthReward
from budgetctl.training.running_means import RunningMeans

Write = Callable[..., list[int]]


@given(st.booleans(), st.integers(0, 999), st.floats(0, 999), st.floats(0.01, 1))
def test_the_formula(right: bool, length: int, mean: float, effort: float) -> None:
    assert effort_reward(right, length, mean, effort) == (1.0 if right and length <= effort * mean else 0.0)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=30), st.integers(1, 40))
def test_means_are_plain_until_memory_is_full_then_exponential(lengths: list[float], memory: int) -> None:
    means = RunningMeans(memory)
    plain = RunningMeans(None)
    for length in lengths:
        means.add("q", length)
        plain.add("q", length)
    assert plain.get("q") == pytest.approx(sum(lengths) / len(lengths))
    expected = sum(lengths[:memory]) / len(lengths[:memory])
    for length in lengths[memory:]:
        expected = (1 - 1 / memory) * expected + length / memory
    assert means.get("q") == pytest.approx(expected)
    assert means.get("other") is None


def test_only_full_effort_moves_the_mean(accuracy: AccuracyReward, write: Write) -> None:
    reward = EffortReward(accuracy)
    columns = {"answer": ["3"] * 5, "task": ["embedded/dial"] * 5, "question_id": ["a"] * 5}
    rewards = reward(
        ["q"] * 5,
        [""] * 5,
        [write(20), write(40), write(8), write(7), write(7, "4")],
        effort=[1.0, 1.0, 0.25, 0.25, 0.25],
        **columns,
    )
    assert reward.means.get("a") == 30
    assert rewards == [1, 0, 0, 1, 0]
    assert EffortReward(accuracy, bound_full=False)(
        ["q"] * 5, [""] * 5, [write(n) for n in (20, 40, 8, 7, 7)], effort=[1, 1, 0.25, 0.25, 0.25], **columns
    ) == [1, 1, 0, 1, 1]


def test_a_question_without_a_mean_gives_no_signal(accuracy: AccuracyReward, write: Write) -> None:
    reward = EffortReward(accuracy)
    options = {"answer": ["3"] * 2, "task": ["embedded/dial"] * 2, "effort": [0.5, 1.0]}
    assert reward(["q"] * 2, [""] * 2, [write(2), write(9)], question_id=["a", "b"], **options) == [None, 1]


def test_state_goes_through_json(accuracy: AccuracyReward, write: Write) -> None:
    first, second = EffortReward(accuracy, memory=2), EffortReward(accuracy, memory=2)
    options = {"answer": ["3"], "task": ["embedded/dial"], "effort": [1.0], "question_id": ["a"]}
    for length in (10, 20):
        first(["q"], [""], [write(length)], **options)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for reward in (first, second):
        reward(["q"], [""], [write(40)], **options)
    assert first.means.get("a") == second.means.get("a") == pytest.approx(27.5)


def test_mistakes_are_named(accuracy: AccuracyReward, write: Write) -> None:
    reward = EffortReward(accuracy)
    with pytest.raises(TrainingError, match=r"effort 1\.5: expected a share above 0 and up to 1"):
        reward(["q"], [""], [write(1)], answer=["3"], effort=[1.5], question_id=["a"])
    with pytest.raises(TrainingError, match="needs a column 'question_id'"):
        reward(["q"], [""], [write(1)], answer=["3"], effort=[1.0])
    with pytest.raises(TrainingError, match="at least 1 rollout"):
        RunningMeans(0)


PROCESS = """
import json, sys
from accelerate import PartialState
from budgetctl.training.completions import CompletionReader
from budgetctl.training.reasoner.tokenizer import build_tokenizer
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.effort import EffortReward
from budgetctl.training.rewards.mode_length import ModeLengthReward

rank = PartialState(cpu=True).process_index
tokenizer = build_tokenizer()
accuracy = AccuracyReward(CompletionReader(tokenizer))
effort, mode = EffortReward(accuracy, memory=3), ModeLengthReward(accuracy)
calls = [[column[3 * rank : 3 * rank + 3] for column in call] for call in json.loads(sys.argv[1])]
found = {"effort": [], "mode": []}
for ids, efforts in calls:
    options = {"answer": ["3"] * 3, "task": ["embedded/dial"] * 3, "question_id": ["a"] * 3}
    options |= {"mode": ["low"] * 3, "effort": efforts}
    found["effort"] += effort(["q"] * 3, [""] * 3, ids, **options)
    found["mode"] += mode(["q"] * 3, [""] * 3, ids, **options)
print("found " + json.dumps(found | {"state": effort.state_dict()}))
PartialState().destroy_process_group()  # or its threads may end the process with an error
"""


@pytest.mark.slow
def test_two_processes_agree_with_one(accuracy: AccuracyReward, write: Write) -> None:
    """A group that is split over two processes gets the rewards, and leaves the state, of one process."""
    calls = [
        ([write(n) for n in (5, 30, 12, 9, 25, 40)], [1.0, 1.0, 0.5, 1.0, 0.5, 1.0]),
        ([write(n) for n in (8, 4, 14, 10, 6, 11)], [0.5] * 5 + [1.0]),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps(calls)],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(sys.executable).parent,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    first, second = (json.loads(text.split("found ")[1]) for text in outputs)

    effort, mode = EffortReward(accuracy, memory=3), ModeLengthReward(accuracy)
    for number, (ids, efforts) in enumerate(calls):
        options = {"answer": ["3"] * 6, "task": ["embedded/dial"] * 6, "question_id": ["a"] * 6}
        options |= {"mode": ["low"] * 6, "effort": efforts}
        rows = slice(3 * number, 3 * number + 3)
        assert first["effort"][rows] + second["effort"][rows] == effort(["q"] * 6, [""] * 6, ids, **options)
        expected = mode(["q"] * 6, [""] * 6, ids, **options)
        assert first["mode"][rows] + second["mode"][rows] == pytest.approx(expected)
        assert len(set(expected)) > 2
    assert first["state"] == second["state"] == effort.state_dict()
