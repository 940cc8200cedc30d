"""Gamma log-CDF against mpmath and SciPy."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from budgetctl.kernels import log_gamma_cdf as module
from budgetctl.kernels.log_gamma_cdf import log_gamma_cdf

SHAPES = np.concatenate([np.geomspace(1e-3, 1e4, 15), [0.5, 1.0, 5.99, 6.01, 30.0]])
RATIOS = np.array([1e-4, 0.05, 0.3, 0.399, 0.401, 0.7, 0.99, 1 - 1e-9, 1.0, 1.01, 1.3, 2.19, 2.21, 4.0, 60.0])
WAYS = ["gammainc", "expansions"]


def exact(shape: float, z: float) -> float:
    """log P by mpmath in 40 digits, from the nearer tail."""
    with mpmath.workdps(40):
        p = mpmath.gammainc(shape, 0, z, regularized=True)
        if p < 0.5:
            return float(mpmath.log(p))
        return float(mpmath.log1p(-mpmath.gammainc(shape, z, mpmath.inf, regularized=True)))


def evaluate(way: str, shape: torch.Tensor, rate: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor:
    """``log_gamma_cdf`` by the way it takes with (expansions) or without a gradient."""
    return log_gamma_cdf(shape.clone().requires_grad_(way == "expansions"), rate, x).detach()


@pytest.fixture(scope="module")
def grid() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(shape, z, log P) over all shapes and ratios, float64."""
    shape, z = (SHAPES[:, None] * np.ones_like(RATIOS)).ravel(), (SHAPES[:, None] * RATIOS).ravel()
    values = [exact(a, b) for a, b in zip(shape, z, strict=True)]
    return torch.tensor(shape), torch.tensor(z), torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "limit"), [(torch.float64, 1e-9, -math.inf), (torch.float32, 1e-4, -700.0)]
)
def test_agrees_with_mpmath(way, dtype, tolerance, limit, grid):
    shape, z, expected = grid
    if dtype == torch.float32:
        # What the rounding of the inputs does is not the function's error.
        shape, z = shape.float(), z.float()
        expected = torch.tensor(
            [exact(a, b) for a, b in zip(shape.tolist(), z.tolist(), strict=True)]
        ).double()
    found = evaluate(way, shape.to(dtype), 1.0, z.to(dtype))
    assert found.dtype == dtype
    error = ((found.double() - expected).abs() / (1 + expected.abs()))[expected > limit]
    assert error.max() < tolerance


@settings(max_examples=150, deadline=None)
@given(
    shape=st.floats(math.log(0.1), math.log(200)).map(math.exp),
    rate=st.floats(0.01, 100.0),
    x=st.floats(0.1, 30.0),
    way=st.sampled_from(WAYS),
)
def test_agrees_with_scipy_in_the_practical_range(shape, rate, x, way):
    p = special.gammainc(shape, rate * x)
    found = evaluate(
        way, torch.tensor([shape], dtype=torch.float64), rate, torch.tensor(x, dtype=torch.float64)
    )
    if p > 1e-290:
        assert float(found) == pytest.approx(math.log(p), rel=1e-9, abs=1e-9)
    else:
        assert -math.inf < float(found) < math.log(1e-280)


@pytest.mark.parametrize("way", WAYS)
def test_both_ways_are_finite_and_rise_with_x_from_end_to_end(way):
    shape = torch.logspace(-3, 4, 71, dtype=torch.float64)
    x = torch.logspace(-30, 12, 400, dtype=torch.float64)[:, None]
    values = evaluate(way, shape, 0.7, x)
    assert values.isfinite().all()
    assert values.max() <= 0
    # Each step up to rounding.
    assert (values.diff(dim=0) > -1e-9 * (1 + values[1:].abs())).all()


def test_zero_is_the_limit_of_small_x():
    shape = torch.tensor([0.5, 20.0])
    assert log_gamma_cdf(shape, 1.0, torch.tensor(0.0)).isfinite().all()


def test_gradients_of_shape_and_bound_are_right_in_every_region():
    shape = torch.tensor(
        [0.3, 3.0, 3.0, 40.0, 40.0, 40.0, 40.0, 500.0], dtype=torch.float64, requires_grad=True
    )
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.1, 1.0, 9.0, 5.0, 19.0, 21.0, 70.0, 240.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_gamma_cdf, (shape, rate, x), eps=1e-6, atol=1e-5)


def test_gradients_are_finite_on_the_whole_range():
    shape = torch.logspace(-3, 4, 60, dtype=torch.float64).requires_grad_()
    x = torch.cat([torch.logspace(-20, 9, 90, dtype=torch.float64), shape.detach()])[:, None].requires_grad_()
    log_gamma_cdf(shape, 1.0, x).sum().backward()
    assert shape.grad is not None
    assert x.grad is not None
    assert shape.grad.isfinite().all()
    assert x.grad.isfinite().all()


def test_every_expansion_is_reached_by_the_grid(grid):
    shape, z, _ = grid
    uniform = (
        (shape > module._TEMME_SHAPE) & (z / shape > module._TEMME_LOW) & (z / shape < module._TEMME_HIGH)
    )
    series = ~uniform & (z < 1.5 * shape + 5)
    assert min(uniform.sum(), series.sum(), (~uniform & ~series).sum()) > 20


def test_temme_coefficients_are_the_published_ones():
    table = module._temme_table(torch.float64, torch.device("cpu"))
    # DLMF 8.12.12 ff. and Temme (1979): c_0 = -1/3 + eta/12 - 2 eta^2/135 + ..., c_1(0) = -1/540.
    assert table[:4, 0].tolist() == pytest.approx([-1 / 3, 1 / 12, -2 / 135, 1 / 864], rel=1e-14)
    assert float(table[0, 1]) == pytest.approx(-1 / 540, rel=1e-14)


def test_broadcasts_like_a_decode_step():
    shape, rate, left = torch.rand(3, 5) + 1, torch.rand(3, 5) + 1, torch.rand(3, 1)
    together = log_gamma_cdf(shape, rate, left)
    assert together.shape == (3, 5)
    assert torch.equal(together[1, 2], log_gamma_cdf(shape[1, 2], rate[1, 2], left[1, 0]))


def test_one_element_that_underflows_does_not_change_the_others():
    shape, z = torch.tensor([2.0, 30.0, 500.0]).double(), torch.tensor([1.0, 20.0, 450.0]).double()
    alone = log_gamma_cdf(shape, 1.0, z)
    deep = log_gamma_cdf(torch.cat([shape, shape[-1:]]), 1.0, torch.cat([z, z[:1]]))
    assert torch.equal(deep[:3], alone)
    assert float(deep[3]) == pytest.approx(exact(500.0, 1.0), rel=1e-9)
