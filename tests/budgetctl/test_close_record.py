"""What is noted of each close tells a report how it came about, exactly where it is likely at all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.close_record import SELDOM, note_close
from budgetctl.ledger import CloseLog

NO = torch.tensor([False])


def noted(
    before: torch.Tensor, after: torch.Tensor, closing: list[int], temperature: float
) -> tuple[float, float]:
    log = CloseLog()
    ids = torch.tensor([closing])
    log.record(*note_close(torch.tensor([5]), before, after, ids, NO, temperature, None, greedy=False))
    _, wanted, allowed, *_ = log._steps[0]
    return wanted.item(), allowed.item()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(-30, 6),
    st.sampled_from([0.5, 1.0, 1.5]),
    st.sampled_from([[3], [3, 4], [3, 3]]),
)
def test_probability_or_a_bound_where_it_is_next_to_nothing(
    seed: int, close: float, temperature: float, closing: list[int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(1, 40, generator=generator, dtype=torch.float64)
    before[0, closing] = close
    after = before - torch.rand(1, 40, generator=generator, dtype=torch.float64)
    chosen = sorted(set(closing))
    for scores, found in zip((before, after), noted(before, after, closing, temperature), strict=True):
        exact = (scores / temperature).softmax(1)[0, chosen].sum().item()
        assert found == pytest.approx(exact, rel=1e-4) or max(found, exact) < 2 * SELDOM


def test_the_likeliest_token_is_preferred_before_guidance_alone() -> None:
    log = CloseLog()
    before = torch.tensor([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [0.0, 2.0, 2.0]])
    after = torch.tensor([[0.0, 2.0, 9.0], [0.0, 1.0, -math.inf], [0.0, 2.0, 2.0]])
    ids, rows = torch.full((3, 1), 2), torch.tensor([7, 8, 9])
    log.record(*note_close(rows, before, after, ids, NO.expand(3), 1.0, None, greedy=True))
    assert log.kinds(greedy=True) == {7: "steered", 8: "natural", 9: "natural"}
