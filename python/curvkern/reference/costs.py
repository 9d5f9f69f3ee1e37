"""Costs between two sets of points, as matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FEW_COORDINATES = 16  # up to here squares are summed coordinate by coordinate, to full accuracy


def cost_matrix(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """The costs (B, n, m) in float64 between points x (B, n, d) and y (B, m, d)."""
    x, y = x.to(torch.float64), y.to(torch.float64)
    if kind == "l1":
        return _sum_over_coordinates(x, y, torch.abs)
    squared = _squared_distances(x, y)
    if kind == "half_sqeuclidean":
        return squared / 2
    return _root(squared) if kind == "euclidean" else squared


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    if x.shape[-1] <= FEW_COORDINATES:
        return _sum_over_coordinates(x, y, torch.square)
    middle = y.detach().mean(-2, keepdim=True)
    x, y = x - middle, y - middle
    norms = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return (norms - 2 * x @ y.mT).clamp_min(0.0)


def _sum_over_coordinates(x: Tensor, y: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    total = x.new_zeros(*x.shape[:-1], y.shape[-2])
    for k in range(x.shape[-1]):
        total = total + function(x[..., :, None, k] - y[..., None, :, k])
    return total


def cost_between(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """The costs (B, n) in float64 of moving each point of x (B, n, d) to that of y."""
    difference = x.to(torch.float64) - y.to(torch.float64)
    if kind == "l1":
        return difference.abs().sum(-1)
    squared = difference.square().sum(-1)
    if kind == "euclidean":
        return _root(squared)
    return squared / 2 if kind == "half_sqeuclidean" else squared


def _root(squared: Tensor) -> Tensor:
    """The square root, whose slope at 0 is taken to be 0."""
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
