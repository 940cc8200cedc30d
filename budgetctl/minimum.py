"""The lower end of a thought: no close, and no end of sequence, before ``min_thinking_tokens``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from budgetctl.closing import fold_end_of_sequence, half_written_ids
from budgetctl.on_device import constant, may_hold
from budgetctl.score_edits import ban_tokens, dead_rows, unless_dead
from budgetctl.state import ThinkingState


@dataclass(frozen=True)
class Minimum:
    """What the minimum forbids at one step.

    Args:
        too_short: [B] bool, rows in a thought below their minimum; no end of sequence there.
        too_early: [B, c] bool, which of the tokens that go on closing would complete a close below it.
        least: [B] int64, the minimum in tokens.
    """

    too_short: torch.Tensor
    too_early: torch.Tensor
    least: torch.Tensor

    @classmethod
    def of(
        cls,
        state: ThinkingState,
        least: torch.Tensor,
        spent: torch.Tensor,
        ends: tuple[tuple[int, ...], ...],
        completes: torch.Tensor,
    ) -> Minimum:
        """Read from the rows.

        Args:
            state: of the rows.
            least: [B] int64, tokens before which the thought is not closed.
            spent: [B] bool, the budget is used up: a close is forced whatever the minimum.
            ends: the c token sequences that end a thought.
            completes: [B, c] bool, the next token of each completes it.
        """
        rows = state.thinking & ~spent
        # What a close of each spelling would leave of the thought: the tokens before it are no content then.
        before = constant(tuple(len(end) - 1 for end in ends), least.device)
        too_early = completes & (state.used[:, None] - before < least[:, None]) & rows[:, None]
        return cls((state.used - state.close_progress < least) & rows, too_early, least)

    def allows(self, closing_ids: torch.Tensor, forced_ids: torch.Tensor) -> torch.Tensor:
        """[B] bool: rows that a forced close may end now; its token may complete another spelling.

        Args:
            closing_ids: [B, c] int64, tokens that close, or go on closing, the thought.
            forced_ids: [B] int64, the next token of a forced close.
        """
        return ~self.too_short & ~(self.too_early & (closing_ids == forced_ids[:, None])).any(1)

    def hold(
        self,
        scores: torch.Tensor,
        input_ids: torch.Tensor,
        state: ThinkingState,
        ends: tuple[tuple[int, ...], ...],
        last: torch.Tensor,
        budgets: torch.Tensor,
        closing_ids: torch.Tensor,
        forced_ids: torch.Tensor,
        eos_ids: tuple[int, ...],
        temperature: float | torch.Tensor,
    ) -> torch.Tensor:
        """Scores [B, V] without what would end a thought too early. Where other processors have left nothing else, the
        minimum gives way, and the thought is closed rather than left without an answer.

        Args:
            scores: [B, V] logits.
            input_ids: [B, T] int64.
            state: of the rows.
            ends: the c token sequences that end a thought.
            last: [B] bool, one token of the budget is left.
            budgets: [B] int64, thinking budgets in tokens.
            closing_ids: [B, c] int64, tokens that close, or go on closing, the thought.
            forced_ids: [B] int64, the next token of a forced close.
            eos_ids: tokens that end the generation.
            temperature: of the sampling that follows, a number or [B, 1].
        """
        # The forced close goes on with what stands at the budget's end, which must not reach below the minimum.
        begun_ids, begun = half_written_ids(input_ids, state.used, ends, budgets - self.least)
        endings = constant(eos_ids, scores.device).expand(len(scores), -1)
        allowed = ban_tokens(scores, closing_ids, self.too_early)
        allowed = ban_tokens(allowed, begun_ids, begun & last[:, None])
        allowed = ban_tokens(allowed, endings, self.too_short[:, None].expand_as(endings))
        if allowed is scores:
            return allowed
        dead = dead_rows(allowed)
        if not may_hold(dead):
            return allowed
        closable = fold_end_of_sequence(scores, self.too_short, eos_ids, forced_ids, temperature)
        return unless_dead(allowed, closable, dead)
