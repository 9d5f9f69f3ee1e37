"""The Matern correlation and its first derivatives in ball arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flint import arb, ctx

BITS = 300


@contextmanager
def many_bits() -> Iterator[None]:
    """Inside, Arb computes with enough bits for the differences below."""
    before, ctx.prec = ctx.prec, BITS
    yield
    ctx.prec = before


def exact(r: float | arb, nu: float | arb) -> arb:
    r, nu = arb(r), arb(nu)
    z = (2 * nu).sqrt() * r
    return 2 * (z / 2) ** nu * z.bessel_k(nu) / nu.gamma()


def exact_derivatives(r: float | arb, nu: float | arb) -> tuple[float, float]:
    """In r and in nu, by central differences."""
    step = arb(2) ** -80
    r, nu = arb(r), arb(nu)
    in_r = (exact(r * (1 + step), nu) - exact(r * (1 - step), nu)) / (2 * step * r)
    in_nu = (exact(r, nu + step) - exact(r, nu - step)) / (2 * step)
    return float(in_r), float(in_nu)
