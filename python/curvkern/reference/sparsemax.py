"""Sparsemax by sorting, and the columns of sparse transport plans, in plain PyTorch.

A. Martins, R. Astudillo, "From Softmax to Sparsemax", ICML 2016, Algorithm 1, on the k largest
entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def sparsemax(z: Tensor, mass: float | Tensor = 1.0, *, k: int | None = None) -> Tensor:
    """Projection of the last dimension onto {p >= 0, sum p = mass, at most k nonzeros}.

    ``mass`` is positive, a number or a tensor of the shape of z without its last dimension.
    """
    top = z.max(-1, keepdim=True).values
    if torch.is_tensor(mass):
        mass = mass.to(z.dtype).unsqueeze(-1)
    shifted = torch.where(torch.isposinf(top), torch.where(z == top, 0.0, -torch.inf), z - top)
    order, index = torch.sort(shifted, dim=-1, descending=True, stable=True)
    if k is not None:
        order, index = order[..., :k], index[..., :k]
    rank = torch.arange(1, order.shape[-1] + 1, dtype=z.dtype, device=z.device)
    finite = torch.where(torch.isneginf(order), -2 * mass, order)
    thresholds = (finite.cumsum(-1) - mass) / rank
    support = finite > thresholds
    size = support.sum(-1, keepdim=True).clamp_min(1)
    tau = thresholds.gather(-1, size - 1)
    p = torch.where(support & ~torch.isneginf(order), finite - tau, 0.0)
    undefined = torch.isnan(top) | torch.isneginf(top)
    return torch.where(undefined, torch.nan, torch.zeros_like(z).scatter(-1, index, p))


@dataclass
class SupportGraph:
    """The nonzeros of a plan by columns: the twin of the compiled class of this name."""

    p: Tensor  # (m, n), dense

    def start(self) -> Any:
        """Where each column begins, and the end."""
        sizes = (self.p > 0).sum(1)
        return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).numpy()

    def row(self) -> Any:
        """The row of each nonzero."""
        return self.p.nonzero()[:, 1].numpy()

    def value(self) -> Any:
        """The nonzeros themselves."""
        return self.p[self.p > 0].numpy()

    def solve(
        self, residual: Tensor, damping: float, tolerance: float, max_iter: int, step: Tensor
    ) -> int:
        """Solve (L + damping) step = residual with the dense Laplacian L of the support."""
        support = (self.p > 0).to(residual)
        share = support / support.sum(1, keepdim=True).clamp_min(1)
        laplacian = torch.diag(support.sum(0) + damping) - support.T @ share
        step.copy_(torch.linalg.solve(laplacian, residual))
        return 1


def plan_columns(
    cost: Tensor, f: Tensor, mass: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, SupportGraph]:
    """Columns f - cost[j] projected onto simplices of size mass[j]: the pass of the solver.

    Row sums, thresholds, sums of squares by column, and the nonzeros.
    """
    z = f - cost
    p = sparsemax(z, mass, k=min(k, len(f)))
    thresholds = torch.where(p > 0, z - p, 0.0).sum(1) / (p > 0).sum(1)
    return p.sum(0), thresholds, (p * p).sum(1), SupportGraph(p)
