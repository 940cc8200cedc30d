"""kvpress's decode-time compression (NVIDIA, Apache-2.0) on the transformers in use, to compare with.

``DecodingPress`` lets a cache grow by ``interval`` tokens and then cuts it to its target, so that it holds target +
interval slots at most; that peak is what is matched with a capacity. kvpress 0.5 reads ``cache_position``, which
transformers 5.20 and later no longer pass to attention: a hook puts it back.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from budgetctl.errors import BudgetctlError

#: Longest interval of a scorer; those that need no queries of the past take ``SHORT``, as often as budgetctl's default.
LONG, SHORT = 16, 4


def available() -> bool:
    """Whether kvpress is installed; it is no dependency, as it asks for an older transformers."""
    return importlib.util.find_spec("kvpress") is not None


def _presses() -> dict[str, tuple[int, str, Callable[[int], Any]]]:
    """Name -> interval, attention function, and the scorer for an interval."""
    import kvpress

    return {
        "streaming-llm": (SHORT, "sdpa", lambda interval: kvpress.StreamingLLMPress()),
        "knorm": (SHORT, "sdpa", lambda interval: kvpress.KnormPress()),
        "keydiff": (SHORT, "sdpa", lambda interval: kvpress.KeyDiffPress()),
        "tova": (SHORT, "sdpa", lambda interval: kvpress.TOVAPress()),
        # It sees the queries of one interval, of which its window must leave one out.
        "snapkv": (LONG, "sdpa", lambda interval: kvpress.SnapKVPress(window_size=interval - 1)),
        # It leaves out the first four queries of an interval.
        "expected-attention": (LONG, "sdpa", lambda interval: kvpress.ExpectedAttentionPress()),
        # The attention of the last query; asks for weights, which only the eager function gives.
        "observed-attention": (SHORT, "eager", lambda interval: kvpress.ObservedAttentionPress()),
        "lagkv": (LONG, "sdpa", lambda interval: kvpress.LagKVPress(lag_size=interval)),
    }


#: Scorers of kvpress that work while decoding, on this transformers.
PRESSES = (
    "streaming-llm",
    "knorm",
    "keydiff",
    "tova",
    "snapkv",
    "expected-attention",
    "observed-attention",
    "lagkv",
)


@contextmanager
def pressed(
    model: PreTrainedModel, name: str, capacity: int, prompt: int, interval: int | None = None
) -> Iterator[None]:
    """Compress every ``DynamicCache`` that the model decodes with, holding ``capacity`` slots a head at most.

    Args:
        model: of an architecture with ``model.layers[i].self_attn``; its attention function is set for the while.
        name: one of :data:`PRESSES`.
        capacity: peak slots a head.
        prompt: tokens read in one piece before the first step.
        interval: tokens between cuts; None takes the scorer's own.

    Raises:
        BudgetctlError: when the peak cannot be ``capacity``.
    """
    from kvpress import DecodingPress

    usual, attention, scorer = _presses()[name]
    interval = usual if interval is None else interval
    if (capacity - prompt) % interval or capacity - interval < 1 or prompt > capacity - interval:
        raise BudgetctlError(
            f"{name} with {capacity} slots, {prompt} tokens of prompt and an interval of {interval}: expected the prompt to fit "
            "into what a cut leaves, and a whole number of intervals from one to the other; change one of them"
        )
    press = DecodingPress(
        base_press=scorer(interval),
        compression_interval=interval,
        target_size=capacity - interval,
        hidden_states_buffer_size=interval,
    )
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    hooks = [
        layer.self_attn.register_forward_pre_hook(_with_cache_position, with_kwargs=True)
        for layer in model.model.layers
    ]
    try:
        with press(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(before)


def _with_cache_position(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "cache_position": kwargs["position_ids"][0]}
