"""The Matern correlation of any order, differentiable in distance, smoothness and length scale.

    M = 2^{1-nu} / Gamma(nu) z^nu K_nu(z),    z = sqrt(2 nu) r / l

The factors over- and underflow, and their logarithms nu log z, log K, log Gamma cancel: as nu
grows, as r -> 0, and everywhere in the derivatives. So each range has its own form:

z < 1/4, nu < 14    _series   1 - M from the power series of K, its poles at integer nu removed
z >= 1/4, nu < 14   _direct   the logarithms, which cancel little here
nu >= 14            _debye    the uniform expansion, with Gamma(nu) cancelled by hand
r = 0               _origin   1, with the exact one-sided derivatives in r

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
from typing import Any

import torch
from torch import Tensor

from ._arguments import _as_tensor, checked, memory_error
from ._bessel import log_kv
from ._masks import all_of

SMALL_Z = 0.25
LARGE_NU = 14.0
SERIES_TERMS = 6  # truncation below 1e-15 at z = SMALL_Z
# Terms of the uniform expansion that reach 1e-16 from an order on; 4e-16 with all of them.
DEBYE_TERMS = ((1e8, 1), (1e4, 3), (1e3, 4), (100, 7), (50, 9), (30, 11), (20, 14))
DEBYE_MOST_TERMS = 15
HUGE_NU = 1e15  # from here on the limit exp(-r^2 / 2 l^2) to rounding
BEYOND = 1e160  # its square is infinite
HUGE_DISTANCE = 1e100  # in length scales; the correlation is 0 long before


def matern(r: Any, nu: Any, lengthscale: Any = 1.0) -> Any:
    r"""General-order Matern correlation.

    .. math::
        M_\nu(r) = \frac{2^{1-\nu}}{\Gamma(\nu)} z^\nu K_\nu(z),
        \qquad z = \sqrt{2\nu}\, r / \ell

    nu = 1/2 is exp(-r/l), nu -> inf the Gaussian exp(-r^2 / 2 l^2).

    Parameters
    ----------
    r : Tensor, ndarray or float
        Distances, >= 0.
    nu : Tensor, ndarray or float
        Smoothness, > 0; inf is allowed.
    lengthscale : Tensor, ndarray or float
        Length scale, > 0.

    Returns
    -------
    Tensor or ndarray
        Of the broadcast shape and the promoted dtype; NumPy arrays and plain numbers give NumPy
        results.

    Raises
    ------
    TypeError
        A complex, boolean, sparse, nested or masked argument, or no number at all.
    ValueError
        Shapes that do not broadcast; tensors on two devices; a number beyond float64.
    MemoryError
        A result that does not fit.

    Notes
    -----
    Computed in float64 whatever the dtype. Outside the domain the value is NaN, and so are all
    derivatives. All three arguments have gradients, twice. The largest absolute error found
    against ball arithmetic is 8e-15 (6000 random points, 1e-3 <= nu <= 300), below nu = 14.
    Second derivatives lose digits to cancellation below nu = 14 where r is tiny beside l.

    At r = 0, where r / l underflows too, the derivatives are the limits from the right:

    ====================  ======  ===================  =================
    nu                    in r    in r twice           in r and nu
    ====================  ======  ===================  =================
    below 1/2             -inf    inf                  inf
    1/2                   -1/l    1/l^2                inf
    above 1/2, up to 1    0       -inf                 0
    above 1               0       -nu / (nu - 1) l^2   0
    ====================  ======  ===================  =================

    That in r and l is the one of the slope in r; those in nu and l alone are 0. In forward
    mode an infinite slope times a tangent of zero is NaN.

    Examples
    --------
    >>> import torch
    >>> from curvkern.special import matern
    >>> r = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    >>> print([round(m, 6) for m in matern(r, 0.7).tolist()])
    [1.0, 0.672018, 0.406182]
    """
    arguments = {"r": r, "nu": nu, "lengthscale": lengthscale}
    if not any(isinstance(a, Tensor) for a in arguments.values()):
        # Beside an array a number has no dtype, or the default length scale would be float64.
        numbers = {name for name, a in arguments.items() if type(a) in (int, float)} - {"r"}
        arrays = [
            a if name in numbers else _as_tensor("matern", name, a)
            for name, a in arguments.items()
        ]
        return matern(*arrays).numpy()[()]
    arguments = {name: checked("matern", name, a) for name, a in arguments.items()}
    device, shape = _common(arguments)
    try:
        wide = (
            torch.as_tensor(a, dtype=torch.float64, device=device) for a in arguments.values()
        )
        return _correlation(*wide).to(_promoted(*arguments.values()))
    except RuntimeError as error:
        raise memory_error("matern", shape, error) from None


def _promoted(*arguments: Any) -> torch.dtype:
    """torch's promotion of several arguments, integers to the default floating dtype."""
    probes = [
        a.new_empty((0,) * min(a.dim(), 1)) if isinstance(a, Tensor) else a for a in arguments
    ]
    total = probes[0] + probes[1] + probes[2]
    return total.dtype if total.is_floating_point() else torch.get_default_dtype()


def _common(arguments: dict[str, Any]) -> tuple[torch.device, torch.Size]:
    """The device, where numbers and 0-d CPU tensors follow the others, and the shape."""
    tensors = {name: a for name, a in arguments.items() if isinstance(a, Tensor)}
    movable = {name for name, t in tensors.items() if t.dim() == 0 and t.device.type == "cpu"}
    leader = next((name for name in tensors if name not in movable), next(iter(tensors)))
    device = tensors[leader].device
    for name in tensors.keys() - movable:
        other = tensors[name].device
        if other != device:
            raise ValueError(f"matern: {leader} is on {device} but {name} is on {other}")
    try:
        shape = torch.broadcast_shapes(*(t.shape for t in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"matern: shapes do not broadcast: {shapes}") from None
    return device, shape


def _correlation(r: Tensor, nu: Tensor, lengthscale: Tensor) -> Tensor:
    """M in float64: each form sees harmless arguments outside its own range."""
    distance = r / lengthscale
    valid = (r >= 0) & (nu > 0) & (lengthscale > 0) & (distance >= 0)
    bounded = valid & (distance < HUGE_DISTANCE)
    if not all_of(bounded):  # keep r / l^2 finite, or a gradient of zero times it is NaN
        distance = torch.where(bounded, r, HUGE_DISTANCE) / torch.where(
            bounded, lengthscale, 1.0
        )
    order = torch.where(nu > 0, nu, 1.0).clamp_max(HUGE_NU)
    z = torch.sqrt(2 * order) * distance

    smooth = valid & (order >= LARGE_NU)
    origin = valid & (distance == 0)
    near = valid & (z < SMALL_Z) & ~smooth & ~origin
    far = valid & ~(near | smooth | origin)
    rough_nu, smooth_nu = order.clamp_max(LARGE_NU), order.clamp_min(LARGE_NU)
    near_distance = SMALL_Z / torch.sqrt(2 * rough_nu.detach())
    zero = r - torch.where(origin, r, 0.0).detach()  # r may be positive where r / l underflows

    result = torch.ones_like(z)
    result = _fill(result, smooth, _debye, 1.0, distance, smooth_nu)
    result = _fill(result, near, _series, near_distance, distance, rough_nu)
    result = _fill(result, far, _direct, 1.0, z, rough_nu)
    result = _fill(result, origin, _origin, 1e-100, zero, order, lengthscale)
    if all_of(valid):
        return result
    return torch.where(valid, result, _outside(valid, r, nu, lengthscale))


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
    picked = (a if a.dim() == 0 else a.expand(mask.shape)[mask] for a in arguments)
    return result.masked_scatter(mask, form(*picked).expand(int(mask.sum())))


def _origin(r: Tensor, nu: Tensor, lengthscale: Tensor) -> Tensor:
    """M at r = 0, which is one, with its derivatives: the limits as r falls to 0.

    M = 1 - Gamma(1-nu)/Gamma(1+nu) (z/2)^{2 nu} - (z/2)^2 / (nu-1) + ...; where a limit is
    infinite what stands here has the same one. A product of two factors BEYOND has an infinite
    second derivative, and first ones that are zero and not zero times infinity.
    """
    half_z = r * torch.sqrt(nu / 2) / lengthscale
    bowl = half_z**2 / torch.where((nu > 1) | (nu == 0.5), nu - 1, torch.inf)
    steep, far_r = nu < 0.5, BEYOND * r
    cusp = torch.where(nu == 0.5, 2 * half_z, torch.where(nu <= 1, far_r * far_r, 0.0))
    cusp = torch.where(steep, torch.where(steep, r, 1.0) ** 0.75, cusp)
    length = lengthscale.clamp_max(HUGE_DISTANCE)
    moving = torch.where(steep, length - length.detach(), 0.0) + nu - nu.detach()
    twist = torch.where(nu <= 0.5, far_r * (BEYOND * moving), 0.0)
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
    for k in range(1, int(LARGE_NU)):
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
