"""Samples on the sphere: the angle to the mean direction, its derivative, the way around.

References
----------
.. [1] G. Ulrich, "Computer generation of distributions on the m-sphere", Appl. Stat. 33 (1984);
   A. Wood, "Simulation of the von Mises Fisher distribution", Commun. Stat. 23 (1994).
.. [2] M. Figurnov, S. Mohamed, A. Mnih, "Implicit reparameterization gradients", NeurIPS 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._concentration import gauss_legendre, resultant

QUADRATURE_NODES = 40


def sample_angle(kappa: Tensor, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Angle between mean direction and sample, for a 1-D tensor of concentrations.

    Ulrich's rejection scheme as corrected by Wood [1]_. With z a symmetric beta variable the
    proposal is tan^2(theta/2) = b z / (1 - z), so neither 1 - cos(theta) nor the constant
    b = (-2 kappa + sqrt(4 kappa^2 + (d-1)^2)) / (d-1) subtracts near numbers.
    """
    m = dim - 1
    theta = torch.empty_like(kappa)
    todo = torch.arange(kappa.numel(), device=kappa.device)
    while todo.numel():
        k = kappa[todo]
        b = m / (2 * k + torch.hypot(2 * k, k.new_tensor(m)))
        p = 2 * b / (1 + b)  # 1 - x_0 in Wood's notation
        tan2 = b * _beta_odds(k, m, generator)
        q = 2 / (1 + 1 / tan2)  # 1 - cos(theta)
        log_ratio = k * (p - q) + m * torch.log1p((q - p) * (1 - p) / (p * (2 - p)))
        reject = log_ratio + torch.empty_like(k).exponential_(generator=generator) < 0
        accept = ~reject  # holds for NaN too, or a NaN concentration would never end
        theta[todo[accept]] = 2 * torch.atan(torch.sqrt(tan2[accept]))
        todo = todo[reject]
    return theta


def _beta_odds(like: Tensor, m: int, generator: torch.Generator | None) -> Tensor:
    """z / (1 - z) for z of the beta law with both parameters m/2.

    Ulrich's polar method [1]_: 2 z - 1 = s cos(phi) with s^2 = 1 - u^(2/(m-1)), u and phi
    uniform. The odds of the unlikely side are (1 - s^2 cos^2 phi) / (1 + s |cos phi|)^2, and
    the numerator is u^(2/(m-1)) + s^2 sin^2 phi.
    """
    u, turn = torch.rand(
        (2, *like.shape), dtype=like.dtype, device=like.device, generator=generator
    )
    log_power = torch.log(u) * (2 / (m - 1) if m > 1 else math.inf)
    s2, phi = -torch.expm1(log_power), 2 * math.pi * turn
    cos = torch.cos(phi)
    rest = torch.exp(log_power) + s2 * torch.sin(phi) ** 2
    odds = rest / (1 + torch.sqrt(s2) * cos.abs()) ** 2
    return torch.where(cos < 0, odds, 1 / odds)


def angle_slope(theta: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """d theta / d kappa at a fixed value of the distribution function, [2]_ equation (5).

    With f(s) ~ exp(kappa cos s) sin(s)^(d-2) it is the integral of (cos s - A) f(s) / f(theta)
    over the tail on theta's side of the mode, by Gauss-Legendre up to 14 standard deviations.
    """
    nodes, weights = gauss_legendre(QUADRATURE_NODES, theta)
    theta = theta.clamp(1e-100, math.pi - 1e-15)
    n = dim - 2
    # Constant to derivatives: the integrand vanishes at the end, or the end does not move.
    width = (_tail_end(theta.detach(), kappa.detach(), n) - theta)[..., None]
    s = theta[..., None] + width * nodes
    half = width * nodes / 2
    # kappa (cos s - cos theta)
    log_f = -2 * kappa[..., None] * torch.sin(theta[..., None] + half) * torch.sin(half)
    if n:
        log_f = log_f + n * torch.log(torch.sin(s) / torch.sin(theta)[..., None])
    lever = resultant(kappa, dim).complement[..., None] - 2 * torch.sin(s / 2) ** 2
    return (width * weights * lever * torch.exp(log_f)).sum(-1)


def _tail_end(theta: Tensor, kappa: Tensor, n: int) -> Tensor:
    """Away from the mode of exp(kappa cos s) sin(s)^n, at most to a pole of the sphere."""
    root = torch.hypot(2 * kappa, kappa.new_tensor(n)) + n
    cos_mode = 2 * kappa / root.clamp_min(1e-300)
    sin2_mode = 2 * n / root.clamp_min(1e-300)
    curvature = kappa * cos_mode + (n / sin2_mode if n else 0)
    reach = 14 / torch.sqrt(curvature.clamp_min(1e-300))
    past_mode = torch.cos(theta) <= cos_mode
    return torch.where(
        past_mode, (theta + reach).clamp_max(math.pi), (theta - reach).clamp_min(0)
    )


class ImplicitAngle(torch.autograd.Function):
    """Identity in theta that hands theta its implicit derivative with respect to kappa."""

    generate_vmap_rule = True

    @staticmethod
    def forward(theta: Tensor, kappa: Tensor, dim: int) -> Tensor:
        return theta.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, kappa, ctx.dim = inputs
        ctx.save_for_backward(output, kappa)
        ctx.save_for_forward(output, kappa)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        theta, kappa = ctx.saved_tensors
        return None, grad * angle_slope(theta, kappa, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, theta_t: Tensor | None, kappa_t: Tensor, _: None) -> Tensor:
        theta, kappa = ctx.saved_tensors
        return kappa_t * angle_slope(theta, kappa, ctx.dim)


def unit_noise(
    shape: Sequence[int], like: Tensor, generator: torch.Generator | None, dtype: torch.dtype
) -> Tensor:
    """Uniform unit vectors of R^shape[-1]; in R^1 these are signs."""
    z = torch.randn(shape, dtype=dtype, device=like.device, generator=generator)
    if shape[-1] == 1:
        return torch.where(z < 0, -1.0, 1.0).to(dtype)
    return z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)


def to_tangent(noise: Tensor, mu: Tensor) -> Tensor:
    """Isometry of R^(d-1) onto the tangent space at mu: the reflection of e_1 to -+mu,
    restricted."""
    first, rest = mu[..., :1], mu[..., 1:]
    overlap = (rest * noise).sum(-1, keepdim=True)
    head = -torch.where(first < 0, -overlap, overlap)
    return torch.cat([head, noise - rest * overlap / (1 + first.abs())], -1)
