"""Averaged updates from a measure to itself; what a warm start leaves to massless points."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from curvkern import _sinkhorn, _sinkhorn_device
from curvkern.ot import _solve
from curvkern.reference import sinkhorn as reference
from sinkhorn_problems import INF, KINDS, costs, dense, points, rhos, solve, tensor, weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rho", [INF, 10.0, 0.3])
@pytest.mark.parametrize("eps", [1.0, 1e-2, 1e-4])
def test_error_halves(eps: float, rho: float, kind: str) -> None:
    """At any eps some 30 sweeps reach 1e-9, where alternating ones take thousands."""
    x, a = torch.randn(1, 60, 2, dtype=torch.float64), weights(1, 60)
    a[:, 0] = 0
    a = a / a.sum()
    problem = points(a, a, x, x, kind, tensor(eps), rhos(1, rho, rho))
    options = {"max_iter": 60, "tol": 1e-9, "check_every": 10, "method": "symmetric"}
    found = _solve.solve(problem, None, None, **options)  # type: ignore[arg-type]
    assert found.converged.all()
    assert_close(found.f, found.g, rtol=0, atol=1e-12)
    matrix = dense(a, a, costs(kind, x, x), tensor(eps), rhos(1, rho, rho))
    truth = reference.solve(matrix, method="newton", tol=1e-13)
    # Points that exchange next to nothing may differ in f and g, but not in f + g.
    near = {"rtol": 1e-8, "atol": 1e-8 * eps + 1e-12}
    mass = a > 0
    assert_close((found.f + found.g)[mass], (truth.f + truth.g)[mass], **near)
    twin = reference.solve(problem, **options)  # type: ignore[arg-type]
    assert_close((twin.f + twin.g)[mass], (truth.f + truth.g)[mass], **near)


def test_device_averages_too() -> None:
    x, a = torch.randn(2, 50, 3, dtype=torch.float64), weights(2, 50)
    problem = points(a, a, x, x, "sqeuclidean", tensor(0.1, 0.01))
    inputs = _sinkhorn_device.Inputs(*problem)
    for options in ({}, {"anneal": False}):
        f, g, info, _ = _sinkhorn_device.solve(
            inputs, None, None, 60, 1e-11, 10, symmetric=True, **options
        )
        host = _sinkhorn.solve(problem, None, None, 60, 1e-11, 10, symmetric=True, **options)
        assert info[:, 2].all()
        assert_close(f, host[0], rtol=1e-10, atol=1e-12)
        assert_close(f, g, rtol=0, atol=1e-13)


def test_start_that_has_converged() -> None:
    """Points without mass get their soft c-transform, whatever the start says of them."""
    a, b, cost, eps = weights(1, 30), weights(1, 20), torch.rand(1, 30, 20).double(), 0.05
    a[:, :3] = b[:, 4:6] = 0
    a, b = a / a.sum(), b / b.sum()
    cold = solve(a, b, cost, tensor(eps), tol=1e-13)
    start = cold.f.clone(), cold.g.clone()
    start[0][:, :3] = start[1][:, 4:6] = 7.0
    warm = solve(a, b, cost, tensor(eps), tol=1e-10, start=start)
    assert warm.n_iter == 0
    assert_close(warm.f, cold.f, rtol=0, atol=1e-9)
    assert_close(warm.g, cold.g, rtol=0, atol=1e-9)
