"""Scalar mathematics of the von Mises-Fisher law: functions of its concentration.

On the unit sphere of R^d, with v = d/2 - 1, the density relative to the uniform law is
exp(kappa mu.x - F(kappa)), where F(kappa) = log 0F1(; v + 1; kappa^2 / 4). Everything else follows:

    A = F'            mean resultant length, I_{v+1}(kappa) / I_v(kappa)
    A' = F''          variance of mu.x
    G = kappa - F     deficit, what remains of F where kappa is large
    D(b, a) = F(b) - F(a) - (b - a) A(a)      Bregman divergence, the KL of two laws with one mean

Written down directly, 1 - A, A', D and kappa A - F all cancel somewhere, down to no digit at all.
Here each has a form for each range that does not. All functions take float64 tensors: they work on the
batch shape, not on the data, so the cost is small whatever the dtype of the data.

References
----------
.. [1] W. Gautschi, J. Slavik, "On the computation of modified Bessel function ratios",
   Math. Comp. 32 (1978): Perron's continued fraction.
.. [2] K. Hornik, B. Gruen, "On maximum likelihood estimation of the concentration parameter of von
   Mises-Fisher distributions", Comput. Stat. 29 (2014): the bracket of the solution.
.. [3] G. Ulrich, "Computer generation of distributions on the m-sphere", Appl. Stat. 33 (1984) and
   A. Wood, "Simulation of the von Mises Fisher distribution", Commun. Stat. 23 (1994).
.. [4] M. Figurnov, S. Mohamed, A. Mnih, "Implicit reparameterization gradients", NeurIPS 2018.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import special

GAUSS_STEPS = 24  # Gauss's fraction; A^2 < 0.62 where it is used, so its seed weighs below 1e-5
PERRON_STEPS = 30  # Perron's fraction; truncation below 1e-17 from kappa = max(2d, 20) on
NEWTON_STEPS = 30  # 4 to 6 are taken; the rest is the safeguard's
QUADRATURE_NODES = 40


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

    1 - A = y (2u - t_1) / (1 + y (2u - t_1)),   t_k = (2u + 2k - 1) / (2 + y (2u + k - t_{k+1})),
    u = v + 1 [1]_.
    """
    u, y = v + 1, 1 / x
    t = torch.full_like(x, u + PERRON_STEPS)
    dt = torch.zeros_like(x)
    for k in range(PERRON_STEPS, 0, -1):
        rest = 2 * u + k - t
        base = 2 + y * rest
        t, dt = (2 * u + 2 * k - 1) / base, (2 * u + 2 * k - 1) * (y * dt - rest) / (base * base)
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
    nodes, weights = _gauss_legendre(12, b)
    path = a[..., None] + torch.where(near, step, 0)[..., None] * nodes
    remainder = step**2 * (resultant(path, dim).slope * (1 - nodes) * weights).sum(-1)
    at_a = resultant(a, dim)
    difference = torch.where(
        torch.maximum(a, b) <= _large(dim),
        log_hyp(b, dim) - log_hyp(a, dim) - step * at_a.mean,
        deficit(a, dim) - deficit(b, dim) + step * at_a.complement,
    )
    return torch.where(near, remainder, difference)


def solve(rbar: Tensor, complement: Tensor, dim: int) -> Tensor:
    """Concentration with A(kappa) = rbar, where `complement` = 1 - rbar to its own accuracy.

    Newton's method on log kappa from Hornik and Gruen's bracket [2]_. Which of A and 1 - A is compared
    depends on rbar, so no digit is lost at either end. Two last steps with a constant slope enter the
    graph: the first gives kappa the right first derivative, the second the right second one.
    """
    upper_half = rbar > 0.5

    def residual(kappa: Tensor, at: Resultant) -> Tensor:
        return torch.where(upper_half, complement - at.complement, at.mean - rbar)

    with torch.no_grad():
        kappa, low, high = _bracket(rbar, complement, dim)
        for _ in range(NEWTON_STEPS):
            at = resultant(kappa, dim)
            miss = residual(kappa, at)
            low = torch.where(miss < 0, kappa, low)
            high = torch.where(miss > 0, kappa, high)
            step = kappa * torch.exp(-miss / (kappa * at.slope))
            step = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
            done = (step - kappa).abs() <= 1e-15 * kappa
            kappa = step
            if bool((done | ~torch.isfinite(kappa) | (kappa == 0)).all()):
                break
        slope = resultant(kappa, dim).slope
    if not (torch.is_grad_enabled() and (rbar.requires_grad or complement.requires_grad)):
        return kappa
    finite = torch.isfinite(kappa)
    result = torch.where(finite, kappa, 1.0)
    for _ in range(2):
        result = result - residual(result, resultant(result, dim)) / torch.where(finite, slope, 1.0)
    return torch.where(finite, result, kappa)


def _bracket(rbar: Tensor, complement: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Start, lower and upper bound of the solution; the start is a bound too, within 20 %."""
    alpha = (dim - 1) / 2
    spread = complement * (1 + rbar)  # 1 - rbar^2

    def inverse(beta2: float) -> Tensor:
        """Where kappa / (alpha + sqrt(kappa^2 + beta^2)) equals rbar."""
        return rbar * (alpha + torch.sqrt((rbar * alpha) ** 2 + spread * beta2)) / spread

    low, high = inverse(alpha * (alpha + 1)), inverse((alpha + 1) ** 2)
    return high, low * (1 - 1e-14), high * (1 + 1e-14)


@functools.cache
def _legendre_table(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return tuple((nodes + 1) / 2), tuple(weights / 2)


def _gauss_legendre(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = _legendre_table(count)
    return like.new_tensor(nodes), like.new_tensor(weights)


def sample_angle(kappa: Tensor, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Angle between mean direction and sample, for a 1-D tensor of concentrations.

    Ulrich's rejection scheme as corrected by Wood [3]_. With z/(1-z) a ratio of two gamma variables the
    proposal is tan^2(theta/2) = b z / (1 - z), so neither 1 - cos(theta) nor its constant
    b = (-2 kappa + sqrt(4 kappa^2 + (d-1)^2)) / (d-1) is left with a difference of near numbers.
    At least about 2/3 of the proposals are accepted, whatever d and kappa.
    """
    m = dim - 1
    theta = torch.empty_like(kappa)
    todo = torch.arange(kappa.numel(), device=kappa.device)
    while todo.numel():
        k = kappa[todo]
        b = m / (2 * k + torch.hypot(2 * k, k.new_tensor(m)))
        p = 2 * b / (1 + b)  # 1 - x_0 in Wood's notation
        gamma = torch._standard_gamma(k.new_full((2, k.numel()), m / 2), generator=generator)
        tan2 = b * gamma[0] / gamma[1]
        q = 2 / (1 + 1 / tan2)  # 1 - cos(theta)
        log_ratio = k * (p - q) + m * torch.log1p((q - p) * (1 - p) / (p * (2 - p)))
        reject = log_ratio + torch.empty_like(k).exponential_(generator=generator) < 0
        accept = ~reject  # holds for NaN too, or a NaN concentration would never end
        theta[todo[accept]] = 2 * torch.atan(torch.sqrt(tan2[accept]))
        todo = todo[reject]
    return theta


def angle_slope(theta: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """d theta / d kappa at a fixed value of the distribution function, [4]_ equation (5).

    With f(s) ~ exp(kappa cos s) sin(s)^(d-2) it is the integral of (cos s - A) f(s) / f(theta) over the
    tail on theta's side of the mode, by Gauss-Legendre up to 14 standard deviations.
    """
    nodes, weights = _gauss_legendre(QUADRATURE_NODES, theta)
    theta = theta.clamp(1e-100, math.pi - 1e-15)
    n = dim - 2
    root = torch.hypot(2 * kappa, kappa.new_tensor(n)) + n
    cos_mode = 2 * kappa / root.clamp_min(1e-300)
    sin2_mode = 2 * n / root.clamp_min(1e-300)
    curvature = kappa * cos_mode + (n / sin2_mode if n else 0)
    reach = 14 / torch.sqrt(curvature.clamp_min(1e-300))
    past_mode = torch.cos(theta) <= cos_mode
    end = torch.where(past_mode, (theta + reach).clamp_max(math.pi), (theta - reach).clamp_min(0))
    width = (end - theta)[..., None]
    s = theta[..., None] + width * nodes
    log_f = -2 * kappa[..., None] * torch.sin(theta[..., None] + width * nodes / 2) * torch.sin(
        width * nodes / 2
    )
    if n:
        log_f = log_f + n * torch.log(torch.sin(s) / torch.sin(theta)[..., None])
    lever = resultant(kappa, dim).complement[..., None] - 2 * torch.sin(s / 2) ** 2
    return (width * weights * lever * torch.exp(log_f)).sum(-1)


class ImplicitAngle(torch.autograd.Function):
    """Identity in theta that hands theta its implicit derivative with respect to kappa."""

    generate_vmap_rule = True

    @staticmethod
    def forward(theta: Tensor, kappa: Tensor, dim: int) -> Tensor:
        return theta.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, kappa, ctx.dim = inputs
        ctx.save_for_backward(output, kappa)
        ctx.save_for_forward(output, kappa)

    @staticmethod
    def backward(ctx, grad):
        theta, kappa = ctx.saved_tensors
        return None, grad * angle_slope(theta, kappa, ctx.dim), None

    @staticmethod
    def jvp(ctx, theta_t, kappa_t, _):
        theta, kappa = ctx.saved_tensors
        return kappa_t * angle_slope(theta, kappa, ctx.dim)
