"""One layer of a :class:`~budgetctl.kv.cache.BudgetCache`: transformers' side of the slots."""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from budgetctl.errors import CacheError
from budgetctl.kernels.kv_decode import decode_step
from budgetctl.kernels.kv_state import Rule, SlotState
from budgetctl.kv.blocks import attend_with_slots, enter
from budgetctl.kv.slots import Slots


class BudgetLayer(Slots):
    """Slots of one layer, and attention over them.

    ``update`` only hands keys and values on, with a note on which layer they belong to; ``attend``, called by the
    attention function ``budget_kv``, stores them and attends. Between the two the layer is waiting, and an ``update`` of
    a waiting layer means that another attention function has been at work.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as they came, for :meth:`attend`.

        Args:
            key_states: [B, H, q, D], rotated.
            value_states: [B, H, q, E].

        Raises:
            CacheError: when the model attends by another function than ``budget_kv``, or the batch has changed.
        """
        if self.waiting:
            raise CacheError(
                "keys of the step before never reached the budget's attention: expected attn_implementation='budget_kv'; "
                "call model.set_attn_implementation('budget_kv') before generating with a BudgetCache"
            )
        if self._state is None:
            self.lazy_initialization(key_states, value_states)
        self.check_batch(key_states.shape[0], self.batch)
        self.waiting = True
        key_states.budget_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """Store the new tokens and attend.

        Args:
            module: the attention module.
            query: [B, G H, q, D].
            key: [B, H, q, D].
            value: [B, H, q, E].
            mask: [B, 1, q, q] bool, which new token sees which; None for causal without padding.
            scale: factor of the logits.

        Returns:
            [B, q, G H, E].
        """
        self.waiting = False
        if query.shape[2] == 1 and (mask is None or self.shared.all_real(mask)):
            mask = None
            found = self.late.step(self, self._state, module, query, key, value, scale)
            if found is not None:
                return found
        assert self.state is not None
        batch, count = query.shape[0], query.shape[2]
        width = min(self.cumulative_length, self.state.widest)
        output = None
        if not width:
            output = sdpa_attention_forward(module, query, key, value, mask, scaling=scale)[0]
        if self.rows is not None:
            query, key, value = (t.flatten(0, 1)[None] for t in (query, key, value))
            mask = None if mask is None else self.by_head(mask[:, 0])
        real = None if mask is None else mask.diagonal(dim1=2, dim2=3)
        if real is not None:
            self.late.saw(real)
        if count == 1 and self.cumulative_length:
            found = self._step(query, key, value, None if real is None else real[:, :, 0], scale)
            return found.view(batch, -1, found.shape[2])[:, None]
        if output is None:
            output = attend_with_slots(module, query, key, value, mask, self.state, scale=scale, width=width)
            output = output.transpose(1, 2).reshape(batch, -1, *output.shape[1::2]).transpose(1, 2)
        if real is None:
            real = torch.ones(1, 1, count, dtype=torch.bool, device=key.device)
        real = real.expand(*key.shape[:2], -1)
        if not self.generating:
            self.prompt_before = self.state.prompts.clone()
            self.state.prompts.copy_(self.state.lengths + real.sum(2))
        enter(query, key, value, real, self.state, self.policy, self.protection, scale=scale, width=width)
        self.seen(count)
        self.queued = 0
        return output

    def _step(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        real: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        assert self.state is not None
        self.generating = True
        if self.queued == 0:
            self.shared.refill(self)
        rule = self.rule_of_step(self.state)
        self.seen(1)
        self.queued -= 1
        return decode_step(
            query[:, :, 0],
            key[:, :, 0],
            value[:, :, 0],
            self.state,
            scale=scale,
            rule=rule,
            decay=self.policy.fading,
            group=self.policy.group,
            real=real,
            width=min(self.cumulative_length, self.state.widest),
            scratch=self.shared.scratch(self.state, query.shape[1] // key.shape[1]),
        )

    def rule_of_step(self, state: SlotState) -> Rule:
        """How importance follows the next step; forgets it where the policy's window of queries begins."""
        rule, window = self.policy.rule, self.policy.window
        if window is not None and rule != "none":
            if self.queued == window:
                state.importance.zero_()
            elif self.queued > window:
                rule = "none"
        return rule
