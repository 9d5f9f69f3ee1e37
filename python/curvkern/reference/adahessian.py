"""AdaHessian as its authors' program for images runs it: the rival of the benchmarks.

An operation after the other for each tensor, with probes from torch.randint and the mean over
the kernel of a convolution. Z. Yao, A. Gholami, S. Shen, M. Mustafa, K. Keutzer, M. W. Mahoney,
"ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning", AAAI 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class PlainAdaHessian:
    """Steps on given gradients and Hessian products, so that only the step is timed."""

    def __init__(
        self,
        params: Sequence[Tensor],
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
    ) -> None:
        self.params = list(params)
        self.lr, self.betas, self.eps = lr, betas, eps
        self.weight_decay, self.power = weight_decay, hessian_power
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.t = 0

    def probes(self) -> list[Tensor]:
        """Signs, as 2 randint - 1."""
        return [2 * torch.randint_like(p, high=2) - 1 for p in self.params]

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], hz: Sequence[Tensor], z: Sequence[Tensor]) -> None:
        """Move the parameters."""
        self.t += 1
        beta1, beta2 = self.betas
        for p, g, h, sign, m, v in zip(self.params, grads, hz, z, self.m, self.v, strict=True):
            D = (h * sign).abs()
            if p.dim() > 2:
                D = D.mean(list(range(2, p.dim())), keepdim=True).expand_as(p).clone()
            m.mul_(beta1).add_(g, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(D, D, value=1 - beta2)
            root = v.sqrt() / math.sqrt(1 - beta2**self.t)
            denominator = (root**self.power).add_(self.eps)
            update = m / (1 - beta1**self.t) / denominator + self.weight_decay * p
            p.copy_(p - self.lr * update)
