"""Rows of a layer that change places, as beams do, and tokens that are taken back."""

from __future__ import annotations

import torch
from transformers.cache_utils import CacheLayerMixin

from budgetctl.errors import CacheError
from budgetctl.kernels.kv_state import SlotState


class Rows(CacheLayerMixin):
    """What :class:`~budgetctl.kv.layer.BudgetLayer` does to whole rows; its attributes are described there."""

    state: SlotState | None
    rows: int | None
    cumulative_length: int
    evicted_at: int
    queued: int
    generating: bool
    prompt_before: torch.Tensor | None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes row ``beam_idx[i]``, in place."""
        if self.state is not None:
            self._movable("reordered")
            self.state.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        if self.state is not None:
            self._movable("repeated")
            rows = torch.arange(len(self.state.keys), device=self.state.keys.device)
            self.state = self.state.select(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows ``indices`` [n] (int64, or [B] bool)."""
        if self.state is not None:
            self._movable("selected")
            rows = torch.as_tensor(indices)
            self.state = self.state.select(rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows)

    def _movable(self, how: str) -> None:
        if self.rows is not None:
            raise CacheError(
                f"rows with capacities of their own cannot be {how}: expected one capacity for all rows; give kv_budget as "
                "a number of slots, or do without beams"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the latest ``-tokens_to_remove`` tokens of every row.

        Raises:
            CacheError: for a positive number, or when a token has been evicted in those steps.
        """
        if tokens_to_remove > 0:
            raise CacheError(
                f"crop({tokens_to_remove}): expected minus the number of tokens to remove, or 0; pass a negative number"
            )
        if self.state is None:
            return
        if not self.generating and self.prompt_before is not None:
            # The latest block was a draft and no piece of the prompt.
            self.state.prompts.copy_(self.prompt_before)
            self.generating = True
        if tokens_to_remove == 0:
            return
        left = self.cumulative_length + tokens_to_remove
        if left < self.evicted_at:
            raise CacheError(
                f"crop({tokens_to_remove}) would go back to {max(left, 0)} tokens: expected at least {self.evicted_at}, as "
                "tokens have been evicted by then; raise the capacity, or do without assisted decoding"
            )
        self.state.lengths.add_(tokens_to_remove).clamp_(min=0)
        positions = self.state.head_positions()
        self.state.put_heads(
            self.state.positions, positions.masked_fill(positions >= self.state.lengths[:, :, None], -1)
        )
        self.cumulative_length, self.queued = left, 0

    def offload(self) -> None:
        raise CacheError(
            "a BudgetCache cannot be offloaded: expected its slots on the model's device; do without"
        )

    prefetch = offload
