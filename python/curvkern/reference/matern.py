"""The Matern correlation as its textbook formula in plain PyTorch.

Where r > 0 is not tiny and nu is moderate it is right to about 1e-13: its logarithms cancel
elsewhere. :func:`curvkern.special.matern` has other forms for those ranges; they are plain
PyTorch around `log_kv`, so ``CURVKERN_BACKEND=reference`` keeps them and takes that twin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import bessel


def matern(r: Tensor, nu: Tensor, lengthscale: Tensor | float = 1.0) -> Tensor:
    """2^(1-nu) / Gamma(nu) z^nu K_nu(z) with z = sqrt(2 nu) r / lengthscale; 1 at r = 0."""
    z = torch.sqrt(2 * nu) * r / lengthscale
    apart = torch.where(z > 0, z, 1.0)
    log_k = bessel.log_kv(nu.expand_as(z), apart)
    log_m = (1 - nu) * math.log(2) - torch.lgamma(nu) + nu * apart.log() + log_k
    return torch.where(z > 0, log_m.exp(), 1.0)
