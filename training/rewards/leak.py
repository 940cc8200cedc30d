"""ThinkDial's leak penalty (He et al., arXiv 2508.18773): deliberation must not move from the thought to the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from budgetctl.training.completions import Completion, CompletionReader

#: Words that go on with a deliberation.
TRANSITIONS = ("wait", "let me think", "actually", "alternatively", "however", "hmm")
BONUS = 0.5


def leaks(answer: str, words: Sequence[str] = TRANSITIONS) -> bool:
    """Whether one of the words stands in an answer, as whole words, in any case."""
    spelled = "|".join(re.escape(word) for word in words)
    return bool(words) and re.search(rf"\b(?:{spelled})\b", answer, re.IGNORECASE) is not None


def leak_reward(part: Completion, words: Sequence[str] = TRANSITIONS, bonus: float = BONUS) -> float:
    """R_leak: ``bonus`` if nothing leaked into the answer, else ``-bonus``.

    Two cases that the paper leaves open count as leaks: a thought that was never closed (there is no answer that could
    be free of it), and a second close in the answer.
    """
    return -bonus if not part.closed or part.stray_markers or leaks(part.answer, words) else bonus


class LeakReward:
    """ThinkDial's R_leak in TRL's protocol; needs no column.

    Args:
        reader: takes completions apart.
        words: what counts as a leak.
        bonus: size of reward and penalty, 0.5 in the paper.
    """

    __name__ = "leak"
    columns: tuple[str, ...] = ()

    def __init__(
        self, reader: CompletionReader, words: Sequence[str] = TRANSITIONS, bonus: float = BONUS
    ) -> None:
        self.reader = reader
        self.words = tuple(words)
        self.bonus = bonus

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """TRL's protocol; one reward a completion."""
        return [leak_reward(part, self.words, self.bonus) for part in self.reader.read_all(completion_ids)]
