"""Scalar mathematics of the von Mises-Fisher law: functions of its concentration.

On the unit sphere of R^d, with v = d/2 - 1, the density relative to the uniform law is
exp(kappa mu.x - F(kappa)) with F(kappa) = log 0F1(; v + 1; kappa^2 / 4). All else follows:

    A = F'            mean resultant length, I_{v+1}(kappa) / I_v(kappa)
    A' = F''          variance of mu.x
    G = kappa - F     deficit, what remains of F where kappa is large
    D(b, a) = F(b) - F(a) - (b - a) A(a)    Bregman divergence, the KL of laws with one mean

Written down directly, 1 - A, A', D and kappa A - F all cancel somewhere, down to no digit at
all. Here each has, for each range, a form that does not. All functions take float64 tensors:
they work on the batch shape, not on the data, so the cost is small whatever the dtype of the
data.

References
----------
.. [1] W. Gautschi, J. Slavik, "On the computation of modified Bessel function ratios",
   Math. Comp. 32 (1978): Perron's continued fraction.
.. [2] K. Mardia, P. Jupp, "Directional Statistics", Wiley 2000, sections 9.3 and 10.3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import special
from .._masks import all_of

GAUSS_STEPS = 24  # Gauss's fraction; A^2 < 0.62 where it is used, so its seed weighs below 1e-5
PERRON_STEPS = 30  # Perron's fraction; truncation below 1e-17 from kappa = max(2d, 20) on


class Resultant(NamedTuple):
    """A, 1 - A, A / kappa and dA / dkappa, each to its own relative accuracy."""

    mean: Tensor
    complement: Tensor
    quotient: Tensor
    slope: Tensor


def order(dim: int) -> float:
    """Order v of the Bessel function that belongs to dimension `dim`."""
    return dim / 2 - 1


def log_area(dim: int) -> float:
    """Logarithm of the area of the unit sphere of R^dim, 2 pi^(dim/2) / Gamma(dim/2)."""
    if dim < 300:
        return math.log(2 * math.pi ** (dim / 2) / math.gamma(dim / 2))
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def _large(dim: int) -> float:
    """Concentration above which kappa rules the dimension, and 1 - A < 1/4."""
    return max(2.0 * dim, 20.0)


def resultant(kappa: Tensor, dim: int) -> Resultant:
    """Mean resultant length and its kin, by the continued fraction that suits each kappa."""
    cut = _large(dim)
    small = kappa <= cut
    if all_of(small):
        return _resultant_gauss(kappa, order(dim))
    low = _resultant_gauss(torch.where(small, kappa, cut), order(dim))
    high = _resultant_perron(torch.where(small, cut, kappa), order(dim))
    return Resultant(*(torch.where(small, a, b) for a, b in zip(low, high, strict=True)))


def _resultant_gauss(x: Tensor, v: float) -> Resultant:
    """Gauss's fraction, downwards in the order: q = A / x and s = A' contract with A^2 a step.

    q_m = 1 / (2(m+1) + x^2 q_{m+1}),   s_m = q_m^2 (2(m+1) - x^2 s_{m+1})
    """
    x2 = x * x
    m = v + GAUSS_STEPS
    q = 1 / (2 * (m + 1) + x * special.iv_ratio(m + 1, x))
    s = 1 - x2 * q * q - (2 * m + 1) * q  # Riccati's equation, absolute accuracy only
    for _ in range(GAUSS_STEPS):
        m -= 1
        q = 1 / (2 * (m + 1) + x2 * q)
        s = q * q * (2 * (m + 1) - x2 * s)
    mean = x * q
    return Resultant(mean, (s + (2 * v + 1) * q) / (1 + mean), q, s)


def _resultant_perron(x: Tensor, v: float) -> Resultant:
    """Perron's fraction for 1 - A, in y = 1 / x, with its derivative carried along.

    1 - A = y (2u - t_1) / (1 + y (2u - t_1)),   t_k = (2u + 2k - 1) / (2 + y (2u + k -
    t_{k+1})), u = v + 1 [1]_.
    """
    u, y = v + 1, 1 / x
    t = torch.full_like(x, u + PERRON_STEPS)
    dt = torch.zeros_like(x)
    for k in range(PERRON_STEPS, 0, -1):
        rest = 2 * u + k - t
        base = 2 + y * rest
        t, dt = (
            (2 * u + 2 * k - 1) / base,
            (2 * u + 2 * k - 1) * (y * dt - rest) / (base * base),
        )
    rest = 2 * u - t
    base = 1 + y * rest
    mean = 1 / base
    return Resultant(mean, y * rest / base, y * mean, y * y * (rest - y * dt) / (base * base))


def log_hyp(kappa: Tensor, dim: int) -> Tensor:
    """F(kappa), the logarithm of E exp(kappa mu.x) under the uniform law."""
    return special.log_hyp0f1(order(dim), kappa)


def deficit(kappa: Tensor, dim: int) -> Tensor:
    """G(kappa) = kappa - F(kappa) >= 0, which grows like (d - 1) / 2 log kappa only."""
    v, cut = order(dim), _large(dim)
    small = kappa <= cut
    low, high = torch.where(small, kappa, cut), torch.where(small, cut, kappa)
    return torch.where(
        small,
        low - log_hyp(low, dim),
        v * torch.log(high / 2) - math.lgamma(v + 1) - special.log_ive(v, high),
    )


def kl_uniform(kappa: Tensor, dim: int) -> Tensor:
    """KL(vMF || uniform) = kappa A - F = G - kappa (1 - A)."""
    small = kappa <= _large(dim)
    low, high = torch.where(small, kappa, 0), torch.where(small, _large(dim), kappa)
    return torch.where(
        small,
        low * resultant(low, dim).mean - log_hyp(low, dim),
        deficit(high, dim) - high * resultant(high, dim).complement,
    )


def bregman(b: Tensor, a: Tensor, dim: int) -> Tensor:
    """D(b, a) = F(b) - F(a) - (b - a) A(a) >= 0.

    Where a and b are within a factor of two, the remainder integral
    (b - a)^2 int_0^1 (1 - u) A'(a + u (b - a)) du keeps all digits.
    """
    b, a = torch.broadcast_tensors(b, a)
    step = b - a
    near = step.abs() <= torch.minimum(a, b)
    nodes, weights = gauss_legendre(12, b)
    path = a[..., None] + torch.where(near, step, 0)[..., None] * nodes
    remainder = step**2 * (resultant(path, dim).slope * (1 - nodes) * weights).sum(-1)
    at_a = resultant(a, dim)
    difference = torch.where(
        torch.maximum(a, b) <= _large(dim),
        log_hyp(b, dim) - log_hyp(a, dim) - step * at_a.mean,
        deficit(a, dim) - deficit(b, dim) + step * at_a.complement,
    )
    return torch.where(near, remainder, difference)


def _legendre_table(count: int) -> tuple[list[float], list[float]]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


LEGENDRE = {count: _legendre_table(count) for count in (12, 40)}  # torch.compile cannot make it


def gauss_legendre(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], for a count in the table."""
    nodes, weights = LEGENDRE[count]
    return like.new_tensor(nodes), like.new_tensor(weights)
