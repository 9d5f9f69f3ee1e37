"""The log-Bessel functions in plain PyTorch, differentiable in the order and the argument.

Three expansions cover the quarter plane v >= 0, x > 0. With r = sqrt(v^2 + x^2):

* r >= 25: the uniform (Debye) expansion, DLMF 10.41, written in 1/r and (v/r)^2 instead of 1/v
  and v/r. In this form it holds down to v = 0, where it is Hankel's expansion.
* below, I_v: the power series, DLMF 10.25.2.
* below, K_v: Temme's series (J. Comput. Phys. 19, 1975) for x < 2, and the trapezoid rule on
  ``int_0^inf exp(-x cosh t) cosh(v t) dt`` for the rest.

Plesner, Sørensen and Hauberg (arXiv 2409.08729) choose between the same kinds of expansion.
Everything is computed in float64 and rounded to the type of the input at the end.
tests/test_reference.py holds the accuracy: about 1e-14 max(1, |log|) + 1e-15 max(v, x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._coefficients import DEBYE, RECIPROCAL_GAMMA, STIRLING

Formula = Callable[[Tensor, Tensor], Tensor]

_INF = math.inf
_LOG_2 = math.log(2.0)
_UNIFORM_FROM = 25.0
_NODES = 32


class _Limits(NamedTuple):
    """Values at the border of the domain; None: the formulas are right there."""

    origin: float | None  # x = 0, v = 0
    zero: float | None  # x = 0, v > 0
    far: float  # x -> inf
    steep: float  # v -> inf


class _Region(NamedTuple):
    """Where a formula is used; regions are tried in order, the first that holds wins."""

    holds: Callable[[Tensor, Tensor, Tensor], Tensor]  # of v, x, r
    formula: Formula
    inside: tuple[float, float]  # some (v, x) at which the formula is finite


def log_iv(v: Tensor, x: Tensor) -> Tensor:
    """Logarithm of I_v(x)."""
    regions = _i_regions(
        lambda n: lambda v, x: _series_log(v, x, n),
        lambda n: lambda v, x: _Uniform(v, x, n).log_ive() + x,
    )
    return _evaluate(regions, v, x, _Limits(0.0, -_INF, _INF, -_INF))


def log_kv(v: Tensor, x: Tensor) -> Tensor:
    """Logarithm of K_v(x)."""
    regions = _k_regions(
        lambda v, x: _temme(v, x)[0],
        lambda v, x: _integral(v, x).log() - x,
        lambda n: lambda v, x: _Uniform(v, x, n).log_kve() - x,
    )
    return _evaluate(regions, v, x, _Limits(_INF, _INF, -_INF, _INF))


def log_ive(v: Tensor, x: Tensor) -> Tensor:
    """Logarithm of I_v(x) exp(-x)."""
    regions = _i_regions(
        lambda n: lambda v, x: _series_log(v, x, n) - x,
        lambda n: lambda v, x: _Uniform(v, x, n).log_ive(),
    )
    return _evaluate(regions, v, x, _Limits(0.0, -_INF, -_INF, -_INF))


def log_kve(v: Tensor, x: Tensor) -> Tensor:
    """Logarithm of K_v(x) exp(x)."""
    regions = _k_regions(
        lambda v, x: _temme(v, x)[0] + x,
        lambda v, x: _integral(v, x).log(),
        lambda n: lambda v, x: _Uniform(v, x, n).log_kve(),
    )
    return _evaluate(regions, v, x, _Limits(_INF, _INF, -_INF, _INF))


def iv_ratio(v: Tensor, x: Tensor) -> Tensor:
    """I_{v+1}(x) / I_v(x)."""

    def series(n: int) -> Formula:
        return lambda v, x: (
            x / (2 * (v + 1)) * (1 + _series_tail(v + 1, x, n)) / (1 + _series_tail(v, x, n))
        )

    regions = _i_regions(series, lambda n: lambda v, x: _Uniform(v, x, n).iv_ratio())
    return _evaluate(regions, v, x, _Limits(None, None, 1.0, 0.0))


def kv_ratio(v: Tensor, x: Tensor) -> Tensor:
    """K_{v+1}(x) / K_v(x)."""
    regions = _k_regions(
        lambda v, x: _temme(v, x)[1],
        lambda v, x: _integral(v, x, shift=1.0) / _integral(v, x),
        lambda n: lambda v, x: _Uniform(v, x, n).kv_ratio(),
    )
    return _evaluate(regions, v, x, _Limits(_INF, _INF, 1.0, _INF))


def log_hyp0f1(v: Tensor, x: Tensor) -> Tensor:
    """Logarithm of 0F1(; v+1; x^2/4) = Gamma(v+1) (2/x)^v I_v(x)."""
    regions = _i_regions(
        lambda n: lambda v, x: torch.log1p(_series_tail(v, x, n)),
        lambda n: lambda v, x: _Uniform(v, x, n).log_hyp0f1(),
    )
    return _evaluate(regions, v, x, _Limits(None, None, _INF, 0.0))


# ---- regions ---------------------------------------------------------------------------------


def _uniform_regions(formula: Callable[[int], Formula]) -> list[_Region]:
    return [
        _Region(lambda v, x, r: r >= 1000, formula(5), (800.0, 800.0)),
        _Region(lambda v, x, r: r >= 150, formula(8), (200.0, 200.0)),
        _Region(lambda v, x, r: r >= 60, formula(12), (80.0, 80.0)),
        _Region(lambda v, x, r: r >= _UNIFORM_FROM, formula(18), (30.0, 30.0)),
    ]


def _i_regions(
    series: Callable[[int], Formula], uniform: Callable[[int], Formula]
) -> list[_Region]:
    # the k-th term of the series is below (x^2/4)^k / (k! (v+1)^k), and below that over k!
    return [
        _Region(lambda v, x, r: x * x <= v + 1, series(11), (1.0, 0.5)),
        _Region(lambda v, x, r: x * (x / 16) <= v + 1, series(34), (1.0, 3.0)),
        *_uniform_regions(uniform),
        _Region(lambda v, x, r: r < _UNIFORM_FROM, series(50), (1.0, 10.0)),
    ]


def _k_regions(
    small: Formula, middle: Formula, uniform: Callable[[int], Formula]
) -> list[_Region]:
    return [
        *_uniform_regions(uniform),
        _Region(lambda v, x, r: x < 2, small, (0.75, 1.0)),
        _Region(lambda v, x, r: x >= 2, middle, (0.75, 3.0)),
    ]


def _evaluate(regions: Sequence[_Region], v: Tensor, x: Tensor, limits: _Limits) -> Tensor:
    """Each region's formula where it holds, the limits at the border, NaN outside."""
    v, x = torch.broadcast_tensors(v, x)
    dtype = torch.promote_types(v.dtype, x.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    shape = v.shape
    v, x = v.double().reshape(-1), x.double().reshape(-1)
    finite_v, finite_x = (v >= 0) & (v < _INF), (x >= 0) & (x < _INF)
    left = finite_v & finite_x
    out = torch.full_like(v, math.nan)
    out = torch.where(finite_v & (x == _INF), limits.far, out)
    out = torch.where(finite_x & (v == _INF), limits.steep, out)
    if limits.origin is not None and limits.zero is not None:
        out = torch.where(left & (x == 0), torch.where(v == 0, limits.origin, limits.zero), out)
        left = left & (x > 0)

    r = torch.hypot(v, x).detach()
    gather = _may_gather(v)
    for region in regions:
        here = left & region.holds(v, x, r)
        left = left & ~here
        if gather:
            index = here.nonzero().squeeze(-1)
            if index.numel():
                out = out.index_put((index,), region.formula(v[index], x[index]))
        else:
            # a formula outside its region may be infinite, and inf * 0 would spoil the gradient
            safe_v, safe_x = (
                torch.where(here, y, y0) for y, y0 in zip((v, x), region.inside, strict=True)
            )
            out = torch.where(here, region.formula(safe_v, safe_x), out)
    return out.reshape(shape).to(dtype)


def _may_gather(v: Tensor) -> bool:
    """Whether shapes may depend on data: not while compiling, not under vmap."""
    if torch.compiler.is_compiling():
        return False
    try:
        v.detach()[:0].nonzero()
    except RuntimeError:
        return False
    return True


# ---- the uniform expansion -------------------------------------------------------------------


class _Uniform:
    """DLMF 10.41.3-6 with u_k(t) / v^k = p_k(t^2) / r^k, where t = v / r.

    The ratios use DLMF 10.41.11, by which the series of the derivative differs from that of the
    function by x^2/r^3 times sum q_k(t^2) / r^k, q_k = (k + 1/2) p_k + 2 t^2 p_k'.
    """

    def __init__(self, v: Tensor, x: Tensor, terms: int) -> None:
        # a quarter of everything: r itself may overflow
        self.v, self.x, self.terms = v, x, terms
        self.v4, self.x4 = v / 4, x / 4
        self.r4 = torch.hypot(self.v4, self.x4)
        self.w = 0.25 / self.r4  # 1/r
        self.s = (self.v4 / self.r4) ** 2  # t^2
        self.rho = self.v4 / (self.r4 + self.x4)  # (r - x) / v

    def _sum(self, table: Sequence[Sequence[float]], sign: float) -> Tensor:
        total = torch.zeros_like(self.v)
        for polynomial in reversed(table[: self.terms]):
            total = total * (sign * self.w) + _horner(polynomial, self.s)
        return total

    def _exponent(self) -> Tensor:
        """v eta - x = (r - x) - v asinh(v/x)."""
        steep = self.v > self.x
        asinh = torch.where(
            steep,
            2 * ((self.r4 + self.v4).sqrt() / self.x4.sqrt()).log(),  # v/x may overflow
            torch.asinh(torch.where(steep, 1.0, self.v) / torch.where(steep, 1.0, self.x)),
        )
        return self.v * (self.rho - asinh)

    def _log_root(self) -> Tensor:
        """log sqrt(r)"""
        return 0.5 * (self.r4.log() + 2 * _LOG_2)

    def log_ive(self) -> Tensor:
        front = self._exponent() - self._log_root() - 0.5 * math.log(2 * math.pi)
        return front + self._sum(DEBYE.p, 1.0).log()

    def log_kve(self) -> Tensor:
        front = -self._exponent() - self._log_root() + 0.5 * math.log(math.pi / 2)
        return front + self._sum(DEBYE.p, -1.0).log()

    def _correction(self, sign: float) -> Tensor:
        """x/r^2 sum (+-1)^k q_k / r^k over sum (+-1)^k p_k / r^k."""
        return self.x * self.w * self.w * self._sum(DEBYE.q, sign) / self._sum(DEBYE.p, sign)

    def iv_ratio(self) -> Tensor:
        return self.x4 / (self.r4 + self.v4) - self._correction(1.0)

    def kv_ratio(self) -> Tensor:
        return 1 + self.v / self.x * (1 + self.rho) + self._correction(-1.0)

    def log_hyp0f1(self) -> Tensor:
        """log Gamma(v+1) by Stirling where v > 10, so that its large terms cancel by hand."""
        large = self.v > 10
        few = torch.where(large, 1.0, self.v)
        gamma = _log_gamma(few) - few * (self.x.log() - _LOG_2)
        direct = self.log_ive() + self.x + gamma
        many = torch.where(large, self.v, 20.0)
        rise = self.x * (self.x4 / (self.r4 + self.v4))  # r - v
        stirling = _horner(STIRLING, 1 / (many * many)) / many
        cancelled = (
            rise - many * torch.log1p(rise / (2 * many)) - 0.5 * torch.log1p(rise / many)
        )
        return torch.where(large, cancelled + stirling + self._sum(DEBYE.p, 1.0).log(), direct)


# ---- small r ---------------------------------------------------------------------------------


def _series_tail(v: Tensor, x: Tensor, terms: int) -> Tensor:
    """sum_{k >= 1} (x^2/4)^k / (k! (v+1)_k), nested from the last term inwards."""
    z = (x / 2) ** 2
    total = torch.ones_like(v)
    for k in range(terms, 1, -1):
        total = 1 + z * total / (k * (v + k))
    return z * total / (v + 1)


def _series_log(v: Tensor, x: Tensor, terms: int) -> Tensor:
    power = v * (x.log() - _LOG_2)
    return power - _log_gamma(v) + torch.log1p(_series_tail(v, x, terms))


def _log_gamma(v: Tensor) -> Tensor:
    """log Gamma(v+1); its derivatives by Stirling, below v = 10 through Gamma(v+11).

    torch.lgamma alone would do, were its second derivative torch.polygamma(1, .) not off by
    8e-10.
    """
    small = v < 10
    product = torch.ones_like(v)
    for j in range(1, 11):
        product = torch.where(small, product * (v + j), product)
    w = torch.where(small, v + 10, v)
    stirling = w * (w.log() - 1) + 0.5 * (w.log() + math.log(2 * math.pi))
    stirling = stirling + _horner(STIRLING, 1 / (w * w)) / w - product.log()
    nothing = (stirling - stirling.detach()).nan_to_num()  # inf - inf at v = 1e308
    return torch.lgamma(v + 1).detach() + nothing


def _temme(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """log K_v and K_{v+1} / K_v for x < 2.

    With v = mu + n, |mu| <= 1/2, K_mu comes from f = (p_k - q_k) / mu and s = p_k + q_k. Both
    are functions of m = mu^2, which keeps the derivative in v exact at v = 0.
    """
    n = v.detach().round()
    mu = v - n
    m = mu * mu
    length = _LOG_2 - x.log()
    angle = mu * length  # sigma
    near = angle.detach().abs() < 1
    wide = torch.where(near, 2.0, angle)
    small = torch.where(near, angle, 0.0)
    sinhc = torch.where(near, _horner(_SINHC, small * small), torch.sinh(wide) / wide)
    even = _horner(RECIPROCAL_GAMMA[0::2], m)  # Gamma_2
    odd = -_horner(RECIPROCAL_GAMMA[1::2], m)  # Gamma_1
    product = 1 / (even * even - m * odd * odd)  # pi mu / sin(pi mu)
    s = product * (even * torch.cosh(angle) + m * odd * length * sinhc)
    f = product * (odd * torch.cosh(angle) + even * length * sinhc)

    z = (x / 2) ** 2
    power = torch.ones_like(x)
    p = 0.5 * torch.exp(angle) / (even - mu * odd)
    low = f  # K_mu
    high = p  # (x/2) K_{mu+1}
    for k in range(1, 17):
        s, f = (k * s + m * f) / (k * k - m), (k * f + s) / (k * k - m)
        p = p / (k - mu)
        power = power * z / k
        low = low + power * f
        high = high + power * (p - k * f)

    # upwards with (x/2)^j K_{mu+j}, which neither overflows nor underflows
    for j in range(1, int(_UNIFORM_FROM) + 1):
        more = j <= n
        low, high = (
            torch.where(more, high, low),
            torch.where(more, (mu + j) * high + z * low, high),
        )
    return low.log() + n * length, high / low * 2 / x


def _integral(v: Tensor, x: Tensor, shift: float = 0.0) -> Tensor:
    """K_{v+shift}(x) exp(x) for 2 <= x, r < 25 by the trapezoid rule.

    Past t = asinh(v/x) + u the integrand has fallen by exp(-r (cosh u - 1)) from its peak.
    """
    with torch.no_grad():
        order = v + shift
        fall = torch.acosh(1 + 40 / torch.hypot(order, x))
        step = (torch.asinh(order / x) + fall) / _NODES
    total = torch.full_like(x, 0.5)
    for i in range(1, _NODES + 1):
        t = i * step
        decay = torch.exp(-2 * x * torch.sinh(t / 2) ** 2)
        total = total + decay * torch.cosh((v + shift) * t)
    return total * step


def _horner(coefficients: Sequence[float], y: Tensor) -> Tensor:
    total = torch.full_like(y, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * y + c
    return total


_SINHC = [1 / math.factorial(2 * k + 1) for k in range(10)]
