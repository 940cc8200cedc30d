"""What a user would do instead."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.score_edits import force_tokens
from budgetctl.state import thinking_state


class HardCut(LogitsProcessor):
    """Forces the close at N thinking tokens and does nothing else: no guidance, no window, no guard of the answer.

    Args:
        delimiters: markers of the thought.
        thinking_budget: N, tokens.
        prompt_length: padded width of the prompt in tokens.
    """

    supports_continuous_batching = False

    def __init__(self, delimiters: ThinkingDelimiters, thinking_budget: int, prompt_length: int) -> None:
        self.delimiters = delimiters
        self.thinking_budget = thinking_budget
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] with the close alone where the budget is spent."""
        state = thinking_state(input_ids, self.delimiters, prompt_length=self.prompt_length)
        close = torch.tensor(self.delimiters.forced_end_ids, device=scores.device)[state.close_progress]
        spent = state.thinking & (state.used - state.close_progress >= self.thinking_budget)
        return force_tokens(scores, spent, close)
