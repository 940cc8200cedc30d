"""The Gamma log-CDF in float32, as Triton functions that other kernels inline.

Three expansions, each evaluated for every element on arguments moved into its own range: a thread's elements then
take one path, and what is not taken stays finite. With a the shape, mu = (z - a) / a and
D = z^a e^-z / Gamma(a + 1):

* P = D (1 + z/(a+1) + z^2/((a+1)(a+2)) + ...) (DLMF 8.11.4) for z < 1.5 a + 5;
* 1 - P = a D times Legendre's continued fraction (DLMF 8.9.2) beyond;
* Temme's uniform expansion (DLMF 8.12.3-8.12.11) for a > 6 and 0.4 < z/a < 2.2.

Float32 suffices because the large terms of log D are never formed: for a > 3 it is -a phi(mu) - log(2 pi a)/2 minus
Stirling's series, phi(mu) = mu - log(1 + mu) by a series in mu / (2 + mu), after the saddle-point form of Loader,
"Fast and accurate computation of binomial probabilities" (2000). erfcx is the Chebyshev fit in (x - 3.75)/(x + 3.75)
of Shepherd and Laframboise (Math. Comp. 36, 1981), made anew for float32.
"""

# Triton reads the annotations of a kernel; only its compile-time constants have one.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import math

import triton
import triton.language as tl

from budgetctl.kernels.log_gamma_cdf import temme_coefficients

_SERIES_TERMS = tl.constexpr(32)
_FRACTION_TERMS = tl.constexpr(8)
_SADDLE = tl.constexpr(3.0)
_SHAPE = tl.constexpr(6.0)
_LOW = tl.constexpr(0.4)
_HIGH = tl.constexpr(2.2)
_HALF_LOG_TWO_PI = tl.constexpr(0.5 * math.log(2 * math.pi))
_TWO_PI = tl.constexpr(2 * math.pi)
_LEAST = tl.constexpr(1e-37)
_MOST = tl.constexpr(1e30)

#: (1 + 2x) erfcx(x) in powers of (x - 3.75) / (x + 3.75), constant first; relative error 1.3e-8.
_ERFCX = tl.constexpr(
    (
        1.23751262,
        -0.140240658,
        0.00358627039,
        0.08227842,
        -0.10881427,
        0.0922907696,
        -0.0586468587,
        0.0284092524,
        -0.00984449486,
        0.00167591222,
        0.000396307612,
        -0.000224116747,
    )
)
_ATANH = tl.constexpr(tuple(1 / (2 * k + 3) for k in range(10)))
_STIRLING = tl.constexpr((1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188))
_TEMME_0 = tl.constexpr(temme_coefficients(0, 11))
_TEMME_1 = tl.constexpr(temme_coefficients(1, 8))
_TEMME_2 = tl.constexpr(temme_coefficients(2, 6))
_TEMME_3 = tl.constexpr(temme_coefficients(3, 4))
_TEMME_4 = tl.constexpr(temme_coefficients(4, 2))


@triton.jit
def _polynomial(x, coefficients: tl.constexpr, degree: tl.constexpr):
    total = x * 0.0 + coefficients[degree]
    for i in tl.static_range(degree):
        total = total * x + coefficients[degree - 1 - i]
    return total


@triton.jit
def log1p(x):
    """log(1 + x) for x > -1."""
    u = 1.0 + x
    # Kahan: the rounding of 1 + x cancels in the quotient.
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def _stirling(a):
    """log Gamma(a) - ((a - 1/2) log a - a + log(2 pi)/2) for a >= 3 (DLMF 5.11.1)."""
    inverse = 1.0 / a
    return inverse * _polynomial(inverse * inverse, _STIRLING, 4)


@triton.jit
def _phi(mu, log_ratio):
    """mu - log(1 + mu), with log(1 + mu) given for where it is far from 0."""
    near = tl.minimum(tl.maximum(mu, -0.7), 1.5)
    r = tl.div_rn(near, 2.0 + near)
    square = r * r
    return tl.where(
        near == mu,
        r * (mu - 2.0 * square * _polynomial(square, _ATANH, 9)),
        mu - log_ratio,
    )


@triton.jit
def log_gamma_cdf(a, z):
    """log P(X <= z) of X ~ Gamma(a, 1), float32, at most 0 and finite; a from 1e-3 to 1e4, z any number.

    Its error is a few units of float32 in 1 + |log P| (docs/kernels.md).
    """
    z = tl.minimum(tl.maximum(z, _LEAST), _MOST)
    log_a, log_z = tl.log(a), tl.log(z)
    mu = tl.div_rn(z - a, a)
    phi = _phi(mu, log_z - log_a)
    large = tl.maximum(a, _SHAPE)
    inverse = tl.div_rn(1.0, large)

    # log D, for small shapes with log Gamma(a + 1) = log Gamma(a + 4) - log((a + 1) (a + 2) (a + 3)).
    small = tl.minimum(a, _SADDLE)
    product = (small + 1.0) * (small + 2.0) * (small + 3.0)
    moved = small + 4.0
    log_gamma = (moved - 0.5) * tl.log(moved) - moved + _HALF_LOG_TWO_PI + _stirling(moved) - tl.log(product)
    log_d = tl.where(
        a > _SADDLE,
        -a * phi - _HALF_LOG_TWO_PI - 0.5 * log_a - _stirling(tl.maximum(a, _SADDLE)),
        a * log_z - z - log_gamma,
    )

    border = 1.5 * a + 5.0
    low = tl.minimum(z, border)
    series = 1.0 + 0.0 * low
    for i in tl.static_range(_SERIES_TERMS):
        series = 1.0 + low / (a + (_SERIES_TERMS - i)) * series
    log_p = log_d + tl.log(series)

    high = tl.maximum(z, border)
    fraction = high - a + (2 * _FRACTION_TERMS + 1)
    for i in tl.static_range(_FRACTION_TERMS):
        n = _FRACTION_TERMS - i
        fraction = high - a + (2 * n - 1) + (a - n) * n / fraction
    beyond = tl.exp(tl.minimum(log_d + log_a, 80.0)) / fraction
    log_p = tl.where(z < border, log_p, tl.log(1.0 - tl.minimum(beyond, 0.9)))

    # Temme. eta^2 / 2 = phi, with the sign of mu.
    inside = tl.minimum(tl.maximum(mu, _LOW - 1.0), _HIGH - 1.0)
    phi = _phi(inside, inside)
    distance = tl.sqrt(2.0 * phi)
    eta = tl.where(inside < 0.0, -distance, distance)
    total = _polynomial(eta, _TEMME_4, 2)
    total = total * inverse + _polynomial(eta, _TEMME_3, 4)
    total = total * inverse + _polynomial(eta, _TEMME_2, 6)
    total = total * inverse + _polynomial(eta, _TEMME_1, 8)
    total = total * inverse + _polynomial(eta, _TEMME_0, 11)
    correction = total / tl.sqrt(large * _TWO_PI)
    x = distance * tl.sqrt(0.5 * large)
    erfcx = _polynomial((x - 3.75) / (x + 3.75), _ERFCX, 11) / (1.0 + 2.0 * x)
    tail = 0.5 * erfcx + tl.where(inside < 0.0, -correction, correction)
    log_tail = tl.log(tail) - large * phi
    uniform = tl.where(inside < 0.0, log_tail, tl.log(1.0 - tl.minimum(tl.exp(log_tail), 0.9)))
    log_p = tl.where((a > _SHAPE) & (inside == mu), uniform, log_p)
    return tl.minimum(log_p, 0.0)


@triton.jit
def log_gamma_cdf_kernel(shape, z, result, count, BLOCK: tl.constexpr):
    """``result`` [count] for float32 ``shape`` and ``z``, for tests and tables."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = log_gamma_cdf(
        tl.load(shape + at, mask=at < count, other=1.0), tl.load(z + at, mask=at < count, other=1.0)
    )
    tl.store(result + at, value, mask=at < count)
