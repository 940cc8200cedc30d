"""What a cache holds, whatever its kind."""

from __future__ import annotations

from typing import Any

import torch


def cache_bytes(cache: Any) -> int | None:
    """Most bytes that a cache has held since it was made, keys and values and what is kept with them; None for one that
    does not tell."""
    held: int | None = getattr(cache, "peak_bytes", None)
    if held is not None:
        return held
    tensors = [
        tensor
        for layer in getattr(cache, "layers", ())
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(tensor, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) if tensors else None
