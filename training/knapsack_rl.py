"""Knapsack RL (Li et al., arXiv 2509.25849): ``python -m budgetctl.training.knapsack_rl``.

GRPO with as many rollouts as without, but divided between the prompts of a generation batch by what they are worth
(``training/knapsack.py``): ``num_generations`` is the mean. Pass rates are those of earlier epochs, or of earlier rows
of the same question; a question that was never met gets the equal share, so that the first epoch is plain GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import TrainingError
from budgetctl.training.checks import refuse_engines
from budgetctl.training.knapsack import HIGH, LOW
from budgetctl.training.knapsack_sampler import KnapsackSampler, PassRates, group_advantages
from budgetctl.training.method import Method
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.columns import consecutive_groups, gather_rows
from budgetctl.training.script import MethodArguments, Plan, main
from budgetctl.training.trainer import BudgetGRPOTrainer


@dataclass(frozen=True)
class Knapsack(Method):
    """GRPO's rollouts; advantages over groups of uneven size.

    Args:
        groups: rows of each prompt in the generation batch at hand; the trainer fills it before it asks.
        scale: TRL's ``scale_rewards``.
    """

    groups: list[range] = field(default_factory=list)
    scale: str = "group"

    def advantages(
        self,
        relative: torch.Tensor,
        rewards: torch.Tensor,
        rollouts: dict[str, torch.Tensor],
        group_size: int,
    ) -> torch.Tensor:
        return group_advantages(rewards, self.groups, self.scale)


class KnapsackTrainer(BudgetGRPOTrainer):
    """:class:`BudgetGRPOTrainer` with groups of uneven size.

    Overrides of TRL beyond those of its base: ``_get_train_sampler``.

    Args:
        rates: pass rates by question, brought up to date after each generation batch.
        low: least rollouts of a prompt.
        high: most rollouts of a prompt.
        arguments: of the base.
    """

    method: Knapsack

    def __init__(self, *, rates: PassRates, low: int, high: int, **arguments: Any) -> None:
        self.rates, self.low, self.high = rates, low, high
        super().__init__(**arguments)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        questions = self.train_dataset if dataset is None else dataset
        rollouts = self.args.generation_batch_size
        self._order: Any = KnapsackSampler(
            list(questions["question_id"]),
            self.rates,
            prompts=rollouts // self.num_generations,
            rollouts=rollouts,
            repeats=self.num_iterations * self.args.steps_per_generation,
            low=self.low,
            high=self.high,
            shuffle=bool(self.shuffle_dataset),
            seed=self.args.seed,
        )
        return self._order

    def _calculate_rewards(self, inputs: Any, *others: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, *others)
        questions, _ = gather_rows([row["question_id"] for row in inputs])
        # A question may be asked twice in a row of the dataset; its rows are one group then, as they should be.
        self.method.groups[:] = consecutive_groups(questions)
        if self.model.training:
            (place,) = (i for i, f in enumerate(self.reward_funcs) if isinstance(f, AccuracyReward))
            rows = [
                (name, float(score > 0))
                for name, score in zip(questions, rewards[:, place].tolist(), strict=True)
                if score == score  # NaN where there is nothing to score by
            ]
            batch = self._step // (self.args.steps_per_generation * self.num_iterations)
            self.rates.record(batch, [name for name, _ in rows], [passed for _, passed in rows])
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        metrics = self._metrics["train" if self.model.training else "eval"]
        groups = self.method.groups
        metrics["knapsack/most_rollouts"].append(float(max(map(len, groups))))
        spread = [self._all_rewards[group.start : group.stop] for group in groups]
        useful = [bool((rewards != rewards[0]).any()) for rewards in spread]
        metrics["knapsack/groups_with_gradient"].append(sum(useful) / len(useful))
        return output


@dataclass
class KnapsackArguments(MethodArguments):
    """Options of Knapsack RL."""

    least_rollouts: int = field(default=LOW, metadata={"help": "Least rollouts of a prompt."})
    most_rollouts: int = field(default=HIGH, metadata={"help": "Most rollouts of a prompt."})
    memory: int = field(default=64, metadata={"help": "Rollouts of a question that its pass rate remembers."})

    opens_thoughts = False

    def check(self, training: Any) -> None:
        refuse_engines("knapsack_rl", "whose groups are of uneven size", training)
        if not 2 <= self.least_rollouts <= training.num_generations <= self.most_rollouts:
            raise TrainingError(
                f"num_generations={training.num_generations} with {self.least_rollouts} to {self.most_rollouts} rollouts a "
                "prompt: expected 2 <= least_rollouts <= num_generations <= most_rollouts; change them"
            )
        if self.memory < 1:
            raise TrainingError(f"memory={self.memory}: expected at least 1 rollout; raise it")
        self._scale = str(training.scale_rewards)

    def plan(
        self,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
        accuracy: AccuracyReward,
        limit: int,
    ) -> Plan:
        rates = PassRates(self.memory)
        trainer = partial(KnapsackTrainer, rates=rates, low=self.least_rollouts, high=self.most_rollouts)
        method = Knapsack(delimiters, limit, scale=self._scale)
        return Plan(method, [accuracy], [1.0], {}, states={"pass_rates": rates}, trainer=trainer)


if __name__ == "__main__":
    main(KnapsackArguments)
