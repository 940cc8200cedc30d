"""``attn_implementation="budget_kv"``: the attention function and mask function that a BudgetCache needs.

With any other cache, or none, both do what ``sdpa`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from budgetctl.errors import CacheError

#: Name in transformers' registries.
NAME = "budget_kv"
#: Arguments of other models' attention that would change the result.
UNKNOWN = ("softcap", "s_aux", "position_bias", "sinks")


def budget_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over a layer's slots, after the new tokens have entered them.

    Args:
        module: of the model.
        query: [B, G H, q, D].
        key: [B, H, q, D], as ``BudgetLayer.update`` returned it.
        value: [B, H, q, E].
        attention_mask: [B, 1, q, q] bool from :func:`budget_mask`, or None.
        dropout: 0.
        scaling: factor of the logits, D^-0.5 by default.
        sliding_window: None.

    Returns:
        ``([B, q, G H, E], None)``.

    Raises:
        CacheError: for attention of another kind.
    """
    layer = getattr(key, "budget_layer", None)
    if layer is None:
        if sliding_window is not None:
            kwargs["sliding_window"] = sliding_window
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    asked = [name for name in UNKNOWN if kwargs.get(name) is not None]
    if sliding_window is not None:
        asked.append("sliding_window")
    if kwargs.get("output_attentions"):
        asked.append("output_attentions")
    if dropout:
        asked.append("dropout")
    if query.requires_grad and torch.is_grad_enabled():
        asked.append("gradients")
    if asked:
        raise CacheError(
            f"attention with {asked[0]}: expected plain causal attention over all tokens, under torch.no_grad(); "
            "use another cache for that"
        )
    mask = attention_mask
    if mask is not None and (
        mask.dtype != torch.bool or mask.shape[1:] != (1, query.shape[2], query.shape[2])
    ):
        raise CacheError(
            f"an attention mask of {mask.dtype} and shape {tuple(mask.shape)}: expected the two-dimensional mask of padding; "
            "pass attention_mask with one column for each token so far"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layer.attend(module, query, key, value, mask, scale), None


def budget_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., torch.Tensor] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The mask of ``sdpa``; at a decode step of a BudgetCache only whether the new token is real, not read by the host."""
    if q_length == kv_length == 1 and kv_offset:
        if attention_mask is None:
            return None
        if attention_mask.shape[1] <= kv_offset:
            raise CacheError(
                f"an attention mask with {attention_mask.shape[1]} columns: expected {kv_offset + 1}, one for each token so far"
            )
        return attention_mask[:, None, None, kv_offset : kv_offset + 1].bool()
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **kwargs,
    )


def register() -> None:
    """Make ``attn_implementation="budget_kv"`` known to transformers; done on import of ``budgetctl.kv``."""
    AttentionInterface.register(NAME, budget_attention)
    AttentionMaskInterface.register(NAME, budget_mask)
