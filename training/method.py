"""What a training method is to the trainer: how it rolls out, and how rewards become advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.training.engine import Engine
from budgetctl.training.rollouts import Rollout, as_sampled, free
from budgetctl.training.sampler import RowSampler


@dataclass(frozen=True)
class Method:
    """Plain GRPO, and the base of the other methods.

    Rows of a prompt are contiguous and whole: N rows, over all processes, are N / group_size groups.

    Args:
        delimiters: markers of the thought.
        limit: tokens of a completion (``max_completion_length``).
    """

    delimiters: ThinkingDelimiters
    limit: int

    @property
    def subgroups(self) -> int:
        """Into how many runs of equal prompts ``open_prompts`` divides a group."""
        return 1

    @property
    def block(self) -> int:
        """Rows in a row that one process has to hold together."""
        return 1

    def open_prompts(
        self, prompts: Sequence[Tokens], places: Sequence[int], group_size: int
    ) -> tuple[list[Tokens], list[int]]:
        """Prompts as the model is to continue them, and the budget of each (0 for none).

        Args:
            prompts: one a row, through the chat template.
            places: the place of each row in its group, 0 to ``group_size - 1``.
            group_size: rows of a prompt.
        """
        return list(prompts), [0] * len(prompts)

    def rollouts(
        self,
        sampler: RowSampler,
        prompts: Sequence[Tokens],
        places: Sequence[int],
        seeds: Sequence[int],
        group_size: int,
    ) -> list[Rollout]:
        """One rollout a row, in the order of the rows."""
        opened, budgets = self.open_prompts(prompts, places, group_size)
        return free(sampler, self.delimiters, opened, seeds, self.limit, budgets)

    def engine_rollouts(
        self, engine: Engine, prompts: Sequence[Tokens], places: Sequence[int], group_size: int
    ) -> list[Rollout]:
        """The same by an engine of TRL: its own noise, and log-probabilities where it tells them."""
        opened, budgets = self.open_prompts(prompts, places, group_size)
        completions, logprobs = engine.sample(opened, group_size // self.subgroups)
        return [
            as_sampled(prompt, completion, self.delimiters, budget, known)
            for prompt, completion, budget, known in zip(opened, completions, budgets, logprobs, strict=True)
        ]

    def vllm_options(self) -> dict[str, Any]:
        """What vLLM's ``LLM`` is to be made with for :meth:`engine_rollouts`, beside what TRL gives it."""
        return {}

    def advantages(
        self,
        relative: torch.Tensor,
        rewards: torch.Tensor,
        rollouts: dict[str, torch.Tensor],
        group_size: int,
    ) -> torch.Tensor:
        """Advantages [N] of the rows, or [N, K] of their segments.

        Args:
            relative: [N] GRPO's own advantages of these rows, by TRL's ``scale_rewards``.
            rewards: [N] weighted sums of the rewards, NaN for a row that no reward function could score.
            rollouts: [N] int64 each: ``budget``, ``thinking_tokens``, ``answer_tokens``, ``sampled_tokens``.
            group_size: rows of a prompt.
        """
        return relative


def per_token(advantages: torch.Tensor, segments: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """Advantages [B, T] of tokens, exactly 0 where the model did not sample the token.

    Args:
        advantages: [B] of rows or [B, K] of segments.
        segments: [B, T] int64, the segment of each token.
        sampled: [B, T], 1 where the model sampled the token.
    """
    table = advantages[:, None].expand(-1, int(segments.max()) + 1) if advantages.ndim == 1 else advantages
    return torch.where(sampled.bool(), table.gather(1, segments), 0.0)
