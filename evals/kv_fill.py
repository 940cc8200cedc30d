"""Caches that hold a thought of any length at once: keys and values at random, in the state that real use leaves.

A step costs the same whatever the numbers are. What counts is where they stand, so a BudgetCache is left as after so many
tokens: slots full and in no order, the prompt, the first and the latest tokens among them, and a queue that is spent.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, StaticCache

from budgetctl.errors import BudgetctlError
from budgetctl.kernels.kv_reference import value_norm
from budgetctl.kv import BudgetCache
from budgetctl.kv.cache import decoder_config
from budgetctl.kv.layer import BudgetLayer

#: Tokens of the prompt before the thought.
PROMPT = 64


class Drawn:
    """Keys and values of a model's layers.

    Args:
        config: of the model.
        batch: B.
        dtype: of keys and values.
        device: of all tensors.
    """

    def __init__(self, config: Any, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.config, text = config, decoder_config(config)
        self.layers, self.heads = int(text.num_hidden_layers), int(text.num_key_value_heads)
        self.query_heads = int(text.num_attention_heads)
        self.size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        self.batch, self.dtype, self.device = batch, dtype, device
        self._generator = torch.Generator(device).manual_seed(0)

    def normal(self, heads: int, tokens: int) -> torch.Tensor:
        """[B, heads, tokens, D]."""
        shape = (self.batch, heads, tokens, self.size)
        return torch.randn(shape, generator=self._generator, dtype=self.dtype, device=self.device)

    def uniform(self, *shape: int) -> torch.Tensor:
        """float32 in [0, 1)."""
        return torch.rand(shape, generator=self._generator, device=self.device)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's keys and values in all layers."""
        return 2 * self.layers * self.heads * self.size * torch.finfo(self.dtype).bits // 8


@torch.inference_mode()
def full_cache(drawn: Drawn, tokens: int, *, layers: int | None = None) -> DynamicCache:
    """A DynamicCache after ``tokens`` tokens, of the first ``layers``."""
    cache = DynamicCache()
    for layer in range(drawn.layers if layers is None else layers):
        cache.update(drawn.normal(drawn.heads, tokens), drawn.normal(drawn.heads, tokens), layer)
    return cache


@torch.inference_mode()
def static_cache(drawn: Drawn, tokens: int, room: int, *, layers: int | None = None) -> StaticCache:
    """A StaticCache after ``tokens`` tokens that has room for ``room`` more."""
    cache = StaticCache(config=drawn.config, max_cache_len=tokens + room)
    for layer in range(drawn.layers if layers is None else layers):
        cache.update(drawn.normal(drawn.heads, tokens), drawn.normal(drawn.heads, tokens), layer)
    return cache


@torch.inference_mode()
def budget_cache(
    drawn: Drawn, tokens: int, capacity: int, policy: str, *, layers: int | None = None
) -> BudgetCache:
    """A BudgetCache of ``capacity`` slots a head after ``tokens`` tokens."""
    cache = BudgetCache(drawn.config, capacity, policy)
    for layer in cache.layers[:layers]:
        fill(layer, drawn, tokens)
    return cache


def fill(layer: BudgetLayer, drawn: Drawn, tokens: int, prompt: int = PROMPT) -> None:
    """Bring a new layer into the state after ``tokens`` tokens without padding, ``prompt`` of them the prompt.

    Raises:
        BudgetctlError: for a layer that is not new, or whose heads have capacities of their own.
    """
    if layer.cumulative_length or layer.rows is not None or len(set(layer.capacities)) > 1:
        raise BudgetctlError(
            f"a layer with {layer.cumulative_length} tokens and capacities {layer.capacities}: expected a new one whose "
            "heads all have the same; take a BudgetCache of one capacity"
        )
    layer.lazy_initialization(drawn.normal(drawn.heads, 1), drawn.normal(drawn.heads, 1))
    state, capacity = layer.state, layer.capacities[0]
    assert state is not None
    held, prompt = min(tokens, capacity), min(prompt, tokens)
    state.heads(state.keys, held).copy_(drawn.normal(drawn.heads, held))
    state.heads(state.values, held).copy_(drawn.normal(drawn.heads, held))
    state.heads(state.importance, held).copy_(drawn.uniform(drawn.batch, drawn.heads, held))
    if state.value_norms is not None:
        norms = value_norm(state.heads(state.values, held), state.value_norms.dtype)
        state.heads(state.value_norms, held).copy_(norms)
    positions = torch.arange(held, device=drawn.device).expand(drawn.batch, drawn.heads, -1)
    if tokens > capacity:
        worth = drawn.uniform(drawn.batch, drawn.heads, tokens)
        # What is protected ranks first, in random order as all the rest.
        stays = prompt if prompt <= layer.protection.prompt_share * capacity else layer.protection.sinks
        worth[:, :, :stays] += 1
        worth[:, :, tokens - layer.protection.recent :] += 1
        positions = worth.topk(held, dim=2).indices
    state.heads(state.positions, held).copy_(positions)
    state.lengths.fill_(tokens)
    state.prompts.fill_(prompt)
    layer.cumulative_length, layer.generating = tokens, True
    layer.evicted_at = tokens if tokens > capacity else 0
    layer.late.in_order = tokens <= capacity


def allocated_bytes(cache: Any) -> int:
    """Bytes of a cache's tensors: keys, values, and a BudgetCache's state."""
    if isinstance(cache, BudgetCache):
        return cache.bytes_allocated
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        if layer.is_initialized
        for tensor in (layer.keys, layer.values)
    )
