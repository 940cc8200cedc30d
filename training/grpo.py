"""Plain GRPO (DeepSeekMath, arXiv 2402.03300) with correctness as the reward: ``python -m budgetctl.training.grpo``.

What the other methods are compared with: the same rollout layer and data, no budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.training.method import Method
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.script import MethodArguments, Plan, main


@dataclass
class GRPOArguments(MethodArguments):
    """GRPO has no options of its own."""

    opens_thoughts = False

    def check(self, training: Any) -> None:
        """Nothing beyond TRL's own checks."""

    def plan(
        self,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
        accuracy: AccuracyReward,
        limit: int,
    ) -> Plan:
        return Plan(Method(delimiters, limit), [accuracy], [1.0], {})


if __name__ == "__main__":
    main(GRPOArguments)
