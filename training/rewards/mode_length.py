"""ThinkDial's length reward (He et al., arXiv 2508.18773): shorter than the group is better, as much as the mode asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from budgetctl.errors import TrainingError
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.columns import column, consecutive_groups, gather_rows

#: Weight of the length reward by mode.
MODE_WEIGHTS = {"high": 0.0, "medium": 0.5, "low": 1.0}


def group_length_rewards(lengths: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """R_length of the rollouts of one prompt.

    lambda = 1/2 - (length - shortest) / (longest - shortest) within the group; a right rollout gets lambda, a wrong one
    min(0, lambda), so that brevity is no excuse. Where all are of one length there is nothing to compare: 0 for all
    (the formula is 0/0 there).

    Args:
        lengths: tokens of thought and answer together: otherwise thoughts shrink and answers grow.
        correct: whether each is right.
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    scores = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [score if right else min(0.0, score) for score, right in zip(scores, correct, strict=True)]


class ModeLengthReward:
    """alpha(mode) R_length in TRL's protocol; reads ``mode`` beside the columns of accuracy.

    The rollouts of a prompt may stand on several processes: lengths are gathered before they are compared, so each
    process has to call it. Rows of one prompt and mode stand together in a generation batch.

    Args:
        accuracy: judges the answers.
        weights: alpha by mode.
    """

    __name__ = "mode_length"

    def __init__(self, accuracy: AccuracyReward, weights: Mapping[str, float] = MODE_WEIGHTS) -> None:
        self.accuracy = accuracy
        self.weights = dict(weights)
        self.columns = (*accuracy.columns, "mode")

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """TRL's protocol.

        Raises:
            TrainingError: a mode without a weight.
        """
        parts = self.accuracy.reader.read_all(completion_ids)
        modes = column(columns, "mode", self.__name__)
        for mode in modes:
            if mode not in self.weights:
                raise TrainingError(
                    f"mode {mode!r}: expected one of {', '.join(self.weights)}; correct the column, or give it a weight"
                )
        judged = self.accuracy.judge(parts, columns)
        own = [
            ((str(prompt), mode), part.thinking_tokens + part.answer_tokens, bool(right))
            for prompt, mode, part, right in zip(prompts, modes, parts, judged, strict=True)
        ]
        rows, start = gather_rows(own)
        scores: list[float] = []
        for group in consecutive_groups([key for key, _, _ in rows]):
            members = [rows[index] for index in group]
            scores += group_length_rewards([length for _, length, _ in members], [r for _, _, r in members])
        mine = scores[start : start + len(own)]
        return [
            None if right is None else self.weights[mode] * score
            for right, mode, score in zip(judged, modes, mine, strict=True)
        ]
