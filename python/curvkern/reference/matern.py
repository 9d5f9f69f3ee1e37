"""The Matern correlation of order nu at distance rho, in length scales, in plain PyTorch.

    M = 2^{1-nu} / Gamma(nu) z^nu K_nu(z),    z = sqrt(2 nu) rho

The factors over- and underflow, and their logarithms nu log z, log K, log Gamma cancel: as nu
grows, as rho -> 0, and everywhere in the derivatives. So each range has its own form:

z < 1/4, nu < 14    _series   1 - M from the power series of K, its poles at integer nu removed
z >= 1/4, nu < 14   _direct   the logarithms, which cancel little here
nu >= 14            _debye    the uniform expansion, with Gamma(nu) cancelled by hand
rho = 0             _origin   1, with the exact one-sided derivatives in rho

Computed in float64 and rounded to the type of the input at the end; second derivatives lose
digits below nu = 14 where rho is tiny.

References
----------
.. [1] M. Stein, "Interpolation of Spatial Data", Springer 1999, section 2.7.
.. [2] NIST DLMF, 10.27.4 and 10.25.2 (series), 10.41.4 and 10.41.9 (uniform expansion).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from .._masks import all_of
from .bessel import log_kv

SMALL_Z = 0.25
LARGE_ORDER = 14.0
SERIES_TERMS = 6  # truncation below 1e-15 at z = SMALL_Z
# Terms of the uniform expansion that reach 1e-16 from an order on; 4e-16 with all of them.
DEBYE_TERMS = ((1e8, 1), (1e4, 3), (1e3, 4), (100, 7), (50, 9), (30, 11), (20, 14))
DEBYE_MOST_TERMS = 15
HUGE_ORDER = 1e15  # from here on the limit exp(-rho^2 / 2) to rounding
BEYOND = 1e160  # its square is infinite
HUGE_DISTANCE = 1e100  # the correlation is 0 long before


def matern(nu: Tensor, rho: Tensor) -> Tensor:
    """M of two tensors of one shape and dtype."""
    return _correlation(nu.double(), rho.double()).to(rho.dtype)


def _correlation(nu: Tensor, rho: Tensor) -> Tensor:
    """Each form sees harmless arguments outside its own range."""
    valid = (rho >= 0) & (nu > 0)
    distance = torch.where(valid & (rho < HUGE_DISTANCE), rho, HUGE_DISTANCE)
    order = torch.where(nu > 0, nu, 1.0).clamp_max(HUGE_ORDER)
    z = torch.sqrt(2 * order) * distance

    smooth = valid & (order >= LARGE_ORDER)
    origin = valid & (distance == 0)
    near = valid & (z < SMALL_Z) & ~smooth & ~origin
    far = valid & ~(near | smooth | origin)
    rough_nu, smooth_nu = order.clamp_max(LARGE_ORDER), order.clamp_min(LARGE_ORDER)
    near_distance = SMALL_Z / torch.sqrt(2 * rough_nu.detach())

    result = torch.ones_like(z)
    result = _fill(result, smooth, _debye, 1.0, distance, smooth_nu)
    result = _fill(result, near, _series, near_distance, distance, rough_nu)
    result = _fill(result, far, _direct, 1.0, z, rough_nu)
    result = _fill(result, origin, _origin, 1e-100, distance, order)
    if all_of(valid):
        return result
    return torch.where(valid, result, _outside(valid, rho, nu))


def _outside(valid: Tensor, *arguments: Tensor) -> Tensor:
    """NaN outside the domain, with NaN for all derivatives there and 0 for those inside."""
    total = functools.reduce(torch.add, (torch.where(valid, 0.0, a) for a in arguments))
    return torch.exp(torch.where(valid, 0.0, torch.nan) * total)


def _fill(
    result: Tensor,
    mask: Tensor,
    form: Callable[..., Tensor],
    safe: Tensor | float,
    *arguments: Tensor,
) -> Tensor:
    """`result` with form(*arguments) where the mask holds, evaluated nowhere else if possible.

    Where the mask cannot be looked at the first argument is `safe` outside it.
    """
    if all_of(mask):
        return form(*arguments)
    nowhere = all_of(~mask)
    if nowhere is None:
        first = torch.where(mask, arguments[0], safe)
        return torch.where(mask, form(first, *arguments[1:]), result)
    if nowhere:
        return result
    picked = (a[mask] for a in arguments)
    return result.masked_scatter(mask, form(*picked))


def _origin(rho: Tensor, nu: Tensor) -> Tensor:
    """M at rho = 0, which is one, with its derivatives: the limits as rho falls to 0.

    M = 1 - Gamma(1-nu)/Gamma(1+nu) (z/2)^{2 nu} - (z/2)^2 / (nu-1) + ...; where a limit is
    infinite what stands here has the same one. It comes from products of two factors BEYOND: a
    power of rho with an infinite slope would make its own derivatives zero times infinity
    wherever it meets a cotangent or tangent of zero.
    """
    half_z = rho * torch.sqrt(nu / 2)
    bowl = half_z**2 / torch.where((nu > 1) | (nu == 0.5), nu - 1, torch.inf)
    far = BEYOND * rho
    cusp = torch.where(nu == 0.5, 2 * half_z, torch.where(nu <= 1, far * far, 0.0))
    cusp = torch.where(nu < 0.5, BEYOND * far - far * far, cusp)
    twist = torch.where(nu <= 0.5, far * (BEYOND * (nu - nu.detach())), 0.0)
    return 1 - cusp - bowl + twist


def _direct(z: Tensor, nu: Tensor) -> Tensor:
    scale = torch.log(torch.full_like(nu, 2.0)) - torch.lgamma(nu)
    return torch.exp(log_kv(nu, z) + nu * torch.log(z / 2) + scale)


def _series(distance: Tensor, nu: Tensor) -> Tensor:
    """1 - M from the power series of K_nu; n = round(nu) >= 1, delta = nu - n.

    q     = z^2 / 4 = nu (r/l)^2 / 2
    1 - M = - sum_{0<k<n} q^k / (k! (1-nu)_k) + 1 / prod_{k<n} (k - nu)
            * sum_i q^{n+i} / ((n+i)! (1-delta)_i) (1 - exp(delta h_i)) / delta
    h_i   = log q + g_i
    g_i   = ([log Gamma]_{1+i}^{1+i-delta} - [log Gamma]_{n+1+i}^{n+1+i+delta}) / delta

    The second sum joins term n + i of the series of I_{-nu} with term i of that of I_nu: each
    has a pole where nu = n, their difference has none.
    """
    n = torch.round(nu.detach()).clamp_min(1)
    delta = nu - n
    log_q = 2 * torch.log(distance) + torch.log(nu / 2)  # z itself may underflow
    q = torch.exp(log_q)

    total, power = torch.zeros_like(q), torch.ones_like(q)
    product, coefficient = torch.ones_like(nu), torch.ones_like(nu)
    for k in range(1, int(LARGE_ORDER)):
        factor = torch.where(k < n, k - nu, 1.0)
        product = product * factor
        if k < 8:  # q^8 / 8! is below 1e-19
            coefficient = coefficient / (k * factor)
            power = power * q
            total = total - torch.where(k < n, coefficient, 0.0) * power

    rising = torch.ones_like(nu)
    for i in range(SERIES_TERMS):
        if i:
            rising = rising * (i - delta)
        weight = torch.exp(-torch.lgamma(n + i + 1)) / (product * rising)
        g = _gamma_quotient(i, n, delta)
        total = total - weight * _joined(log_q, n + i, delta, g)
    return 1 - total


def _gamma_quotient(i: int, n: Tensor, delta: Tensor) -> Tensor:
    """g_i of the series; near delta = 0 by Taylor's formula for log Gamma,

    log Gamma(x + t) = log Gamma(x) + t psi(x) + sum_{m>1} (-t)^m zeta(m, x) / m
    """
    low, high = torch.full_like(n, 1.0 + i), n + 1 + i
    small = delta.abs() < 0.02
    d = torch.where(small, 1.0, delta)
    rise = torch.lgamma(high + d) - torch.lgamma(high)
    plain = (torch.lgamma(low - d) - torch.lgamma(low) - rise) / d
    t = torch.where(small, delta, 0.0)
    taylor, power = -torch.digamma(low) - torch.digamma(high), torch.ones_like(delta)
    for m in range(2, 10):
        power = power * t
        zetas = torch.special.zeta(m, low) - (-1) ** m * torch.special.zeta(m, high)
        taylor = taylor + power * zetas / m
    return torch.where(small, taylor, plain)


def _joined(log_q: Tensor, k: Tensor, delta: Tensor, g: Tensor) -> Tensor:
    """q^k (exp(a) - 1) / delta with a = delta (log q + g): finite as delta -> 0 or q -> 0."""
    h = log_q + g
    a = delta * h
    large, tiny = a.abs() > 1, a.abs() < 1e-3
    q_k = torch.exp(k * log_q)
    safe = torch.where(large | tiny, 0.5, a)
    quotient = torch.where(
        tiny, 1 + a / 2 * (1 + a / 3 * (1 + a / 4)), torch.expm1(safe) / safe
    )
    grown = torch.exp(torch.where(large, (k + delta) * log_q + delta * g, 0.0))
    apart = (grown - q_k) / torch.where(large, delta, 1.0)
    return torch.where(large, apart, q_k * torch.where(large, 1.0, h * quotient))


def _debye(distance: Tensor, nu: Tensor) -> Tensor:
    """log M = nu (log(1 + y/2) - y) - 1/4 log(1 + w) + log(S(t) / S(1)): nothing cancels.

    w = 2 (r/l)^2 / nu,  1 + y = sqrt(1 + w) = 1/t,  S(t) = sum_k (-1)^k u_k(t) / nu^k.
    Gamma(nu) is gone with S(1), Stirling's series; what is left tends to -(r/l)^2 / 2.
    """
    w = 2 * distance**2 / nu
    root = torch.sqrt(1 + w)
    y, t = w / (1 + root), 1 / root
    enough = (count for order, count in DEBYE_TERMS if all_of(nu >= order))
    terms = next(enough, DEBYE_MOST_TERMS)
    powers = [torch.ones_like(nu)]
    for _ in range(terms):
        powers.append(-powers[-1] / nu)
    coefficients = [
        functools.reduce(
            torch.add, (c * powers[k] for k, c in row if k <= terms), torch.zeros_like(nu)
        )
        for row in DEBYE_ROWS
    ]
    # (S(1) - S(t)) / (1 - t) by synthetic division: its coefficients are partial sums.
    *partial, at_one = itertools.accumulate(reversed(coefficients))
    quotient = functools.reduce(lambda total, c: total * t + c, partial)
    return torch.exp(
        nu * (torch.log1p(y / 2) - y)
        - torch.log1p(w) / 4
        + torch.log1p(-y * t * quotient / at_one)
    )


def _debye_rows(terms: int) -> list[list[tuple[int, float]]]:
    """Row j holds the pairs (k, coefficient of t^j in u_k).

    u_{k+1} = t^2 (1 - t^2) u_k' / 2 + 1/8 int_0^t (1 - 5 s^2) u_k ds, in exact arithmetic.
    """
    u = [Fraction(1)]
    rows: list[list[tuple[int, float]]] = [[] for _ in range(3 * terms + 1)]
    for k in range(terms + 1):
        for j, c in enumerate(u):
            if c:
                rows[j].append((k, float(c)))
        following = [Fraction(0)] * (len(u) + 3)
        for j, c in enumerate(u):
            following[j + 1] += c * (Fraction(j, 2) + Fraction(1, 8 * (j + 1)))
            following[j + 3] -= c * (Fraction(j, 2) + Fraction(5, 8 * (j + 3)))
        u = following
    return rows


DEBYE_ROWS = _debye_rows(DEBYE_MOST_TERMS)
