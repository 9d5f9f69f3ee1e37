"""Where the costs come from: a matrix, or two sets of points.

Both are two tensors ``x`` and ``y``, a kind and a scale. For the kind "matrix" ``x`` is the
cost itself, (B, n, m), and ``y`` is None. Results are float64, gradients of the inputs' dtypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference.costs import KINDS as KINDS
from ..reference.costs import cost_matrix

MATRIX = "matrix"


@dataclass(frozen=True)
class Cost:
    """C(x, y), its products with tangents and with cotangents; all of them differentiable."""

    kind: str
    scale: float

    def matrix(self, x: Tensor, y: Tensor | None) -> Tensor:
        """The costs, (B, n, m)."""
        if y is None:
            return x.to(torch.float64)
        return self.scale * cost_matrix(x, y, self.kind)

    def pull(self, x: Tensor, y: Tensor | None, G: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of sum G_ij C_ij in x and y."""
        if y is None:
            return G.to(x.dtype), None
        x64, y64 = _centred(x, y)
        G = self.scale * G
        if self.kind == "l1":
            signs = [
                torch.sign(x64[..., :, None, k] - y64[..., None, :, k]) * G
                for k in range(x.shape[-1])
            ]
            dx = torch.stack([s.sum(-1) for s in signs], -1)
            dy = -torch.stack([s.sum(-2) for s in signs], -1)
        else:
            weights = self._weights(x64, y64) * G
            dx = x64 * weights.sum(-1)[..., None] - weights @ y64
            dy = y64 * weights.sum(-2)[..., None] - weights.mT @ x64
        return dx.to(x.dtype), dy.to(y.dtype)

    def push(
        self, x: Tensor, y: Tensor | None, dx: Tensor | None, dy: Tensor | None
    ) -> Tensor | None:
        """The change of C along (dx, dy)."""
        if y is None or (dx is None and dy is None):
            return None if dx is None else dx.to(torch.float64)
        x64, y64 = _centred(x, y)
        dx = torch.zeros_like(x64) if dx is None else dx.to(torch.float64)
        dy = torch.zeros_like(y64) if dy is None else dy.to(torch.float64)
        if self.kind == "l1":
            change = torch.zeros_like(dx[..., :1] * dy[..., :1].mT)
            for k in range(x.shape[-1]):
                sign = torch.sign(x64[..., :, None, k] - y64[..., None, :, k])
                change = change + sign * (dx[..., :, None, k] - dy[..., None, :, k])
            return self.scale * change
        along = (x64 * dx).sum(-1)[..., :, None] + (y64 * dy).sum(-1)[..., None, :]
        return self.scale * self._weights(x64, y64) * (along - dx @ y64.mT - x64 @ dy.mT)

    def _weights(self, x: Tensor, y: Tensor) -> Tensor | float:
        """w such that the gradient of C in x is w (x - y); 0 where a distance is 0."""
        if self.kind == "euclidean":
            distance = cost_matrix(x, y, "euclidean")
            apart = distance > 0
            return torch.where(apart, 1 / torch.where(apart, distance, 1.0), 0.0)
        return 2.0 if self.kind == "sqeuclidean" else 1.0


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The points in float64 about the middle of y, where products cancel less."""
    y = y.to(torch.float64)
    middle = y.detach().mean(-2, keepdim=True)
    return x.to(torch.float64) - middle, y - middle
