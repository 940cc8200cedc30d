"""Guidance stays finite at any strength and temperature."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.kernels.gamma_guidance import Action, GuidanceHead, gamma_guidance, pack_rows
from budgetctl.kernels.row_state import LEAST_TEMPERATURE, MOST_STRENGTH, MOST_TEMPERATURE

VOCAB, WIDTH, RANK = 40, 8, 3
exponents = st.floats(-300, 300)


def guided(
    strength: float | torch.Tensor,
    temperature: float | torch.Tensor,
    dtype: torch.dtype = torch.float32,
    tail: str = "exact",
    left: int = 3,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [2, V] before and after."""
    generator = torch.Generator().manual_seed(left)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    logits = (5 * normal(2, VOCAB)).to(dtype)
    logits[:, 30:] = -torch.inf
    scores, ids = logits.topk(6, 1)
    rows = pack_rows(
        torch.full((2,), int(Action.GUIDE)),
        torch.tensor([left, 400]),
        ids[:, 2:3],
        strength=strength,
        temperature=temperature,
        lower=torch.tensor([left // 2, -1]),
    )
    head = GuidanceHead(normal(2, WIDTH), torch.tensor([6.0, 3.0]), 3 * normal(VOCAB, RANK), 1e-4)
    features = 3 * normal(2, WIDTH + 2 * RANK)
    found, fit = gamma_guidance(logits, features, head, scores, ids, rows, interval=True, tail=tail)
    assert fit.isfinite().all()
    return logits, found


@settings(max_examples=150, deadline=None)
@given(
    strength=exponents,
    temperature=exponents,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    tail=st.sampled_from(["exact", "relative"]),
    left=st.integers(0, 2000),
    by_row=st.booleans(),
)
def test_finite_at_any_strength_and_temperature(
    strength: float, temperature: float, dtype: torch.dtype, tail: str, left: int, by_row: bool
) -> None:
    values = [10.0**strength, 10.0**temperature]
    chosen = [torch.full((2,), value, dtype=torch.float64) for value in values] if by_row else values
    logits, found = guided(chosen[0], chosen[1], dtype, tail, left)
    assert torch.equal(found.isfinite(), logits.isfinite())
    bounded = min(max(values[1], LEAST_TEMPERATURE), MOST_TEMPERATURE)
    sampled = (found.float() / bounded).softmax(1)
    torch.testing.assert_close(sampled.sum(1), torch.ones(2))


def test_beyond_the_bounds_is_as_at_the_bounds() -> None:
    assert torch.equal(guided(1e300, 0.7)[1], guided(MOST_STRENGTH, 0.7)[1])
    assert torch.equal(guided(2.0, 1e-200)[1], guided(2.0, LEAST_TEMPERATURE)[1])
    assert torch.equal(guided(2.0, 1e200)[1], guided(2.0, MOST_TEMPERATURE)[1])
    logits, found = guided(2.0, LEAST_TEMPERATURE)
    assert torch.equal(found, logits)  # next to nothing is added where the likeliest token is taken


@pytest.mark.parametrize("tail", ["exact", "relative"])
def test_half_precision_holds_the_strongest_push(tail: str) -> None:
    logits, found = guided(MOST_STRENGTH, 1.0, torch.float16, tail)
    assert (found.float() - logits.float()).abs()[:, :30].max() > 1000
    assert torch.equal(found.isfinite(), logits.isfinite())
