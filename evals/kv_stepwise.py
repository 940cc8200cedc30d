"""Token-by-token attention inside one forward pass over a whole text.

Under teacher forcing the inputs of every step are known, and what a layer's cache gives up depends on that layer's own
queries and keys. So a layer may take all its steps before the next layer begins: attention goes token by token through
the cache, exactly as in generation, and all else is one matrix product over the text, at half of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from budgetctl.kv import BudgetCache


class StepwiseAttention(nn.Module):
    """An attention module that reads ``prompt`` tokens in one piece and the others one by one.

    Args:
        attention: of a decoder layer, called with the keywords that Llama's takes; its hooks run at every step.
        prompt: tokens.
    """

    def __init__(self, attention: Any, prompt: int) -> None:
        super().__init__()
        self.layer_idx: int = attention.layer_idx
        self.attention, self.prompt = attention, prompt
        self.peak = 0  # most slots a head that the layer held at a time

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,  # of all layers
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        assert position_ids is not None
        assert past_key_values is not None
        layer = past_key_values.layers[self.layer_idx]
        outputs = []
        stops = [self.prompt, *range(self.prompt + 1, hidden_states.shape[1] + 1)]
        for start, stop in zip([0, *stops], stops, strict=False):
            piece = slice(start, stop)
            # A single new token sees all that is held.
            mask = None if attention_mask is None or start else attention_mask[:, :, piece, piece]
            if not isinstance(past_key_values, BudgetCache):
                # Its own keys join those that are held, before any are cut.
                self.peak = max(self.peak, _columns(layer) + stop - start)
            outputs.append(
                self.attention(
                    hidden_states=hidden_states[:, piece],
                    position_embeddings=(position_embeddings[0][:, piece], position_embeddings[1][:, piece]),
                    attention_mask=mask,
                    past_key_values=past_key_values,
                    position_ids=position_ids[:, piece],
                    **kwargs,
                )[0]
            )
        if isinstance(past_key_values, BudgetCache):
            held = past_key_values.positions(self.layer_idx) >= 0
            self.peak = max(self.peak, int(held.sum(2).max()))
        return torch.cat(outputs, 1), None


def _columns(layer: Any) -> int:
    return layer.keys.shape[2] if layer.is_initialized else 0


@contextmanager
def stepwise(model: PreTrainedModel, prompt: int) -> Iterator[list[StepwiseAttention]]:
    """Make every layer of the model attend step by step for the while; hooks on its attention stay where they are."""
    wrapped = []
    try:
        for layer in model.model.layers:
            layer.self_attn = StepwiseAttention(layer.self_attn, prompt)
            wrapped.append(layer.self_attn)
        yield wrapped
    finally:
        for layer in model.model.layers[: len(wrapped)]:
            layer.self_attn = layer.self_attn.attention
