"""``generate(kv_budget=...)``: a cache of that budget for the call, coupled with its controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import GenerationConfig

from budgetctl.controller import BudgetController
from budgetctl.errors import BudgetError
from budgetctl.integrations.wrapping import wrap_generate

#: Knobs of the cache, each None for none.
KV_KNOBS = ("kv_budget", "kv_policy", "kv_max_loss")


def begin_cache(
    model: Any,
    controller: BudgetController,
    config: GenerationConfig,
    prompt_length: int,
    rows: int,
    model_kwargs: dict[str, Any],
) -> Any:
    """Put a ``BudgetCache`` into the arguments of the model, as the knobs of ``config`` say, before any forward pass.

    Args:
        model: whose attention is set to ``budget_kv``; :func:`keep_attention` sets it back.
        controller: of the call.
        config: of the call.
        prompt_length: padded width of the prompts.
        rows: of the batch, beams and samples included.
        model_kwargs: of the call; ``past_key_values`` is replaced.

    Returns:
        The ``BudgetCache``; None without a KV budget.

    Raises:
        BudgetError: for a call that has its own cache, or decodes in a way that goes back.
        CacheError: for a model that has no such cache, or an impossible budget.
    """
    knobs = {name: getattr(config, name, None) for name in KV_KNOBS}
    if knobs["kv_budget"] is None:
        alone = [name for name in KV_KNOBS if knobs[name] is not None]
        if alone:
            raise BudgetError(
                f"{alone[0]}={knobs[alone[0]]!r} without a KV budget: expected kv_budget too; give it or drop {alone[0]}"
            )
        return None
    from budgetctl.kv.attention import NAME
    from budgetctl.kv.budget import KVBudget
    from budgetctl.kv.coupling import couple

    budget = KVBudget.parse(knobs["kv_budget"])
    assert budget is not None
    given = model_kwargs.get("past_key_values")
    obstacles = {
        "a cache of its own": (given is not None and given.get_seq_length() > 0)
        or getattr(given, "_is_user_defined", False),
        f"cache_implementation={config.cache_implementation!r}": config.cache_implementation is not None,
        "use_cache=False": config.use_cache is False,
        "prompt_lookup_num_tokens": config.prompt_lookup_num_tokens is not None,
        "an assistant, whose drafts are taken back": bool(getattr(config, "is_assistant", False)),
    }
    for what, stands in obstacles.items():
        if stands:
            raise BudgetError(
                f"kv_budget={knobs['kv_budget']!r} and the call has {what}: expected only one of the two; drop one"
            )
    mask = model_kwargs.get("attention_mask")
    prompts = [prompt_length] * rows if mask is None else mask.sum(1).tolist()
    cache = couple(
        controller,
        model.config,
        budget,
        prompts=prompts,
        prompt_length=prompt_length,
        max_new_tokens=config.max_length - prompt_length,
        dtype=model.dtype,
        policy=knobs["kv_policy"],
        movable=config.num_beams > 1,
        max_loss=knobs["kv_max_loss"],
    )
    model_kwargs["past_key_values"] = cache
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    return cache


def keep_attention(model: Any) -> None:
    """Wrap ``model.generate`` so that the model attends after a call as it did before it."""
    wrap_generate(model, _around)


def _around(
    model: Any, generate: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    before = model.config._attn_implementation
    try:
        return generate(*arguments, **options)
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
