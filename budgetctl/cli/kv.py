"""The KV budget of a command: read before the model is loaded, kept while it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from budgetctl.controller import BudgetController
from budgetctl.errors import BudgetError
from budgetctl.kv.attention import NAME
from budgetctl.kv.budget import KVBudget
from budgetctl.kv.coupling import check_max_loss, couple
from budgetctl.kv.policies import Policy, find_policy


@dataclass(frozen=True)
class KVSettings:
    """A KV budget, what is given up beyond it, and the loss at which a thought is told to finish."""

    budget: KVBudget
    policy: Policy
    max_loss: float | None


def read_kv(budget: str | None, policy: str | None, max_loss: float | None) -> KVSettings | None:
    """The KV budget of a command line; None without one.

    Raises:
        CacheError: for a budget that cannot be read, an unknown policy, or a loss that is not above 0.
        BudgetError: for one of the others without a budget.
    """
    for name, value in (("--kv-policy", policy), ("--kv-max-loss", max_loss)):
        if budget is None and value is not None:
            raise BudgetError(
                f"{name} {value} without a KV budget: expected --kv-budget too; give it or drop {name}"
            )
    parsed = KVBudget.parse(budget)
    if parsed is None:
        return None
    check_max_loss(max_loss)
    return KVSettings(parsed, find_policy(policy), max_loss)


@contextmanager
def kv_cache(
    model: PreTrainedModel,
    controller: BudgetController,
    kv: KVSettings | None,
    mask: torch.Tensor,
    max_new_tokens: int,
) -> Iterator[dict[str, Any]]:
    """Arguments of ``generate`` for the cache of one batch with prompts of ``mask`` [B, T]; the model attends to it
    inside."""
    if kv is None:
        yield {}
        return
    cache = couple(
        controller,
        model.config,
        kv.budget,
        prompts=mask.sum(1).tolist(),
        prompt_length=mask.shape[1],
        max_new_tokens=max_new_tokens,
        dtype=model.dtype,
        policy=kv.policy,
        max_loss=kv.max_loss,
    )
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield {"past_key_values": cache}
    finally:
        model.set_attn_implementation(before)
