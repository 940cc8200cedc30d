"""A grammar beside the budget: it binds the answer and leaves the thought alone, and no row is left without a token."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor

from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetctlError
from budgetctl.state import thinking_state


class KeepAlive(LogitsProcessor):
    """Stands after the user's processors: where they have banned every token that the controller allows, as a grammar
    does that knows nothing of thoughts, the controller's own scores of that row are taken."""

    supports_continuous_batching = False

    def __init__(self, controller: BudgetController) -> None:
        self._controller = controller
        controller.keeps_latest = True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] with at least one finite value a row."""
        own = self._controller.latest
        if own is None or own.shape != scores.shape:
            return scores
        dead = ~(scores > -torch.inf).any(1, keepdim=True)
        return torch.where(dead, own, scores)


class StructuredAnswer(LogitsProcessor):
    """Holds the answer to a grammar compiled by ``xgrammar``; the thought is free text.

    A function of the prefix: the grammar is matched against the tokens after the thought's close, which are read from
    the row; matchers are kept by row and used again only where the row has grown from what they have seen. Like
    ``xgrammar``'s own processor it matches on the host, one row after the other.

    Pass it to ``generate`` in ``logits_processor`` on a model with budgetctl installed, or after a
    ``BudgetController``.

    The grammar begins right after the close, so it also keeps the model from blank lines there. A prefix that is not of
    the grammar (a draft of assisted decoding that will be rejected) is left alone.

    Args:
        compiled_grammar: an ``xgrammar.CompiledGrammar`` for all rows.
        delimiters: markers of the thought (``installation.delimiters``).
        prompt_length: padded width of the prompt in tokens; derived from the chat template when None.

    Raises:
        BudgetctlError: when xgrammar is not installed.
    """

    supports_continuous_batching = False

    def __init__(
        self, compiled_grammar: Any, delimiters: ThinkingDelimiters, *, prompt_length: int | None = None
    ) -> None:
        try:
            import xgrammar
        except ImportError:
            raise BudgetctlError(
                "a structured answer needs xgrammar, which is not installed: expected the package; "
                "pip install xgrammar"
            ) from None
        self._xgrammar = xgrammar
        self._compiled = compiled_grammar
        self._delimiters = delimiters
        self._prompt_length = prompt_length
        self._matchers: dict[int, tuple[list[int], Any]] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] that allow the grammar's tokens alone in the rows [B, T] that are past their thought."""
        state = thinking_state(input_ids, self._delimiters, prompt_length=self._prompt_length)
        lengths = torch.where(state.closed & ~state.finished, state.answer_tokens, -1).tolist()
        if max(lengths) < 0:
            return scores
        known = min(scores.shape[1], self._compiled.tokenizer_info.vocab_size)
        mask = self._xgrammar.allocate_token_bitmask(len(lengths), known)
        bound = torch.zeros(len(lengths), dtype=torch.bool)
        for row, length in enumerate(lengths):
            if length >= 0:
                matcher = self._matcher(row, input_ids[row, input_ids.shape[1] - length :].tolist())
                if matcher is not None:
                    matcher.fill_next_token_bitmask(mask, row)
                    bound[row] = True
        allowed = torch.full(scores.shape, -torch.inf)
        allowed[:, :known] = 0.0
        self._xgrammar.apply_token_bitmask_inplace(allowed[:, :known], mask, vocab_size=known)
        banned = bound[:, None] & (allowed < 0)
        return scores.masked_fill(banned.to(scores.device), -torch.inf)

    def _matcher(self, row: int, answer: list[int]) -> Any:
        """The grammar's matcher after ``answer``, None where the answer is not of the grammar."""
        seen, matcher = self._matchers.get(row, ([], None))
        if matcher is None or answer[: len(seen)] != seen:
            seen, matcher = [], self._xgrammar.GrammarMatcher(self._compiled)
        for token in answer[len(seen) :]:
            if matcher.is_terminated() or not matcher.accept_token(token):
                self._matchers.pop(row, None)
                return None
        self._matchers[row] = (answer, matcher)
        return None if matcher.is_terminated() else matcher
