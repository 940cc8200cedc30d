"""Bytes that a decode step moves because of the cache, by kind of cache: counted from what each does, not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from budgetctl.kernels.aot import DEVICES
from budgetctl.kernels.kv_resources import decode_cost, novelty_cost, shape_of_state, victims_cost
from budgetctl.kv.policies import DiverseMax, KeyDiff, Policy

__all__ = [
    "DEVICES",
    "CacheShape",
    "bandwidth_of",
    "budget_bytes",
    "full_bytes",
    "kvpress_bytes",
    "least_bytes",
]


@dataclass(frozen=True)
class CacheShape:
    """What the bytes of a cache depend on.

    Args:
        layers: of the model.
        heads: key-value heads, H.
        groups: query heads that share one, G.
        size: D.
        dtype: of keys and values.
    """

    layers: int
    heads: int
    groups: int
    size: int
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def of(cls, drawn: Any) -> CacheShape:
        """Of :class:`budgetctl.evals.kv_fill.Drawn`."""
        return cls(drawn.layers, drawn.heads, drawn.query_heads // drawn.heads, drawn.size, drawn.dtype)

    @property
    def token(self) -> int:
        """Bytes of a token's keys and values in all layers."""
        return 2 * self.layers * self.heads * self.size * torch.finfo(self.dtype).bits // 8


def least_bytes(shape: CacheShape, batch: int, held: int) -> int:
    """The physical limit of attention over ``held`` tokens a row: each key and value read once, the new ones written."""
    return batch * shape.token * (held + 1)


def full_bytes(shape: CacheShape, batch: int, tokens: int, *, static: bool = False) -> int:
    """Of a step after ``tokens`` tokens. A DynamicCache reads and writes all of it to append a token, and attention reads
    it again; a StaticCache (``tokens`` its length) writes the token alone."""
    if static:
        return least_bytes(shape, batch, tokens)
    return batch * shape.token * (tokens + 2 * (tokens + 1))


def kvpress_bytes(shape: CacheShape, batch: int, target: int, interval: int) -> float:
    """Of a step on average of kvpress' DecodingPress without what its scores take: a DynamicCache of between ``target``
    and ``target + interval`` tokens, and the copy of what is kept, once in ``interval`` steps."""
    mean = target + (interval - 1) / 2
    return batch * shape.token * (3 * mean + 2 + 2 * target / interval)


def budget_bytes(shape: CacheShape, batch: int, capacity: int, policy: Policy) -> float:
    """Of a step of a BudgetCache with full slots, by the kernels: one decode launch a layer, and once in ``interval`` tokens
    the launches that name victims for all layers, with the novelty of keys where the policy asks for it. What else a policy
    computes scores from is not counted."""
    interval = policy.interval or 1
    state = shape_of_state(batch, shape.heads, capacity, shape.size, dtype=shape.dtype, interval=interval)
    decode = decode_cost(state, shape.groups, rule=policy.rule).bytes
    victims = victims_cost(shape.layers, state, interval, prior=policy.guard is not None).bytes
    if isinstance(policy, DiverseMax | KeyDiff):
        novelty = novelty_cost(shape.layers, state, importance=isinstance(policy, DiverseMax))
        victims += novelty.bytes
    return shape.layers * decode + victims / interval


def bandwidth_of(device_name: str) -> float | None:
    """Bytes a second of HBM as the vendor states it, for the name of a CUDA device; None where it is not known."""
    for name, (bandwidth, _) in DEVICES.items():
        if name in device_name and "PCIe" not in device_name and "NVL" not in device_name:
            return bandwidth
    return None
