"""Sweeps over stored entries: many iterations equal those of the textbook, which stores none.

Small eps moves potentials by hundreds of powers of two, so entries are made again on the way.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import _sinkhorn

INF = math.inf
ITERATIONS = 30


def weights(n: int, zeros: int = 0) -> Tensor:
    w = torch.rand(1, n, dtype=torch.float64) + 0.1
    w[:, :zeros] = 0
    return w / w.sum()


def textbook(problem: _sinkhorn.Problem, n_iter: int) -> tuple[Tensor, Tensor]:
    """Log-domain iterations from g = 0, each sum about its maximum, in the solver's gauge."""
    a, b, eps, rho, cost = problem.a, problem.b, problem.eps, problem.rho[0], problem.cost
    assert cost is not None
    scaled, g = cost.double() / eps, torch.zeros_like(b)
    for _ in range(n_iter):
        f = -torch.logsumexp((b.log() + g)[:, None] - scaled, 2) / (1 + eps / rho[0])
        g = -torch.logsumexp((a.log() + f)[..., None] - scaled, 1) / (1 + eps / rho[1])
    shift = ((b * g).sum() - (a * f).sum()) / 2 if rho.isinf().all() else 0
    return (f + shift) * eps, (g - shift) * eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rho", [(INF, INF), (2.0, 2.0), (INF, 0.5), (0.01, INF)])
@pytest.mark.parametrize("eps", [10.0, 0.02, 1e-4])
@pytest.mark.parametrize("kind", ["plain", "holes"])
def test_many_iterations(
    kind: str, eps: float, rho: tuple[float, float], dtype: torch.dtype
) -> None:
    """Also with points without mass and forbidden pairs: shifted rows of their own."""
    n, m, zeros = 37, 1100, 2 if kind == "holes" else 0
    cost = torch.rand(1, n, m).double().to(dtype)
    if kind == "holes":
        cost[:, 3:9, 5:700] = INF
    penalties = torch.tensor([rho], dtype=torch.float64)
    size = torch.tensor([eps], dtype=torch.float64)
    problem = _sinkhorn.Problem(
        weights(n, zeros), weights(m, zeros), cost, None, None, "", 1.0, size, penalties
    )
    f, g, info, _ = _sinkhorn.solve(
        problem, None, None, ITERATIONS, 0.0, ITERATIONS, translate=False, anneal=False
    )
    expected = textbook(problem, ITERATIONS)
    bound = 1e-12 if dtype is torch.float64 else 5e-6
    for got, wanted in zip((f, g), expected, strict=True):
        assert_close(got, wanted, rtol=bound, atol=bound * max(eps, bound))
    assert info[0, 1] == ITERATIONS


def test_with_and_without_room() -> None:
    """Points of more pairs than are stored take the same iterations as a stored matrix."""
    n, m = 2049, 2049
    assert n * m > 1 << 22
    x, y = torch.rand(1, n, 2).double(), torch.rand(1, m, 2).double()
    eps, rho = torch.full((1,), 0.05).double(), torch.full((1, 2), INF).double()
    a, b = weights(n), weights(m)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1)
    points = _sinkhorn.Problem(a, b, None, x, y, "sqeuclidean", 1.0, eps, rho)
    matrix = _sinkhorn.Problem(a, b, cost, None, None, "", 1.0, eps, rho)
    got, expected = (
        _sinkhorn.solve(p, None, None, 12, 0.0, 3, anneal=False) for p in (points, matrix)
    )
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-13)
