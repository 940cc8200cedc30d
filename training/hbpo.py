"""Hierarchical Budget Policy Optimization (HBPO, arXiv 2507.15844): ``python -m budgetctl.training.hbpo``.

The rollouts of a prompt are divided into subgroups, and each thought is opened with a sentence that names its
subgroup's budget. A right answer is worth more under a small budget, and less the further it goes past its budget.

Where the released code (ZJU-REAL/HBPO) differs, the paper is followed:

* the intra-subgroup advantage is added once; the code adds it twice;
* a right answer within its budget gets the budget's own value f2 (equation 1); the code takes min(f1, f2), which is
  slightly less for answers far below their budget;
* a wrong or unclosed answer gets 0; the code gives -1 to one without a close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.errors import BudgetError
from budgetctl.spelling import encode
from budgetctl.training.checks import check_budgets, check_divides
from budgetctl.training.method import Method
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.columns import column
from budgetctl.training.rollouts import open_thought
from budgetctl.training.script import MethodArguments, Plan, main

#: The paper's budget prompt; the released code writes it without the article's "within".
OPENING = "I will answer the question within {budget} tokens.\n"
#: Weight of the cosine in the reward (beta); the paper leaves it open, the released code has 4.
SCALE = 4.0


def budget_value(budgets: torch.Tensor, limit: int, scale: float = SCALE) -> torch.Tensor:
    """f2 (equation 3): what a right answer within its budget is worth, ``scale * cos(pi b / (2 limit))``.

    Args:
        budgets: budgets in tokens, any shape; ``limit`` is the longest completion in tokens.
    """
    return scale * torch.cos(torch.pi * budgets / (2 * limit))


def budget_reward(
    correct: torch.Tensor, lengths: torch.Tensor, budgets: torch.Tensor, limit: int, scale: float = SCALE
) -> torch.Tensor:
    """Equation 1: f2 within the budget, ``f1 = scale * cos(pi n / (2 limit)) - |n - b| / limit`` beyond it, 0 for wrong
    answers and for those of more than ``limit`` tokens.

    Args:
        correct: [N] bool.
        lengths: [N] sampled tokens n of thought and answer.
        budgets: [N] budgets b in tokens.
    """
    beyond = budget_value(lengths, limit, scale) - (lengths - budgets).abs() / limit
    value = torch.where(lengths > budgets, beyond, budget_value(budgets, limit, scale))
    return torch.where(correct & (lengths <= limit), value, 0.0)


def intra_advantages(rewards: torch.Tensor, values: torch.Tensor, subgroup_size: int) -> torch.Tensor:
    """Intra-subgroup advantages [N]: mean reward of the row's subgroup less the value of its budget (Algorithm 1).

    Args:
        rewards: [N], subgroups contiguous.
        values: [N] :func:`budget_value` of each row's budget.
        subgroup_size: rows of a subgroup.
    """
    means = rewards.view(-1, subgroup_size).mean(1)
    return means.repeat_interleave(subgroup_size) - values


@dataclass(frozen=True)
class HBPO(Method):
    """Subgroups of equal size in ascending order of budget; advantage = GRPO's over the group (inter) + intra.

    With one subgroup there is no hierarchy, and the intra part, the same for all rows of a group, is left out: what
    remains is GRPO.

    Args:
        budgets: tokens, ascending.
        openings: what the thought is opened with under each budget.
        scale: of the reward's cosine.
        intra_weight: factor of the intra part; the paper has 1.
    """

    budgets: tuple[int, ...] = ()
    openings: tuple[Tokens, ...] = ()
    scale: float = SCALE
    intra_weight: float = 1.0

    @property
    def subgroups(self) -> int:
        return len(self.budgets)

    def open_prompts(
        self, prompts: Sequence[Tokens], places: Sequence[int], group_size: int
    ) -> tuple[list[Tokens], list[int]]:
        which = [place * self.subgroups // group_size for place in places]
        opened = [
            (*open_thought(prompt, self.delimiters), *self.openings[i])
            for prompt, i in zip(prompts, which, strict=True)
        ]
        return opened, [self.budgets[i] for i in which]

    def advantages(
        self,
        relative: torch.Tensor,
        rewards: torch.Tensor,
        rollouts: dict[str, torch.Tensor],
        group_size: int,
    ) -> torch.Tensor:
        if self.subgroups == 1:
            return relative
        values = budget_value(rollouts["budget"], self.limit, self.scale)
        return relative + self.intra_weight * intra_advantages(rewards, values, group_size // self.subgroups)


class BudgetReward:
    """TRL reward function: :func:`budget_reward` of the answer's correctness and the rollout's length."""

    __name__ = "budget_reward"

    def __init__(self, accuracy: AccuracyReward, limit: int, scale: float = SCALE) -> None:
        self.accuracy, self.limit, self.scale = accuracy, limit, scale
        self.columns = accuracy.columns

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """TRL's protocol; reads ``budget`` and ``sampled_tokens`` of the rollouts beside the columns of accuracy."""
        judged = self.accuracy.judge(self.accuracy.reader.read_all(completion_ids), columns)
        rewards = budget_reward(
            torch.tensor([bool(right) for right in judged]),
            torch.tensor(column(columns, "sampled_tokens", self.__name__)),
            torch.tensor(column(columns, "budget", self.__name__)),
            self.limit,
            self.scale,
        )
        return [None if right is None else r for right, r in zip(judged, rewards.tolist(), strict=True)]


@dataclass
class HBPOArguments(MethodArguments):
    """Options of HBPO."""

    budgets: list[int] = field(
        default_factory=lambda: [512, 1024, 2048, 2560],
        metadata={"help": "Budgets in tokens, ascending, one a subgroup; the group is divided equally."},
    )
    opening: str = field(
        default=OPENING,
        metadata={"help": "What opens the thought; {budget} is replaced by the budget."},
    )
    reward_scale: float = field(default=SCALE, metadata={"help": "Scale of the reward's cosine (beta)."})
    intra_weight: float = field(default=1.0, metadata={"help": "Factor of the intra-subgroup advantage."})

    def check(self, training: Any) -> None:
        check_budgets("budgets", self.budgets, training.max_completion_length)
        if self.budgets[-1] == training.max_completion_length:
            raise BudgetError(
                f"budgets={self.budgets} with max_completion_length={training.max_completion_length}: a right answer "
                "under a budget of the whole length is worth 0 (equation 3); raise max_completion_length"
            )
        check_divides("budgets", len(self.budgets), training.num_generations)
        if "{budget}" not in self.opening:
            raise BudgetError(
                f"opening={self.opening!r}: expected {{budget}} in it; write where the budget goes"
            )

    def plan(
        self,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
        accuracy: AccuracyReward,
        limit: int,
    ) -> Plan:
        openings = tuple(encode(tokenizer, self.opening.format(budget=b)) for b in self.budgets)
        method = HBPO(delimiters, limit, tuple(self.budgets), openings, self.reward_scale, self.intra_weight)
        reward = BudgetReward(accuracy, limit, self.reward_scale)
        return Plan(
            method,
            [reward, accuracy],
            [1.0, 0.0],
            {"trained_budgets": list(self.budgets), "budget_opening": self.opening},
        )


if __name__ == "__main__":
    main(HBPOArguments)
