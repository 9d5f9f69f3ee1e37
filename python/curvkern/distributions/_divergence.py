"""KL divergences between the laws on the sphere, registered with torch.distributions."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributions.kl import register_kl

from ._concentration import bregman, kl_uniform, log_hyp, resultant
from ._uniform import HypersphericalUniform
from ._von_mises_fisher import VonMisesFisher

Law: TypeAlias = VonMisesFisher | HypersphericalUniform


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_vmf_vmf(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    """D(kappa_q, kappa_p) + kappa_q A(kappa_p) (1 - cos), a sum of two non-negative terms."""
    _common_shape(p, q)
    length = resultant(p._kappa, p.dim).mean
    one_minus_cos = ((p.loc - q.loc).double() ** 2).sum(-1) / 2
    kl = bregman(q._kappa, p._kappa, p.dim) + q._kappa * length * one_minus_cos
    return kl.to(torch.promote_types(p.loc.dtype, q.loc.dtype))


@register_kl(VonMisesFisher, HypersphericalUniform)
def _kl_vmf_uniform(p: VonMisesFisher, q: HypersphericalUniform) -> Tensor:
    shape = _common_shape(p, q)
    return p._cast(kl_uniform(p._kappa, p.dim)).expand(shape)


@register_kl(HypersphericalUniform, VonMisesFisher)
def _kl_uniform_vmf(p: HypersphericalUniform, q: VonMisesFisher) -> Tensor:
    shape = _common_shape(p, q)
    return q._cast(log_hyp(q._kappa, q.dim)).expand(shape)


@register_kl(HypersphericalUniform, HypersphericalUniform)
def _kl_uniform_uniform(p: HypersphericalUniform, q: HypersphericalUniform) -> Tensor:
    return p._like.new_zeros(_common_shape(p, q))


def _common_shape(p: Law, q: Law) -> torch.Size:
    if p.dim != q.dim:
        raise ValueError(f"kl_divergence: the laws live in dimensions {p.dim} and {q.dim}")
    try:
        return torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"kl_divergence: the laws have batch shapes {tuple(p.batch_shape)} and "
            f"{tuple(q.batch_shape)}, which do not broadcast"
        ) from None
