"""ThinkDial's reinforcement learning (He et al., arXiv 2508.18773): ``python -m budgetctl.training.thinkdial_rl``.

After the mode data (``budgetctl.training.mode_data``, ``budgetctl.training.sft``) two runs of this script:

* ``--phase 1``: all prompts in the mode high, correctness as the reward (95 steps in the paper);
* ``--phase 2``, from the model of phase 1: each question in all modes, correctness + alpha(mode) R_length + R_leak (40
  steps), with alpha = 0, 1/2, 1 for high, medium and low. Without the leak penalty answers grow while thoughts shrink.

Rollouts and advantages are GRPO's; the paper's DAPO is TRL's ``loss_type: dapo``, which is its default. The paper's task
reward is not given; here it is 1 for right and ``wrong_reward`` for wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import TrainingError
from budgetctl.training.budget_prompts import MODES, with_system
from budgetctl.training.method import Method
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.leak import BONUS, TRANSITIONS, LeakReward
from budgetctl.training.rewards.mode_length import MODE_WEIGHTS, ModeLengthReward
from budgetctl.training.script import MethodArguments, Plan, main


@dataclass
class ThinkDialArguments(MethodArguments):
    """Options of ThinkDial."""

    phase: int = field(default=2, metadata={"help": "1 for the mode high alone, 2 for all modes."})
    medium_weight: float = field(default=MODE_WEIGHTS["medium"], metadata={"help": "alpha of medium."})
    low_weight: float = field(default=MODE_WEIGHTS["low"], metadata={"help": "alpha of low."})
    leak_bonus: float = field(default=BONUS, metadata={"help": "Size of the leak reward and penalty."})
    transitions: list[str] = field(
        default_factory=lambda: list(TRANSITIONS), metadata={"help": "Words that are leaks in an answer."}
    )
    wrong_reward: float = field(default=0.0, metadata={"help": "Task reward of a wrong answer."})

    opens_thoughts = False

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes of the phase."""
        return ("high",) if self.phase == 1 else tuple(MODES)

    def check(self, training: Any) -> None:
        if self.phase not in (1, 2):
            raise TrainingError(f"phase={self.phase}: expected 1 or 2; correct it")
        if self.leak_bonus < 0 or self.medium_weight < 0 or self.low_weight < 0:
            raise TrainingError(
                f"medium_weight={self.medium_weight}, low_weight={self.low_weight}, leak_bonus={self.leak_bonus}: "
                "expected 0 or more; correct them"
            )

    def prepare(self, questions: Dataset, seed: int) -> Dataset:
        """Each question in the modes of the phase: a system prompt, and the column ``mode``."""
        return Dataset.from_list(
            [
                {**row, "prompt": with_system(row["prompt"], MODES[mode].system), "mode": mode}
                for row in questions
                for mode in self.modes
            ]
        )

    def plan(
        self,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
        accuracy: AccuracyReward,
        limit: int,
    ) -> Plan:
        accuracy.wrong = self.wrong_reward
        settings = {"mode_prompts": {mode: MODES[mode].system for mode in self.modes}}
        method = Method(delimiters, limit)
        if self.phase == 1:
            return Plan(method, [accuracy], [1.0], settings)
        weights = {"high": MODE_WEIGHTS["high"], "medium": self.medium_weight, "low": self.low_weight}
        rewards = [
            accuracy,
            ModeLengthReward(accuracy, weights),
            LeakReward(accuracy.reader, self.transitions, self.leak_bonus),
        ]
        return Plan(method, rewards, [1.0, 1.0, 1.0], settings)


if __name__ == "__main__":
    main(ThinkDialArguments)
