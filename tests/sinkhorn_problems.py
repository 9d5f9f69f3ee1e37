"""Problems for the native Sinkhorn solver, and its textbook form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern._sinkhorn import Problem
from curvkern.ot import _solve

INF = math.inf
KINDS = ["sqeuclidean", "half_sqeuclidean", "euclidean", "l1"]
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def weights(batch: int, n: int) -> Tensor:
    w = torch.rand(batch, n, dtype=torch.float64) + 0.1
    return w / w.sum(1, keepdim=True)


def rhos(batch: int, first: float = INF, second: float = INF) -> Tensor:
    return torch.tensor([[first, second]] * batch, dtype=torch.float64)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def dense(
    a: Tensor, b: Tensor, cost: Tensor, eps: Tensor, rho: Tensor | None = None
) -> Problem:
    """A problem with a matrix of costs."""
    rho = rhos(len(a)) if rho is None else rho
    return Problem(a, b, cost, None, None, "", 1.0, eps, rho)


def points(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    kind: str,
    eps: Tensor,
    rho: Tensor | None = None,
    scale: float = 1.0,
) -> Problem:
    """A problem between points."""
    rho = rhos(len(a)) if rho is None else rho
    return Problem(a, b, None, x, y, kind, scale, eps, rho)


def costs(kind: str, x: Tensor, y: Tensor) -> Tensor:
    d = x.double()[:, :, None] - y.double()[:, None]
    if kind == "l1":
        return d.abs().sum(-1)
    square = d.square().sum(-1)
    if kind == "euclidean":  # with a derivative of 0 where there is no distance
        return torch.where(square > 0, square, 1).sqrt() * (square > 0)
    return square / 2 if kind == "half_sqeuclidean" else square


def plan(a: Tensor, b: Tensor, cost: Tensor, eps: Tensor, f: Tensor, g: Tensor) -> Tensor:
    exponent = (f[:, :, None] + g[:, None] - cost.double()) / eps[:, None, None]
    return a[:, :, None] * b[:, None] * exponent.exp()


def error(a: Tensor, b: Tensor, P: Tensor) -> Tensor:
    return (P.sum(2) - a).abs().sum(1) + (P.sum(1) - b).abs().sum(1)


def softmin(log_weights: Tensor, exponent: Tensor, dim: int) -> Tensor:
    return -torch.logsumexp(log_weights + exponent, dim)


def iterate(
    a: Tensor, b: Tensor, cost: Tensor, eps: Tensor, rho: Tensor, n_iter: int
) -> tuple[Tensor, Tensor]:
    """Sinkhorn iterations as the textbook has them, from g = 0."""
    e = eps[:, None]
    damping = (1 / (1 + e / rho))[..., None]
    scaled, f, g = cost.double() / e[..., None], torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(n_iter):
        f = damping[:, 0] * softmin(b.log()[:, None], (g / e)[:, None] - scaled, 2) * e
        g = damping[:, 1] * softmin(a.log()[..., None], (f / e)[..., None] - scaled, 1) * e
    return f, g


def solve(a: Tensor, b: Tensor, cost: Tensor, eps: Tensor, **options: Any) -> _solve.Solution:
    given = {
        "max_iter": 50_000,
        "tol": 1e-12,
        "check_every": 10,
        "method": "sinkhorn",
        **options,
    }
    rho = given.pop("rho", rhos(len(a)))
    start = given.pop("start", (None, None))
    return _solve.solve(dense(a, b, cost, eps, rho), *start, **given)
