"""The passes over a plan that is not stored, and the operations of the family.

Truths: the plan as a matrix.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from curvkern.ot import _solve
from sinkhorn_problems import (
    KINDS,
    both_dtypes,
    costs,
    dense,
    plan,
    points,
    rhos,
    solve,
    tensor,
    weights,
)

# Passes over the plan -----------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("shape", [(1, 1), (6, 9), (70, 130), (300, 700)])
def test_products(shape: tuple[int, int], dtype: torch.dtype) -> None:
    n, m = shape
    a, b, cost = weights(2, n), weights(2, m), torch.rand(2, n, m).to(dtype)
    eps, f, g = tensor(0.3, 0.1), torch.randn(2, n).double() / 9, torch.randn(2, m).double() / 9
    P = plan(a, b, cost, eps, f, g)
    v, u = torch.randn(2, m, 11).double(), torch.randn(2, n, 11).double()
    given = (dense(a, b, cost, eps), f, g)
    pv, pu, sums = _solve.products(*given, v, u)
    assert_close(pv, P @ v, rtol=1e-12, atol=1e-13)
    assert_close(pu, P.mT @ u, rtol=1e-12, atol=1e-13)
    assert_close(_solve.products(*given, v[..., :1], None)[0], pv[..., :1], rtol=0, atol=0)
    assert_close(_solve.products(*given, None, u[..., :1])[1], pu[..., :1], rtol=0, atol=0)
    ab = a[:, :, None] * b[:, None]
    assert_close(sums[:, 0], (P * cost.double()).sum((1, 2)))
    assert_close(sums[:, 1], (P * (P / ab).log()).sum((1, 2)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@both_dtypes
def test_points_gradient(kind: str, dtype: torch.dtype) -> None:
    a, b, eps = weights(2, 13), weights(2, 19), tensor(0.5, 1.5)
    x, y = torch.randn(2, 13, 3).to(dtype), torch.randn(2, 19, 3).to(dtype)
    y[:, 4] = x[:, 2]  # no distance: the gradient there is 0
    f, g = torch.randn(2, 13).double() / 9, torch.randn(2, 19).double() / 9
    u, w = torch.randn(2, 13).double(), torch.randn(2, 19).double()
    z = [t.double().clone().requires_grad_() for t in (x, y)]
    P = plan(a, b, 0.7 * costs(kind, x, y), eps, f, g)
    W = P * (u[:, :, None] + w[:, None])
    expected = list(torch.autograd.grad((0.7 * costs(kind, *z) * W).sum(), z))
    problem = points(a, b, x, y, kind, eps, scale=0.7)
    result = _solve.points_gradient(problem, f, g, u, w)
    assert_close(list(result), expected, rtol=1e-11, atol=1e-13)


def test_exponential_is_accurate() -> None:
    """One entry a problem: P = exp(f), to the bound at the top of csrc/sinkhorn/exp2.hpp."""
    f = torch.linspace(-600, 600, 20_001, dtype=torch.float64)[:, None]
    one = torch.ones_like(f)
    problem = dense(one, one, 0 * one[:, None], one[:, 0])
    P = _solve.products(problem, f, 0 * f, one[..., None], None)[0][..., 0]
    # log2(e) f is rounded before it is used
    bound = 3e-16 + 2.0**-53 * (f.abs() * 2 + 2)
    assert ((P / f.exp() - 1).abs() <= bound).all()


# Operations ---------------------------------------------------------------------------------


def test_opcheck() -> None:
    a, b, eps = weights(2, 5), weights(2, 6), tensor(0.5, 1.0)
    x, y, cost = torch.randn(2, 5, 3), torch.randn(2, 6, 3), torch.rand(2, 5, 6)
    f, g, v, u = (torch.zeros(2, s).double() for s in (5, 6, 6, 5))
    points = (a, b, x, y, "l1", 1.0, eps)
    options = (rhos(2), None, None, 20, 1e-6, 10)
    columns = (v[..., None], u[..., None])
    for name, arguments in {
        "sinkhorn_dense": (a, b, cost, eps, *options),
        "sinkhorn_points": (*points, *options),
        "sinkhorn_dense_products": (a, b, cost, eps, f, g, *columns),
        "sinkhorn_points_products": (*points, f, g, columns[0], None),
        "sinkhorn_points_gradient": (*points, f, g, u, v),
    }.items():
        torch.library.opcheck(getattr(torch.ops.curvkern, name).default, arguments)


def test_shapes_are_checked() -> None:
    a, b, cost = weights(2, 5), weights(2, 6), torch.rand(2, 5, 6)
    with pytest.raises(ValueError, match=r"^sinkhorn: b must have shape \(2, 6\)"):
        solve(a, b[:, 1:], cost, tensor(1, 1))
    with pytest.raises(TypeError, match=r"^sinkhorn: a must be float64"):
        solve(a.float(), b, cost, tensor(1, 1))
    cloud = points(a, b, cost[..., :3], cost.mT[..., :3], "cosine", tensor(1, 1))
    with pytest.raises(ValueError, match=r"cost must be one of .* got 'cosine'"):
        _solve.solve(cloud, None, None, max_iter=1, tol=1.0, check_every=1)
