"""Elastic Reasoning (arXiv 2505.05315): ``python -m budgetctl.training.elastic``.

GRPO with rollouts under two budgets, t tokens of thought and s tokens of answer, and correctness as the only reward
(the paper trains at t = s = 1024). The close that is written at the end of t tokens is outside the loss: the paper's
code leaves it in, with the log-probability of the token beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.training.checks import BATCHING, check_room, refuse_engines, refuse_transition
from budgetctl.training.engine import Engine, budget_forcing
from budgetctl.training.engine_rollouts import forced_by_engine
from budgetctl.training.method import Method
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rollouts import Rollout, budget_forced, open_thought
from budgetctl.training.sampler import RowSampler
from budgetctl.training.script import MethodArguments, Plan, main


@dataclass(frozen=True)
class Elastic(Method):
    """Advantages are GRPO's; ``thinking`` and ``answer`` are in tokens."""

    thinking: int = 0
    answer: int = 0

    def rollouts(
        self,
        sampler: RowSampler,
        prompts: Sequence[Tokens],
        places: Sequence[int],
        seeds: Sequence[int],
        group_size: int,
    ) -> list[Rollout]:
        opened = [open_thought(prompt, self.delimiters) for prompt in prompts]
        budgets = [self.thinking] * len(prompts)
        return budget_forced(sampler, self.delimiters, opened, seeds, budgets, self.answer)

    def engine_rollouts(
        self, engine: Engine, prompts: Sequence[Tokens], places: Sequence[int], group_size: int
    ) -> list[Rollout]:
        """One call: vLLM's processor writes the close."""
        opened = [open_thought(prompt, self.delimiters) for prompt in prompts]
        most = self.thinking + len(self.delimiters.forced_end_ids) + self.answer
        drawn = engine.sample(opened, group_size, limit=most, thinking_budget=self.thinking)
        return [
            forced_by_engine(
                prompt, completion, self.delimiters, engine.eos_ids, self.thinking, self.answer, logprobs
            )
            for prompt, completion, logprobs in zip(opened, *drawn, strict=True)
        ]

    def vllm_options(self) -> dict[str, Any]:
        return {"logits_processors": [budget_forcing(self.delimiters)]}


@dataclass
class ElasticArguments(MethodArguments):
    """Options of Elastic Reasoning."""

    thinking_budget: int = field(default=1024, metadata={"help": "Tokens of thought in a rollout (t)."})
    answer_budget: int = field(default=1024, metadata={"help": "Tokens of answer in a rollout (s)."})

    def check(self, training: Any) -> None:
        refuse_engines("elastic", "whose rollouts close the thought and go on", training, [BATCHING])
        refuse_transition(self.transition_phrase, training)
        check_room("thinking_budget", [self.thinking_budget], self.answer_budget, training)

    def plan(
        self,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
        accuracy: AccuracyReward,
        limit: int,
    ) -> Plan:
        method = Elastic(delimiters, limit, self.thinking_budget, self.answer_budget)
        settings = {"thinking_budget": self.thinking_budget, "answer_reserve": self.answer_budget}
        return Plan(method, [accuracy], [1.0], settings)


if __name__ == "__main__":
    main(ElasticArguments)
