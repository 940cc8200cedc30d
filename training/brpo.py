"""Budget Relative Policy Optimization (BRPO, AnytimeReasoner, arXiv 2505.13438): ``python -m budgetctl.training.brpo``.

A thought is cut at S budgets, and A answers are sampled after each cut. A thinking token is credited with the scores
at all budgets that contain it, each with its probability under the prior; the answers are trained apart, each against
the others after the same cut.

Where the released code (sail-sg/AnytimeReasoner) differs: its group mean V2 includes the rollout itself, which scales
the gradient; ours leaves it out. Its answers share the thought's forward pass by an attention mask of their own; here
each answer is a row with the thought as context, which any attention can run, and costs the repeated context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.errors import BudgetError
from budgetctl.training.checks import (
    BATCHING,
    check_block,
    check_budgets,
    check_divides,
    check_room,
    refuse_engines,
)
from budgetctl.training.engine import Engine
from budgetctl.training.engine_rollouts import with_logprobs
from budgetctl.training.method import Method
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rollouts import Rollout, open_thought, truncated_summaries
from budgetctl.training.sampler import RowSampler
from budgetctl.training.script import MethodArguments, Plan, main

PRIORS = ("uniform", "linear", "base")
BASELINES = ("brpo", "v1", "v2", "none")
#: Weight of a budget's score in V1 over that of the budget before it (released code).
GROWTH = 2.0


def prior_weights(prior: str, budgets: Sequence[int]) -> torch.Tensor:
    """[S] float64, the prior over budgets: uniform, linear (P_j proportional to b_j), base (all on the last).

    Raises:
        BudgetError: for an unknown prior.
    """
    if prior not in PRIORS:
        raise BudgetError(f"prior={prior!r}: expected one of {', '.join(PRIORS)}")
    sizes = torch.tensor(budgets, dtype=torch.float64)
    if prior == "linear":
        return sizes / sizes.sum()
    weights = torch.ones_like(sizes) if prior == "uniform" else (sizes == sizes[-1]).double()
    return weights / weights.sum()


def thinking_returns(scores: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """R_s = sum over j >= s of P_j score_j, the return of the tokens of segment s.

    Args:
        scores: [..., S] mean score of the answers after each cut.
        prior: [S].
    """
    return (scores * prior).flip(-1).cumsum(-1).flip(-1)


def progress_baseline(scores: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """V1 [..., S]: a mean of the same thought's scores at the budgets before s, later ones weighing more, times the
    prior's mass from s on. It depends on what precedes the segment alone, and is 0 for the first."""
    weights = GROWTH ** torch.arange(scores.shape[-1], dtype=scores.dtype, device=scores.device)
    before = (scores * weights).cumsum(-1).roll(1, -1) / weights.cumsum(0).roll(1)
    before[..., 0] = 0
    return before * thinking_returns(torch.ones_like(prior), prior)


def group_baseline(returns: torch.Tensor) -> torch.Tensor:
    """V2 [..., M, S]: mean return of the group's other thoughts; 0 for a thought alone.

    Args:
        returns: [..., M, S] returns of M thoughts of one prompt.
    """
    others = returns.shape[-2] - 1
    return (returns.sum(-2, keepdim=True) - returns) / others if others else torch.zeros_like(returns)


def thinking_advantages(scores: torch.Tensor, prior: torch.Tensor, baseline: str = "brpo") -> torch.Tensor:
    """R_s - B_s [..., M, S] with B_s = (s V1 + (S - s) V2) / S, s from 0.

    Args:
        scores: [..., M, S] mean score of the answers after each cut of M thoughts.
        prior: [S].
        baseline: "brpo", or V1 alone, V2 alone, none (the paper's ablations).

    Raises:
        BudgetError: for an unknown baseline.
    """
    if baseline not in BASELINES:
        raise BudgetError(f"baseline={baseline!r}: expected one of {', '.join(BASELINES)}")
    prior = prior.to(scores)
    returns = thinking_returns(scores, prior)
    if baseline == "none":
        return returns
    v1, v2 = progress_baseline(scores, prior), group_baseline(returns)
    count = scores.shape[-1]
    share = torch.arange(count, dtype=scores.dtype, device=scores.device) / count
    return returns - {"v1": v1, "v2": v2, "brpo": share * v1 + (1 - share) * v2}[baseline]


def summary_advantages(scores: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Score less the mean after the same cut [..., M, S, A]; cuts beyond a thought's own end are one cut.

    Where a cut has one answer only, it is compared with the answers of the other thoughts at that budget.

    Args:
        scores: [..., M, S, A].
        lengths: [..., M, S] tokens of the thought that are kept.
    """
    same = (lengths[..., :, None] == lengths[..., None, :]).to(scores.dtype)  # [..., M, S, S]
    answers = same.sum(-1) * scores.shape[-1]
    means = (same @ scores.sum(-1, keepdim=True)).squeeze(-1) / answers
    alone = group_baseline(scores.mean(-1))
    return scores - torch.where(answers > 1, means, alone)[..., None]


@dataclass(frozen=True)
class BRPO(Method):
    """Rows of a group: thought, then budget, then summary. Segments: S of thinking, and the answer.

    Args:
        budgets: tokens, ascending; the thought is sampled to the last.
        summaries: answers after each cut (A).
        answer: tokens of an answer.
        prior: name of the prior over budgets.
        baseline: of the thinking advantages.
    """

    budgets: tuple[int, ...] = ()
    summaries: int = 1
    answer: int = 0
    prior: str = "uniform"
    baseline: str = "brpo"

    @property
    def block(self) -> int:
        return len(self.budgets) * self.summaries

    def rollouts(
        self,
        sampler: RowSampler,
        prompts: Sequence[Tokens],
        places: Sequence[int],
        seeds: Sequence[int],
        group_size: int,
    ) -> list[Rollout]:
        opened = [open_thought(prompt, self.delimiters) for prompt in prompts[:: self.block]]
        return truncated_summaries(
            sampler, self.delimiters, opened, seeds, self.budgets, self.summaries, self.answer
        )

    def engine_rollouts(
        self, engine: Engine, prompts: Sequence[Tokens], places: Sequence[int], group_size: int
    ) -> list[Rollout]:
        """Two calls: the thoughts, then the answers after all cuts."""
        opened = [open_thought(prompt, self.delimiters) for prompt in prompts[:: self.block]]
        rollouts = truncated_summaries(
            engine, self.delimiters, opened, [0] * len(prompts), self.budgets, self.summaries, self.answer
        )
        thoughts, answers = engine.logprobs
        return with_logprobs(rollouts, thoughts, answers, self.block)

    def advantages(
        self,
        relative: torch.Tensor,
        rewards: torch.Tensor,
        rollouts: dict[str, torch.Tensor],
        group_size: int,
    ) -> torch.Tensor:
        shape = (-1, group_size // self.block, len(self.budgets), self.summaries)
        scores, lengths = rewards.view(shape), rollouts["thinking_tokens"].view(shape)[..., 0]
        thinking = thinking_advantages(
            scores.mean(-1), prior_weights(self.prior, self.budgets), self.baseline
        )
        summary = summary_advantages(scores, lengths).reshape(-1, 1)
        rows = thinking.flatten(0, 1).repeat_interleave(self.block, 0)
        return torch.cat([rows, summary], 1)


@dataclass
class BRPOArguments(MethodArguments):
    """Options of BRPO."""

    budgets: list[int] = field(
        default_factory=lambda: [2000, 4000, 6000, 8000],
        metadata={"help": "Budgets in tokens, ascending; the thought is sampled to the last."},
    )
    summaries: int = field(
        default=4,
        metadata={"help": "Answers after each cut; a group is thoughts x budgets x summaries rows."},
    )
    answer_budget: int = field(default=128, metadata={"help": "Tokens of an answer."})
    prior: str = field(default="uniform", metadata={"help": f"Over budgets: {', '.join(PRIORS)}."})
    baseline: str = field(
        default="brpo", metadata={"help": f"Of the thinking advantages: {', '.join(BASELINES)}."}
    )

    def check(self, training: Any) -> None:
        refuse_engines("brpo", "whose rollouts close the thought and go on", training, [BATCHING])
        check_budgets("budgets", self.budgets, training.max_completion_length)
        check_room("budgets", self.budgets, self.answer_budget, training)
        prior_weights(self.prior, self.budgets)
        thinking_advantages(torch.zeros(1, 1), torch.ones(1), self.baseline)
        block = len(self.budgets) * self.summaries
        check_divides("budgets x summaries", block, training.num_generations)
        check_block(block, training)

    def plan(
        self,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
        accuracy: AccuracyReward,
        limit: int,
    ) -> Plan:
        method = BRPO(
            delimiters,
            limit,
            tuple(self.budgets),
            self.summaries,
            self.answer_budget,
            self.prior,
            self.baseline,
        )
        settings = {"trained_budgets": list(self.budgets), "answer_reserve": self.answer_budget}
        return Plan(method, [accuracy], [1.0], settings)


if __name__ == "__main__":
    main(BRPOArguments)
