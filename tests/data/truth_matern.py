"""The Matern correlation and its derivatives to any precision, by two formulas.

    M = 2^{1-nu}/Gamma(nu) z^nu K_nu(z),    z = sqrt(2 nu) rho

`arb` takes Arb's K in ball arithmetic, and central differences with steps of 2^-128 for all
derivatives: their truncation error is about 2^-256, their rounding error is part of the ball.
`integral` differentiates under the integral sign, with mpmath's trapezoidal rule:

    M = int exp E dt over the real line,  E = nu log(z/2) - log Gamma(nu) - z cosh t + nu t

Nothing is shared between the two, nor with curvkern.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
from flint import arb, ctx

VALUE, FIRST, SECOND = "value", ("dv", "dx"), ("dvv", "dvx", "dxx")
QUANTITIES = (VALUE, *FIRST, *SECOND)  # v is nu, x is rho
VALUE_BITS, SLOPE_BITS = 130, 80  # relative accuracy
MAX_PRECISION = 1 << 14


def correlation(nu: arb, rho: arb) -> arb:
    z = (2 * nu).sqrt() * rho
    return 2 * (z / 2) ** nu * z.bessel_k(nu) / nu.gamma()


def _balls(nu: float, rho: float) -> dict[str, arb]:
    v, x = arb(nu), arb(rho)
    h, k = v * arb(2) ** -128, x * arb(2) ** -128
    m = {(i, j): correlation(v + i * h, x + j * k) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    middle = m[0, 0]
    return {
        "value": middle,
        "dv": (m[1, 0] - m[-1, 0]) / (2 * h),
        "dx": (m[0, 1] - m[0, -1]) / (2 * k),
        "dvv": (m[1, 0] - 2 * middle + m[-1, 0]) / (h * h),
        "dvx": (m[1, 1] - m[1, -1] - m[-1, 1] + m[-1, -1]) / (4 * h * k),
        "dxx": (m[0, 1] - 2 * middle + m[0, -1]) / (k * k),
    }


def _narrow(name: str, ball: arb) -> bool:
    bits = VALUE_BITS if name == VALUE else SLOPE_BITS
    return ball.is_finite() and ball.rel_accuracy_bits() >= bits


def balls(nu: float, rho: float) -> dict[str, arb]:
    """A narrow ball for every name in QUANTITIES."""
    return _narrowed(lambda: _balls(nu, rho), (nu, rho))


def value(nu: float, rho: float) -> arb:
    """A narrow ball for the value alone, also where its derivatives overflow everything."""
    return _narrowed(lambda: {VALUE: correlation(arb(nu), arb(rho))}, (nu, rho))[VALUE]


def _narrowed(compute: Callable[[], dict[str, arb]], at: object) -> dict[str, arb]:
    before = ctx.prec
    try:
        ctx.prec = 512
        while ctx.prec <= MAX_PRECISION:
            found = compute()
            if all(_narrow(name, ball) for name, ball in found.items()):
                return found
            ctx.prec *= 2
    finally:
        ctx.prec = before
    raise ArithmeticError(f"{MAX_PRECISION} bits are too few for (nu, rho) = {at}")


def integral(nu: float, rho: float, digits: int = 50) -> dict[str, mp.mpf]:
    """The same numbers from the integral of exp E and of its derivatives."""
    with mp.workdps(digits + 10):
        v, x = mp.mpf(nu), mp.mpf(rho)
        z = mp.sqrt(2 * v) * x
        centre = mp.asinh(v / z)
        constant = v * mp.log(z / 2) - mp.loggamma(v)
        in_order = mp.log(z / 2) + mp.mpf(1) / 2 - mp.digamma(v)
        curve = 1 / (2 * v) - mp.psi(1, v)
        peak = v * centre - z * mp.cosh(centre)
        step = min(mp.mpf("0.25") * (v * v + z * z) ** mp.mpf("-0.25"), mp.mpf("0.04"))
        total = dict.fromkeys(QUANTITIES, mp.mpf(0))
        for direction in (1, -1):
            n = 0 if direction == 1 else 1
            while True:
                t = centre + direction * n * step
                cosh = mp.cosh(t)
                exponent = v * t - z * cosh
                if exponent - peak < -mp.log(10) * (digits + 20):
                    break
                weight = step * mp.exp(constant + exponent)
                e_v, e_x = in_order - z / (2 * v) * cosh + t, (v - z * cosh) / x
                e_vv, e_vx = curve + z / (4 * v * v) * cosh, (1 - z / (2 * v) * cosh) / x
                for name, factor in (
                    ("value", 1),
                    ("dv", e_v),
                    ("dx", e_x),
                    ("dvv", e_vv + e_v * e_v),
                    ("dvx", e_vx + e_v * e_x),
                    ("dxx", e_x * e_x - v / (x * x)),
                ):
                    total[name] += weight * factor
                n += 1
        return total
