"""L1 / LCPO (Aggarwal and Welleck, arXiv 2503.04697): ``python -m budgetctl.training.l1``.

Each prompt names a number of tokens, drawn uniformly; the reward holds the completion to it, ``exact`` or as a
``max``imum (``training/rewards/lcpo.py``). Rollouts and advantages are GRPO's. The paper draws from 100 to 4,000 tokens
with alpha = 3e-4, and trains the maximum from the exact model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetError, TrainingError
from budgetctl.training.budget_prompts import L1_EXACT, L1_MAX, with_sentence
from budgetctl.training.method import Method
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.lcpo import ALPHA, DELTA, LcpoReward
from budgetctl.training.script import MethodArguments, Plan, main

SENTENCES = {"exact": L1_EXACT, "max": L1_MAX}


@dataclass
class L1Arguments(MethodArguments):
    """Options of L1."""

    variant: str = field(default="exact", metadata={"help": "exact or max."})
    least_tokens: int = field(default=100, metadata={"help": "Least target in tokens."})
    most_tokens: int = field(default=4000, metadata={"help": "Greatest target in tokens."})
    targets: int = field(default=1, metadata={"help": "Targets drawn for each question."})
    lcpo_alpha: float = field(default=ALPHA, metadata={"help": "Cost of a token of deviation."})
    lcpo_delta: float = field(
        default=DELTA, metadata={"help": "Of max: reward of a right answer at its target."}
    )
    count: str = field(default="total", metadata={"help": "What is counted: total or thinking tokens."})

    opens_thoughts = False

    def check(self, training: Any) -> None:
        if self.variant not in SENTENCES:
            raise TrainingError(f"variant={self.variant!r}: expected one of exact, max; correct it")
        if self.count not in ("total", "thinking"):
            raise TrainingError(f"count={self.count!r}: expected one of total, thinking; correct it")
        if self.targets < 1:
            raise TrainingError(f"targets={self.targets}: expected at least 1 for each question; raise it")
        if not self.lcpo_alpha >= 0:
            raise TrainingError(f"lcpo_alpha={self.lcpo_alpha}: expected 0 or more; correct it")
        if not 1 <= self.least_tokens <= self.most_tokens <= training.max_completion_length:
            raise BudgetError(
                f"least_tokens={self.least_tokens}, most_tokens={self.most_tokens} with max_completion_length="
                f"{training.max_completion_length}: expected 1 <= least <= most <= max_completion_length; change them"
            )

    def prepare(self, questions: Dataset, seed: int) -> Dataset:
        """Each question with its targets: a sentence in the prompt, and the column ``target_tokens``."""
        rows = []
        for row in questions:
            rng = random.Random(f"{seed}:{row['question_id']}")
            for _ in range(self.targets):
                target = rng.randint(self.least_tokens, self.most_tokens)
                prompt = with_sentence(row["prompt"], SENTENCES[self.variant].format(tokens=target))
                rows.append({**row, "prompt": prompt, "target_tokens": target})
        return Dataset.from_list(rows)

    def plan(
        self,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
        accuracy: AccuracyReward,
        limit: int,
    ) -> Plan:
        reward = LcpoReward(
            accuracy, self.variant, alpha=self.lcpo_alpha, delta=self.lcpo_delta, count=self.count
        )
        settings = {
            "trained_lengths": [self.least_tokens, self.most_tokens],
            "length_prompt": SENTENCES[self.variant],
        }
        return Plan(Method(delimiters, limit), [reward, accuracy], [1.0, 0.0], settings)


if __name__ == "__main__":
    main(L1Arguments)
