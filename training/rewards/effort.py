"""Adaptive effort control (Kleinman et al., "e1", arXiv 2510.27042): a share r of the model's current mean length.

A rollout at effort r is rewarded only if it is no longer than r times the mean length of this question's thoughts. The
mean is taken over the rollouts at r = 1: over all rollouts it would be pulled down by the short ones it asks for, and
ask for shorter ones still.
"""

from __future__ import annotations

from typing import Any

from budgetctl.errors import TrainingError
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.columns import column, gather_rows

FULL = 1.0


class RunningMeans:
    """Mean length of each question's thoughts, recent ones counting most.

    The plain mean of the first ``memory`` lengths, from then on an exponential one of weight 1 / ``memory``, because the
    policy moves.

    Args:
        memory: rollouts; None for a plain mean for ever.
    """

    def __init__(self, memory: int | None = 64) -> None:
        if memory is not None and memory < 1:
            raise TrainingError(f"memory={memory}: expected at least 1 rollout, or None for all; correct it")
        self.memory = memory
        self._seen: dict[str, tuple[int, float]] = {}

    def add(self, question: str, length: float) -> None:
        """Take in one length, in tokens."""
        count, mean = self._seen.get(question, (0, 0.0))
        count += 1
        weight = count if self.memory is None else min(count, self.memory)
        self._seen[question] = (count, mean + (length - mean) / weight)

    def get(self, question: str) -> float | None:
        """The mean in tokens, None before the first length."""
        return self._seen[question][1] if question in self._seen else None

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {question: [count, mean] for question, (count, mean) in self._seen.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._seen = {question: (int(count), float(mean)) for question, (count, mean) in state.items()}


def effort_reward(correct: bool, length: int, mean: float, effort: float) -> float:
    """R_AEC: 1 if right and length <= effort * mean, else 0; lengths in tokens."""
    return float(correct and length <= effort * mean)


class EffortReward:
    """e1's reward; reads ``effort`` and ``question_id`` beside the columns of accuracy.

    Lengths of rollouts at effort 1 are taken in before the batch is scored, those of all processes in one order, so
    that the means are the same on every process and for any number of them. Each process has to call it. A question
    without a rollout at effort 1 so far has no mean: None, no signal (put each question's rows at effort 1 first).

    Args:
        accuracy: judges the answers.
        memory: of :class:`RunningMeans`.
        bound_full: whether rollouts at effort 1 are held to their own mean, too, as the formula reads; without, they
            are judged by correctness alone and their length is free.

    The state is kept in checkpoints by ``training/checkpointed.py``.
    """

    __name__ = "effort"

    def __init__(self, accuracy: AccuracyReward, *, memory: int | None = 64, bound_full: bool = True) -> None:
        self.accuracy = accuracy
        self.bound_full = bound_full
        self.means = RunningMeans(memory)
        self.columns = (*accuracy.columns, "effort", "question_id")

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """TRL's protocol.

        Raises:
            TrainingError: an effort outside (0, 1].
        """
        parts = self.accuracy.reader.read_all(completion_ids)
        questions = [str(name) for name in column(columns, "question_id", self.__name__)]
        efforts = [float(effort) for effort in column(columns, "effort", self.__name__)]
        for effort in efforts:
            if not 0 < effort <= FULL:
                raise TrainingError(
                    f"effort {effort}: expected a share above 0 and up to 1; correct the column"
                )
        lengths = [part.thinking_tokens for part in parts]
        rows, _ = gather_rows(list(zip(questions, efforts, lengths, strict=True)))
        for question, effort, length in rows:
            if effort == FULL:
                self.means.add(question, length)
        rewards: list[float | None] = []
        judged = self.accuracy.judge(parts, columns)
        for question, effort, length, right in zip(questions, efforts, lengths, judged, strict=True):
            mean = self.means.get(question)
            if right is None or mean is None:
                rewards.append(None)
            elif effort == FULL and not self.bound_full:
                rewards.append(float(right))
            else:
                rewards.append(effort_reward(right, length, mean, effort))
        return rewards

    def state_dict(self) -> dict[str, Any]:
        """The means as JSON values."""
        return self.means.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved means."""
        self.means.load_state_dict(state)
