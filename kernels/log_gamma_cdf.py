"""Log of the regularised lower incomplete gamma function, in plain PyTorch: the Gamma distribution's log-CDF.

Two ways to the same values, neither with a synchronisation of device and host:

* ``torch.special.gammainc`` in float64, and a continued fraction (DLMF 8.9.1) where it underflows: a dozen operations,
  taken when no gradient is asked for. On the CPU the fraction is evaluated only if something underflowed.
* Three expansions in log space with fixed numbers of terms, chosen per element: the power series (DLMF 8.11.4) for
  z < 1.5 a + 5, Legendre's continued fraction for the upper function (DLMF 8.9.2) beyond, and Temme's uniform
  expansion (DLMF 8.12.3-8.12.11) for a > 6 and 0.4 < z/a < 2.2, where both are slow. Gradients flow to the shape as
  well, which ``gammainc`` does not offer.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import torch

from budgetctl.kernels.host_reads import may_look

_SERIES_TERMS = 40
_FRACTION_TERMS = 14
_TEMME_TERMS = 10
_TEMME_DEGREE = 16
_TEMME_SHAPE = 6.0
_TEMME_LOW, _TEMME_HIGH = 0.4, 2.2


def log_gamma_cdf(
    concentration: torch.Tensor, rate: torch.Tensor | float, x: torch.Tensor | float
) -> torch.Tensor:
    """log P(X <= x) of X ~ Gamma(concentration, rate), finite also where the probability underflows.

    Computed in float64 (float32 on devices without it), whatever the inputs. In float64 the error
    is below 1e-9 (1 + |log P|).

    Args:
        concentration: shape of the distribution, 1e-3 to 1e4; floating point.
        rate: inverse scale, > 0.
        x: > 0; zero and below are taken as the smallest positive number.

    Returns:
        The broadcast of the three, in ``concentration``'s dtype, at most 0.
    """
    work = torch.float32 if concentration.device.type == "mps" else torch.float64
    shape = concentration.to(work)
    bound = torch.as_tensor(x, dtype=work, device=shape.device)
    z = torch.as_tensor(rate, dtype=work, device=shape.device) * bound
    shape, z = torch.broadcast_tensors(shape, z.clamp(min=torch.finfo(work).tiny))
    differentiable = torch.is_grad_enabled() and (shape.requires_grad or z.requires_grad)
    way = _by_expansions if differentiable or work == torch.float32 else _by_gammainc
    return way(shape, z).clamp(max=0.0).to(concentration.dtype)


def _by_gammainc(shape: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    probability = torch.special.gammainc(shape, z)
    if may_look(probability.device) and not bool((probability <= 1e-280).any()):
        return probability.log()
    # So deep in the lower tail z is well below the shape, and three levels give nine digits.
    tail = shape + 6
    for level in (2, 1, 0):
        inner = shape + 2 * level + 1 + (level + 1) * z / tail
        tail = shape + 2 * level - (shape + level) * z / inner
    deep = shape * z.log() - z - torch.lgamma(shape) - tail.log()
    return torch.where(probability > 1e-280, probability.clamp(min=1e-300).log(), deep)


def _by_expansions(shape: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    ratio = z / shape
    border = 1.5 * shape + 5.0
    uniform = (shape > _TEMME_SHAPE) & (ratio > _TEMME_LOW) & (ratio < _TEMME_HIGH)
    # Every expansion is evaluated everywhere on arguments moved into its own range, so that what is not taken stays
    # finite, in the gradient too.
    scale = shape * z.log() - z - torch.lgamma(shape + 1)
    low = scale + _log_series(shape, torch.minimum(z, border))
    upper = _log_fraction(shape, torch.maximum(z, border))
    high = _log1m_exp(scale + shape.log() + upper)
    middle = _log_temme(shape.clamp(min=_TEMME_SHAPE), ratio.clamp(_TEMME_LOW, _TEMME_HIGH))
    return torch.where(uniform, middle, torch.where(z < border, low, high))


def _log_series(shape: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """log of 1 + z/(a+1) + z^2/((a+1)(a+2)) + ..., by Horner's rule from the last term."""
    steps = torch.arange(_SERIES_TERMS, 0, -1, dtype=z.dtype, device=z.device).view(-1, *[1] * z.dim())
    one = torch.ones_like(z)
    total = one
    for factor in (z / (shape + steps)).unbind(0):
        total = torch.addcmul(one, factor, total)
    return total.log()


def _log_fraction(shape: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """log of Gamma(a, z) e^z z^-a as a continued fraction, evaluated backwards."""
    n = torch.arange(_FRACTION_TERMS + 1, dtype=z.dtype, device=z.device).view(-1, *[1] * z.dim())
    partial = (n * (n - shape)).unbind(0)
    bases = (z - shape + 2 * n + 1).unbind(0)
    value = bases[_FRACTION_TERMS]
    for k in range(_FRACTION_TERMS, 0, -1):
        value = torch.addcdiv(bases[k - 1], partial[k], value, value=-1.0)
    return -value.log()


def _log_temme(shape: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """log P by the expansion around z = a, uniform in z/a (DLMF 8.12.3)."""
    eta = _eta(ratio - 1)
    below = eta < 0
    distance = torch.where(below, -eta, eta)
    table = _temme_table(shape.dtype, shape.device)
    powers = torch.cumprod(eta[..., None].expand(*eta.shape, _TEMME_DEGREE), -1)
    # [..., terms]: c_k(eta), then the sum of c_k / a^k by Horner's rule.
    coefficients = (table[0] + powers @ table[1:]).unbind(-1)
    total = coefficients[-1]
    inverse = 1 / shape
    for coefficient in coefficients[-2::-1]:
        total = torch.addcmul(coefficient, total, inverse)
    correction = total / (2 * math.pi * shape).sqrt()
    # The tail on the nearer side: P below z = a, 1 - P above it.
    tail = 0.5 * torch.special.erfcx(distance * (shape / 2).sqrt()) + torch.where(
        below, -correction, correction
    )
    log_tail = tail.clamp(min=torch.finfo(tail.dtype).tiny).log() - shape * eta.square() / 2
    # Each side's own arguments, so that neither's gradient is infinite on the other.
    return torch.where(below, log_tail, _log1m_exp(log_tail.masked_fill(below, -1.0)))


def _eta(mu: torch.Tensor) -> torch.Tensor:
    """eta of DLMF 8.12.1: eta^2 / 2 = mu - log(1 + mu), with the sign of mu."""
    near = mu.abs() < 0.02
    small = mu.masked_fill(~near, 0.0)
    large = mu.masked_fill(near, 1.0)
    series = torch.zeros_like(mu)
    for k in range(11, 1, -1):
        series = torch.addcmul(torch.full_like(mu, (-1) ** k * 2.0 / k), series, small)
    direct = 2 * (large - large.log1p()) / large.square()
    return mu * torch.where(near, series, direct).sqrt()


def _log1m_exp(log_value: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(log_value)) for values kept below 1."""
    return torch.log1p(-log_value.clamp(max=-1e-7).exp())


def temme_coefficients(k: int, degree: int) -> tuple[float, ...]:
    """d_{k,0} ... d_{k,degree}, the Taylor coefficients of c_k(eta) (DLMF 8.12.11 ff.), exact before rounding."""
    return tuple(float(d) for d in _temme_rows()[k][: degree + 1])


@lru_cache(maxsize=8)
def _temme_table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[degree + 1, terms]: column k holds the coefficients of c_k(eta)."""
    columns = [temme_coefficients(k, _TEMME_DEGREE) for k in range(_TEMME_TERMS)]
    return torch.tensor(columns, dtype=dtype, device=device).T.contiguous()


@lru_cache(maxsize=1)
def _temme_rows() -> list[list[Fraction]]:
    count = _TEMME_DEGREE + 2 * _TEMME_TERMS + 3
    # z/a - 1 = sum alpha_n eta^n, from (lambda - 1) dlambda/deta = eta lambda.
    alpha = [Fraction(0), Fraction(1)]
    for n in range(2, count + 1):
        known = sum((alpha[i] * alpha[n + 1 - i] * (n + 1 - i) for i in range(2, n)), Fraction(0))
        alpha.append((alpha[n - 1] - known) / (n + 1))
    stirling = [Fraction(1)]
    double_factorial = 1
    for k in range(1, _TEMME_TERMS):
        double_factorial *= 2 * k + 1
        stirling.append(double_factorial * alpha[2 * k + 1])
    # c_0 = 1 / (z/a - 1) - 1 / eta.
    first = [(n + 2) * alpha[n + 2] - (n == 0) for n in range(count - 1)]
    rows = [first]
    for k in range(1, _TEMME_TERMS):
        before = rows[-1]
        rows.append(
            [(-1) ** k * stirling[k] * first[n] + (n + 2) * before[n + 2] for n in range(len(before) - 2)]
        )
    return rows
