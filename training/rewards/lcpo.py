"""Length-controlled policy optimization (Aggarwal and Welleck, "L1", arXiv 2503.04697): exact and maximum.

The prompt names a length in tokens and the reward holds the completion to it. The reward takes the place of the task
reward, which is inside it.
"""

from __future__ import annotations

from typing import Any

from budgetctl.errors import TrainingError
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.columns import column

ALPHA = 3e-4
DELTA = 0.5


def lcpo_exact(correct: bool, target: int, length: int, alpha: float = ALPHA) -> float:
    """L1-Exact, I(right) - alpha |target - length|; lengths in tokens."""
    return float(correct) - alpha * abs(target - length)


def lcpo_max(correct: bool, target: int, length: int, alpha: float = ALPHA, delta: float = DELTA) -> float:
    """L1-Max, I(right) clip(alpha (target - length) + delta, 0, 1); lengths in tokens.

    ``delta`` keeps a right answer slightly over the target above a wrong one.
    """
    return float(correct) * min(max(alpha * (target - length) + delta, 0.0), 1.0)


class LcpoReward:
    """L1's reward; reads ``target_tokens`` beside the columns of accuracy.

    Args:
        accuracy: judges the answers.
        variant: ``exact`` or ``max``.
        alpha: cost of a token of deviation; the paper's 3e-4 is made for targets of 100 to 4,000 tokens, and the
            embedded reasoner's thoughts of some hundred tokens need more.
        delta: of ``max``.
        count: ``total`` for all tokens of the completion, as in the paper, or ``thinking``.

    Raises:
        TrainingError: an unknown variant or count, or a negative alpha.
    """

    def __init__(
        self,
        accuracy: AccuracyReward,
        variant: str = "exact",
        *,
        alpha: float = ALPHA,
        delta: float = DELTA,
        count: str = "total",
    ) -> None:
        for name, given, known in (
            ("variant", variant, ("exact", "max")),
            ("count", count, ("total", "thinking")),
        ):
            if given not in known:
                raise TrainingError(f"{name}={given!r} of L1: expected one of {', '.join(known)}; correct it")
        if not alpha >= 0:
            raise TrainingError(f"alpha={alpha} of L1: expected 0 or more; correct it")
        self.accuracy = accuracy
        self.variant = variant
        self.alpha = alpha
        self.delta = delta
        self.count = count
        self.columns = (*accuracy.columns, "target_tokens")
        self.__name__ = f"lcpo_{variant}"

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """TRL's protocol; logs the mean relative deviation from the target."""
        parts = self.accuracy.reader.read_all(completion_ids)
        targets = [int(target) for target in column(columns, "target_tokens", self.__name__)]
        lengths = [part.total_tokens if self.count == "total" else part.thinking_tokens for part in parts]
        log = columns.get("log_metric")
        if log is not None and parts:
            pairs = zip(targets, lengths, strict=True)
            log("length_deviation", sum(abs(t - n) / max(t, 1) for t, n in pairs) / len(parts))
        rewards: list[float | None] = []
        for right, target, length in zip(self.accuracy.judge(parts, columns), targets, lengths, strict=True):
            if right is None:
                rewards.append(None)
            elif self.variant == "exact":
                rewards.append(lcpo_exact(right, target, length, self.alpha))
            else:
                rewards.append(lcpo_max(right, target, length, self.alpha, self.delta))
        return rewards
