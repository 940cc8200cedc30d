"""e1 / Adaptive Effort Control (Kleinman et al., arXiv 2510.27042): ``python -m budgetctl.training.e1``.

Each prompt names an effort r; a right answer is rewarded if its thought is no longer than r times the mean of this
question's thoughts at r = 1 (``training/rewards/effort.py``). Rollouts and advantages are GRPO's.

Questions keep the order of a draw by seed, and each is asked at r = 1 before it is asked at less: a mean has to be there
to be a share of. The paper has the mean "current"; over which rollouts it does not settle as far as we could read, and a
mean over all efforts would fall by itself.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetError, TrainingError
from budgetctl.training.budget_prompts import EFFORT, effort_sentence, with_sentence
from budgetctl.training.method import Method
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.effort import FULL, EffortReward
from budgetctl.training.script import MethodArguments, Plan, main


@dataclass
class E1Arguments(MethodArguments):
    """Options of e1."""

    efforts: list[float] = field(
        default_factory=lambda: [1.0, 0.75, 0.5, 0.25],
        metadata={"help": "Efforts that each question is asked at; 1 has to be among them."},
    )
    memory: int = field(default=64, metadata={"help": "Rollouts of a question that its mean remembers."})
    bound_full: bool = field(
        default=True, metadata={"help": "Whether rollouts at effort 1 are held to their own mean, too."}
    )

    opens_thoughts = False

    def check(self, training: Any) -> None:
        if FULL not in self.efforts or not all(0 < effort <= FULL for effort in self.efforts):
            raise BudgetError(
                f"efforts={self.efforts}: expected shares above 0 and up to 1, and 1 among them; correct them"
            )
        if self.memory < 1:
            raise TrainingError(f"memory={self.memory}: expected at least 1 rollout; raise it")
        # The order of prepare() is the order of training.
        training.shuffle_dataset = False

    def prepare(self, questions: Dataset, seed: int) -> Dataset:
        """The questions in an order drawn by ``seed``, each at all efforts, the greatest first; column ``effort``."""
        order = list(range(len(questions)))
        random.Random(seed).shuffle(order)
        rows = []
        for place in order:
            row = questions[place]
            for effort in sorted(set(self.efforts), reverse=True):
                prompt = with_sentence(row["prompt"], effort_sentence(effort))
                rows.append({**row, "prompt": prompt, "effort": effort})
        return Dataset.from_list(rows)

    def plan(
        self,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
        accuracy: AccuracyReward,
        limit: int,
    ) -> Plan:
        reward = EffortReward(accuracy, memory=self.memory, bound_full=self.bound_full)
        settings = {"trained_efforts": sorted(self.efforts), "effort_prompt": EFFORT}
        return Plan(
            Method(delimiters, limit), [reward, accuracy], [1.0, 0.0], settings, states={"effort": reward}
        )


if __name__ == "__main__":
    main(E1Arguments)
