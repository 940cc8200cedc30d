"""Pushing a thought up: where the model would close too early, it goes on with a phrase such as "Wait".

Budget forcing in its upward direction, after s1 (arXiv 2501.19393, section 3): the end of the thought is suppressed and
"Wait" is written instead, at most a given number of times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from budgetctl.checks import check_tokens, shown
from budgetctl.closing import tempered_sum
from budgetctl.errors import BudgetError
from budgetctl.score_edits import ban_tokens, force_tokens
from budgetctl.state import ThinkingState, match_lengths


@dataclass(frozen=True)
class Extension:
    """Writes ``phrase_ids`` in place of an early close, up to ``limit`` times a thought.

    Phrases that the model writes by itself count as well: how often the thought was extended is read from its tokens.

    Args:
        phrase_ids: tokens of the phrase.
        limit: how many times the phrase may stand in the thought.

    Raises:
        BudgetError: for an empty phrase, or a limit that is no positive whole number.
    """

    phrase_ids: tuple[int, ...]
    limit: int

    def __post_init__(self) -> None:
        if not self.phrase_ids:
            raise BudgetError(
                "the extension phrase has no tokens: expected some text, such as 'Wait'; give it"
            )
        if not check_tokens(self.limit, "max_extensions", "leave it unset for none"):
            raise BudgetError(
                f"max_extensions={shown(self.limit)}: expected a whole number >= 1; leave it unset for none"
            )

    def due(
        self,
        input_ids: torch.Tensor,
        state: ThinkingState,
        minimum: torch.Tensor,
        left: torch.Tensor,
    ) -> torch.Tensor:
        """[B] bool: rows in which a close would be turned into the phrase.

        A row with a minimum is extended below it, a row without one at each close, as long as the phrase and one more
        token fit and the limit is not reached.

        Args:
            input_ids: [B, T] int64.
            state: of the rows.
            minimum: [B] int64, tokens before which the thought is not closed; 0 for none.
            left: [B] int64 thinking tokens left.
        """
        written = (match_lengths(input_ids, (self.phrase_ids,), state.thought_start) > 0).sum(1)
        wanted = (minimum == 0) | (state.used < minimum)
        room = left > len(self.phrase_ids)
        return state.thinking & wanted & room & (written < self.limit) & (state.close_progress == 0)

    def apply(
        self,
        scores: torch.Tensor,
        input_ids: torch.Tensor,
        state: ThinkingState,
        rows: torch.Tensor,
        closing_ids: torch.Tensor,
        temperature: float | torch.Tensor,
    ) -> torch.Tensor:
        """Logits [B, V] in which, for ``rows`` [B], the probability of closing has gone to the phrase.

        Args:
            closing_ids: [B, c] int64, tokens that begin a close.
            temperature: of the sampling that follows, a number or [B, 1].
        """
        first = torch.full_like(state.used, self.phrase_ids[0])[:, None]
        # Spellings may share a token, whose mass counts once.
        ending = torch.zeros_like(scores, dtype=torch.bool).scatter(1, closing_ids, True)
        ending = ending.scatter(1, first, True)
        joined = tempered_sum(scores.masked_fill(~ending, -torch.inf), temperature)
        others = closing_ids != first
        turned = ban_tokens(scores, closing_ids, others).scatter(1, first, joined)
        result = torch.where(rows[:, None], turned, scores)
        for size in range(1, min(len(self.phrase_ids), input_ids.shape[1] + 1)):
            begun = rows & (state.used >= size)
            for back in range(size):
                begun = begun & (input_ids[:, -size + back] == self.phrase_ids[back])
            result = force_tokens(result, begun, torch.full_like(state.used, self.phrase_ids[size]))
        return result
