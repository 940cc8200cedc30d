"""Correctness of the answer: the task reward that the other rewards build on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from budgetctl.training.completions import Completion, CompletionReader
from budgetctl.training.rewards.columns import column
from budgetctl.training.verifiers import is_correct


class AccuracyReward:
    """``right`` for a right answer after a closed thought, else ``wrong``; None where a row has no reference answer.

    Reads the columns ``answer``, and where they are there ``task`` and ``entry``, which choose the verifier
    (``training/verifiers.py``). An answer inside a thought that was never closed does not count. Logs the mean
    thinking tokens and the share of closed thoughts.

    Args:
        reader: takes completions apart.
        right: reward of a right answer.
        wrong: reward of any other; -1 as DAPO has it.
        answer_column: column of the reference answers.
    """

    __name__ = "accuracy"

    def __init__(
        self,
        reader: CompletionReader,
        *,
        right: float = 1.0,
        wrong: float = 0.0,
        answer_column: str = "answer",
    ) -> None:
        self.reader = reader
        self.right = right
        self.wrong = wrong
        self.answer_column = answer_column
        self.columns = (answer_column,)

    def judge(self, parts: Sequence[Completion], columns: Mapping[str, Any]) -> list[bool | None]:
        """Whether each completion is right, None without a reference.

        Raises:
            TrainingError: the dataset has no answer column.
        """
        answers = column(columns, self.answer_column, self.__name__)
        tasks = columns.get("task") or [""] * len(parts)
        entries = columns.get("entry") or [""] * len(parts)
        rows = zip(parts, answers, tasks, entries, strict=True)
        return [
            None
            if answer is None
            else part.closed and is_correct(part.answer, str(answer), task or "", entry or "")
            for part, answer, task, entry in rows
        ]

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """TRL's protocol; one reward a completion."""
        parts = self.reader.read_all(completion_ids)
        log = columns.get("log_metric")
        if log is not None and parts:
            log("thinking_tokens", sum(part.thinking_tokens for part in parts) / len(parts))
            log("closed_share", sum(part.closed for part in parts) / len(parts))
        return [
            None if right is None else self.right if right else self.wrong
            for right in self.judge(parts, columns)
        ]
