"""Largest remainders: exact totals, floors, and shares within one of what is fair."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.apportion import apportion
from budgetctl.errors import BudgetctlError

WEIGHT = st.floats(0, 1e300)


@given(
    st.lists(st.tuples(WEIGHT, st.integers(0, 50)), min_size=1, max_size=40),
    st.integers(0, 100_000),
)
def test_apportion_is_exact_and_fair(parts: list[tuple[float, int]], extra: int) -> None:
    weights, floors = map(list, zip(*parts, strict=True))
    total = sum(floors) + extra
    found = apportion(total, weights, floors)
    assert sum(found) == total
    over = [a - b for a, b in zip(found, floors, strict=True)]
    assert min(over) >= 0
    whole = math.fsum(w / max(weights) for w in weights) if max(weights) else 0
    if whole:
        for share, weight in zip(over, weights, strict=True):
            assert abs(share - extra * (weight / max(weights)) / whole) < 1 + 1e-6
    for a, x in zip(over, weights, strict=True):
        for b, y in zip(over, weights, strict=True):
            assert a >= b - (x == y) or x < y


def test_what_cannot_be_shared_out_is_told() -> None:
    with pytest.raises(BudgetctlError, match="floors that fit"):
        apportion(5, [1.0, 1.0], [3, 3])
    with pytest.raises(BudgetctlError, match="none negative"):
        apportion(5, [1.0, -1.0], [0, 0])
