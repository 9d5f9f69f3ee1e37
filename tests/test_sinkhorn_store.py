"""Sweeps over stored entries: many iterations equal those of the textbook, which stores none.

Small eps moves potentials by hundreds of powers of two, so entries are made again on the way.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from curvkern import _sinkhorn
from sinkhorn_problems import INF, both_dtypes, costs, dense, iterate, points, tensor, weights

ITERATIONS = 30


@both_dtypes
@pytest.mark.parametrize("rho", [(INF, INF), (2.0, 2.0), (INF, 0.5), (0.01, INF)])
@pytest.mark.parametrize("eps", [10.0, 0.02, 1e-4])
@pytest.mark.parametrize("kind", ["plain", "holes"])
def test_many_iterations(
    kind: str, eps: float, rho: tuple[float, float], dtype: torch.dtype
) -> None:
    """Also with points without mass and forbidden pairs: shifted rows of their own."""
    n, m, zeros = 37, 1100, 2 if kind == "holes" else 0
    a, b, cost = weights(1, n), weights(1, m), torch.rand(1, n, m).double().to(dtype)
    if kind == "holes":
        cost[:, 3:9, 5:700] = INF
    a[:, :zeros] = b[:, :zeros] = 0
    a, b = a / a.sum(), b / b.sum()
    problem = dense(a, b, cost, tensor(eps), torch.tensor([rho], dtype=torch.float64))
    f, g, info, _ = _sinkhorn.solve(
        problem, None, None, ITERATIONS, 0.0, ITERATIONS, translate=False, anneal=False
    )
    expected = iterate(a, b, cost, problem.eps, problem.rho, ITERATIONS)
    shift = ((b * expected[1]).sum() - (a * expected[0]).sum()) / 2 if rho == (INF, INF) else 0
    bound = 1e-12 if dtype is torch.float64 else 5e-6
    for got, wanted, mass in ((f, expected[0] + shift, a), (g, expected[1] - shift, b)):
        near = {"rtol": bound, "atol": bound * max(eps, bound)}
        assert_close(got[mass > 0], wanted[mass > 0], **near)  # the others are one step ahead
    assert info[0, 1] == ITERATIONS


def test_with_and_without_room() -> None:
    """Points of more pairs than are stored take the same iterations as a stored matrix."""
    n, m = 2049, 2049
    assert n * m > 1 << 22
    x, y = torch.rand(1, n, 2).double(), torch.rand(1, m, 2).double()
    a, b, eps = weights(1, n), weights(1, m), tensor(0.05)
    both = (
        points(a, b, x, y, "sqeuclidean", eps),
        dense(a, b, costs("sqeuclidean", x, y), eps),
    )
    got, expected = (_sinkhorn.solve(p, None, None, 12, 0.0, 3, anneal=False) for p in both)
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-13)
