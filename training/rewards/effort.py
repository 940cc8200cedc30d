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
from budgetctl.training.running_means import RunningMeans

FULL = 1.0


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
