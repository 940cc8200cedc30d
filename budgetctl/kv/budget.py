"""What a call may hold of keys and values, and the capacities that it comes to.

A KV budget is a number of slots (tokens a key-value head of each row), a share of what each row could come to, or bytes
for the whole call. Bytes are one pool, out of which rows get slots by the root of their lengths
(``allocators.by_need``). A row never gets more than it could fill, and one that fits is never evicted from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from budgetctl.errors import CacheError
from budgetctl.kernels.kv_state import SlotState
from budgetctl.kv.allocators import by_need
from budgetctl.kv.cache import BudgetCache, decoder_config
from budgetctl.kv.policies import Policy, find_policy

#: Fewest slots of a row in a pool: less leaves nothing to choose from beside what is protected.
LEAST_SLOTS = 32
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_EXPECTED = "expected slots (an integer >= 1), a share in (0, 1] or such as '25%', or bytes such as '64MiB'"


@dataclass(frozen=True)
class KVBudget:
    """One of ``slots`` a head of each row, ``share`` of what each row could come to, and ``bytes`` of the whole call."""

    slots: int | None = None
    share: float | None = None
    bytes: int | None = None

    @classmethod
    def parse(cls, value: object) -> KVBudget | None:
        """Read a knob: 512, 0.25, "25%", "64MiB"; None and another ``KVBudget`` stay.

        Raises:
            CacheError: for anything else.
        """
        if value is None or isinstance(value, KVBudget):
            return value
        if isinstance(value, str):
            return cls._read(value)
        if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1:
            return cls(slots=int(value))
        if isinstance(value, Real) and not isinstance(value, Integral) and 0 < float(value) <= 1:
            return cls(share=float(value))
        raise CacheError(f"kv_budget={value!r}: {_EXPECTED}")

    @classmethod
    def _read(cls, text: str) -> KVBudget | None:
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|[kmg]?i?b)?\s*", text, re.IGNORECASE)
        if found is None:
            raise CacheError(f"kv_budget={text!r}: {_EXPECTED}")
        number, unit = float(found[1]), (found[2] or "").lower()
        if unit in _UNITS and number * _UNITS[unit] >= 1:
            return cls(bytes=int(number * _UNITS[unit]))
        if unit == "%" and 0 < number <= 100:
            return cls(share=number / 100)
        if not unit:
            return cls.parse(float(found[1]) if "." in found[1] else int(found[1]))
        raise CacheError(f"kv_budget={text!r}: {_EXPECTED}")


@dataclass(frozen=True)
class RowNeed:
    """Tokens that a row may come to: ``prompt``, and at its end, as ``planned`` and at the very ``most``."""

    prompt: int
    planned: int
    most: int


@dataclass(frozen=True)
class SlotCost:
    """Bytes of a row: ``slot`` for each slot of all heads and layers, ``fixed`` beside them."""

    slot: int
    fixed: int

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, policy: Policy) -> SlotCost:
        """For a model of this configuration in ``dtype``, from tensors without data."""
        config = decoder_config(config)
        assert policy.interval is not None
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        sizes = [getattr(config, name, None) or head for name in ("qk_head_dim", "v_head_dim")]

        def bytes_of(slots: int) -> int:
            heads = [slots] * config.num_key_value_heads
            state = SlotState.allocate(
                1,
                heads,
                *sizes,
                interval=policy.interval or 1,
                value_norms=policy.value_norms,
                evicted=True,
                dtype=dtype,
                device="meta",
            )
            return state.bytes * int(config.num_hidden_layers)

        few = policy.interval
        slot = bytes_of(few + 1) - bytes_of(few)
        return cls(slot, bytes_of(few) - few * slot)


@dataclass(frozen=True)
class Pool:
    """Slots that the rows of a call share.

    Args:
        slots: a head, of all rows together.
        floor: fewest of a row.
    """

    slots: int
    floor: int

    def shares(self, needs: Sequence[int], weights: Sequence[float] | None = None) -> list[int]:
        """Slots a head of each row by what it will need; see :func:`budgetctl.kv.allocators.by_need`."""
        return by_need(self.slots, needs, [self.floor] * len(needs), weights)


def plan_cache(
    config: Any,
    budget: KVBudget,
    needs: Sequence[RowNeed],
    dtype: torch.dtype,
    policy: Policy | str | None = None,
    *,
    movable: bool = False,
) -> tuple[BudgetCache, Pool | None]:
    """A cache for rows that come to ``needs``, and the pool that its rows share, if they do.

    Args:
        config: of the model.
        budget: what may be held.
        needs: of each row.
        dtype: of keys and values.
        policy: what to give up.
        movable: rows will change places, as beams do, so that all need one capacity.

    Raises:
        CacheError: for a model that this cannot be, or a budget that is too small for its rows.
    """
    policy = find_policy(policy)
    movable = movable or policy.shared_heads
    options: dict[str, Any] = {"answer_overflow": "evict", "evicted": True}
    most = [need.most for need in needs]
    if budget.slots is not None:
        return BudgetCache(config, min(budget.slots, max(max(most), LEAST_SLOTS)), policy, **options), None
    if budget.share is not None:
        rows = [max(math.ceil(budget.share * length), LEAST_SLOTS) for length in most]
        if movable or len(set(rows)) == 1:
            return BudgetCache(config, max(rows), policy, **options), None
        return BudgetCache.by_row(config, rows, policy, **options), None
    assert budget.bytes is not None
    fitted, each = policy, LEAST_SLOTS
    for _ in range(2):
        # A policy's interval follows from the slots, and takes some bytes itself.
        fitted = policy.fitted(max(each, LEAST_SLOTS))
        cost = SlotCost.of(config, dtype, fitted)
        slots = (budget.bytes - len(needs) * cost.fixed) // cost.slot
        each = slots // len(needs)
    if each < LEAST_SLOTS:
        least = len(needs) * (cost.fixed + LEAST_SLOTS * cost.slot)
        raise CacheError(
            f"kv_budget of {budget.bytes:,} bytes is {max(each, 0)} slots for each of {len(needs)} rows: expected at least "
            f"{LEAST_SLOTS}, which is {least:,} bytes; raise it or answer fewer rows at once"
        )
    if movable or each >= max(most):
        return BudgetCache(config, min(each, max(max(most), LEAST_SLOTS)), fitted, **options), None
    # What stays free to be evicted is half of a row's slots at least, and rows may have fewer than others.
    assert fitted.interval is not None
    recent = max(each // 4, LEAST_SLOTS // 2) - fitted.interval
    recent = max(min(recent, each // 4, 32), 1)
    floor = min(each, max(LEAST_SLOTS, 2 * (recent + fitted.interval)))
    pool = Pool(slots, floor)
    fits = sum(max(length, floor) for length in most) <= slots
    rows = pool.shares(most if fits else [need.planned for need in needs])
    return BudgetCache.by_row(config, rows, fitted, recent=recent, **options), pool
