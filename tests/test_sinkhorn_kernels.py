"""The native Sinkhorn solver, below the public functions.

Truths: plain float64 log-sum-exp iterations of torch, POT, and closed forms. Cases of the
reliability list are named in the docstrings.
"""

from __future__ import annotations

from typing import Any

import ot
import pytest
import torch
from torch.testing import assert_close

from curvkern import _sinkhorn
from curvkern.ot import _solve
from sinkhorn_problems import (
    INF,
    KINDS,
    both_dtypes,
    costs,
    dense,
    error,
    iterate,
    plan,
    points,
    rhos,
    softmin,
    solve,
    tensor,
    weights,
)

# One iteration ------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3), (33, 65), (130, 1100)])
@pytest.mark.parametrize("eps", [10.0, 0.02, 1e-5])
def test_first_iterations(shape: tuple[int, int], eps: float, dtype: torch.dtype) -> None:
    """Two iterations from zero equal those of the textbook, at any eps."""
    a, b = weights(1, shape[0]), weights(1, shape[1])
    cost = torch.rand(1, *shape, dtype=torch.float64).to(dtype)
    problem = dense(a, b, cost, tensor(eps))
    f, g, info, _ = _sinkhorn.solve(problem, None, None, 2, 0.0, 10, anneal=False)
    expected = iterate(a, b, cost, tensor(eps), rhos(1), 2)
    gauge = ((b * expected[1]).sum() - (a * expected[0]).sum()) / 2
    bound = 1e-13 if dtype is torch.float64 else 2e-6
    atol = bound * max(eps, bound)
    assert_close(f, expected[0] + gauge, rtol=bound, atol=max(atol, 1e-15))
    assert_close(g, expected[1] - gauge, rtol=bound, atol=max(atol, 1e-15))
    assert info[0, 1] == 2


@pytest.mark.parametrize("kind", KINDS)
@both_dtypes
def test_points_equal_matrix(kind: str, dtype: torch.dtype) -> None:
    x, y = torch.randn(3, 41, 5).to(dtype), torch.randn(3, 37, 5).to(dtype) + 0.5
    a, b, eps = weights(3, 41), weights(3, 37), tensor(0.3, 3.0, 0.1)
    cost = 1.7 * costs(kind, x, y)
    options: dict[str, Any] = {"max_iter": 2000, "tol": 1e-11, "check_every": 10}
    matrix, cloud = dense(a, b, cost, eps), points(a, b, x, y, kind, eps, scale=1.7)
    expected = _solve.solve(matrix, None, None, **options)
    result = _solve.solve(cloud, None, None, **options)
    assert result.converged.all()
    assert_close(result.f, expected.f, rtol=1e-9, atol=1e-9)
    assert_close(result.g, expected.g, rtol=1e-9, atol=1e-9)
    v, u = torch.randn(3, 37, 2).double(), torch.randn(3, 41, 2).double()
    given = (expected.f, expected.g, v, u)
    assert_close(_solve.products(cloud, *given), _solve.products(matrix, *given))


def test_float32_costs_between_far_clouds() -> None:
    """Costs are formed from differences: an offset of 1000 does not blur distances of 1."""
    x, y = torch.rand(1, 50, 3) + 1000, torch.rand(1, 60, 3) + 1000
    a, b, eps = weights(1, 50), weights(1, 60), tensor(0.05)
    problem = points(a, b, x, y, "sqeuclidean", eps)
    solution = _solve.solve(problem, None, None, max_iter=5000, tol=1e-12, check_every=10)
    P = plan(a, b, costs("sqeuclidean", x, y), eps, solution.f, solution.g)
    assert error(a, b, P) < 2e-12


# Solutions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1.0, 0.05, 0.01])
def test_against_pot(eps: float) -> None:
    a, b, cost = weights(1, 40), weights(1, 30), torch.rand(1, 40, 30).double()
    solution = solve(a, b, cost, tensor(eps))
    expected = ot.sinkhorn(
        a[0], b[0], cost[0], eps, method="sinkhorn_log", stopThr=1e-13, numItermax=100_000
    )
    P = plan(a, b, cost, tensor(eps), solution.f, solution.g)
    assert_close(P[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rho", [(0.5, 0.5), (10.0, 10.0), (0.3, 4.0), (INF, 1.0), (1.0, INF)])
@pytest.mark.parametrize("translate", [True, False])
def test_unbalanced(rho: tuple[float, float], translate: bool) -> None:
    """The optimality conditions hold: P1 = a exp(-f / rho), and the same for the columns."""
    a, b = 2 * weights(1, 30), weights(1, 40)
    cost, eps = torch.rand(1, 30, 40).double(), tensor(0.1)
    problem = _sinkhorn.Problem(a, b, cost, None, None, "", 1.0, eps, rhos(1, *rho))
    f, g, info, _ = _sinkhorn.solve(problem, None, None, 20_000, 1e-13, 10, translate)
    assert info[0, 2] == 1
    P = plan(a, b, cost, eps, f, g)
    assert_close(P.sum(2), a * (-f / rho[0]).exp(), rtol=1e-11, atol=0)
    assert_close(P.sum(1), b * (-g / rho[1]).exp(), rtol=1e-11, atol=0)
    slow = iterate(a, b, cost, eps, rhos(1, *rho), 3000)
    assert_close(f, slow[0], rtol=1e-9, atol=1e-9)
    assert_close(g, slow[1], rtol=1e-9, atol=1e-9)


def test_translation_wins() -> None:
    """Plain updates move a common constant of f and g by a factor of eps / rho a time."""
    a, b, cost = 3 * weights(1, 30), weights(1, 40), torch.rand(1, 30, 40).double()
    problem = _sinkhorn.Problem(
        a, b, cost, None, None, "", 1.0, tensor(0.1), rhos(1, 50.0, 50.0)
    )
    fast, slow = (
        _sinkhorn.solve(problem, None, None, 100_000, 1e-11, 10, translate)[2][0]
        for translate in (True, False)
    )
    assert fast[2] == slow[2] == 1
    assert 20 * fast[1] < slow[1]


@both_dtypes
def test_batch_of_different_eps(dtype: torch.dtype) -> None:
    """Each problem stops for itself, with the bits that it has alone."""
    a, b = weights(9, 32), weights(9, 40)
    cost, eps = torch.rand(9, 32, 40).to(dtype), torch.logspace(0, -2, 9, dtype=torch.float64)
    together = solve(a, b, cost, eps, tol=1e-10)
    assert together.converged.all()
    assert together.n_iter[-1] > 5 * together.n_iter[0]
    assert (error(a, b, plan(a, b, cost, eps, together.f, together.g)) < 2e-10).all()
    for i in range(9):
        s = slice(i, i + 1)
        alone = solve(a[s], b[s], cost[s], eps[s], tol=1e-10)
        assert alone.f.equal(together.f[s])
        assert alone.n_iter.equal(together.n_iter[s])


@both_dtypes
def test_zero_weights(dtype: torch.dtype) -> None:
    """R03: the others' solution is that without them; theirs is the soft c-transform."""
    a, b, cost = weights(1, 20), weights(1, 25), torch.rand(1, 20, 25).to(dtype)
    a[0, 3:7] = 0
    b[0, [0, 24]] = 0
    a, b, eps = a / a.sum(), b / b.sum(), tensor(0.05)
    full = solve(a, b, cost, eps)
    rows, columns = a[0] > 0, b[0] > 0
    few = solve(a[:, rows], b[:, columns], cost[:, rows][:, :, columns].contiguous(), eps)
    assert full.converged.all()
    assert_close(full.f[:, rows], few.f, rtol=1e-9, atol=1e-9)
    f = eps * softmin(b.log()[:, None], (full.g[:, None] - cost.double()) / eps, 2)
    g = eps * softmin(a.log()[..., None], (full.f[..., None] - cost.double()) / eps, 1)
    assert_close(full.f, f, rtol=1e-9, atol=1e-9)
    assert_close(full.g, g, rtol=1e-9, atol=1e-9)


@both_dtypes
def test_infinite_costs(dtype: torch.dtype) -> None:
    """R02: the plan is 0 there, and what is finite is solved."""
    a, b, cost = weights(1, 20), weights(1, 20), torch.rand(1, 20, 20).to(dtype)
    forbidden = torch.rand(1, 20, 20) < 0.3
    forbidden[0].fill_diagonal_(False)
    a = b.clone()
    cost[forbidden] = INF
    solution = solve(a, b, cost, tensor(0.05), tol=1e-11)
    assert solution.converged.all()
    P = plan(a, b, cost, tensor(0.05), solution.f, solution.g)
    assert (P[forbidden] == 0).all()
    assert error(a, b, P) < 2e-11
    problem = dense(a, b, cost, tensor(0.05))
    sums = _solve.products(problem, solution.f, solution.g, torch.ones_like(b)[..., None], None)
    assert_close(sums[2][:, 0], torch.where(forbidden, 0, P * cost.double()).sum((1, 2)))


def test_a_massless_point_beyond_reach() -> None:
    a, b, cost = weights(1, 5), weights(1, 6), torch.rand(1, 5, 6).double()
    a[0, 2], cost[0, 2] = 0, INF
    b[0, 1], cost[0, :, 1] = 0, INF
    a, b = a / a.sum(), b / b.sum()
    solution = solve(a, b, cost, tensor(0.1))
    assert solution.converged.all()
    assert solution.f.isfinite().all()
    assert solution.g.isfinite().all()


@pytest.mark.parametrize("factor", [1e30, 1e-30])
@both_dtypes
def test_scales(factor: float, dtype: torch.dtype) -> None:
    """R09: costs and eps, or masses, times the factor give the same plan up to scale."""
    a, b, cost = weights(1, 20), weights(1, 30), torch.rand(1, 20, 30).to(dtype)
    eps = tensor(0.1)
    plain = solve(a, b, cost, eps, tol=1e-11)
    costly = solve(a, b, cost * factor, eps * factor, tol=1e-11)
    heavy = solve(a * factor, b * factor, cost, eps, tol=1e-11)
    assert costly.converged.all()
    assert heavy.converged.all()
    tight = 1e-9 if dtype is torch.float64 else 1e-5
    P = plan(a, b, cost, eps, plain.f, plain.g)
    assert_close(
        plan(a, b, cost * factor, eps * factor, costly.f, costly.g), P, rtol=tight, atol=0
    )
    assert_close(
        plan(a * factor, b * factor, cost, eps, heavy.f, heavy.g), P * factor, rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("eps", [1e-2, 1e-4, 1e-6])
@both_dtypes
def test_tiny_eps(eps: float, dtype: torch.dtype) -> None:
    """R07: finite, and converged only where the marginals say so."""
    a, b, cost = weights(1, 60), weights(1, 60), torch.rand(1, 60, 60).to(dtype)
    solution = solve(a, b, cost, tensor(eps), max_iter=300, tol=1e-6)
    assert solution.f.isfinite().all()
    assert solution.g.isfinite().all()
    true = error(a, b, plan(a, b, cost, tensor(eps), solution.f, solution.g))
    assert_close(solution.error, true, rtol=1e-6, atol=1e-10)
    assert solution.converged.equal(solution.error <= 1e-6)


@pytest.mark.parametrize("gap", [60.0, 1e5])
def test_far_clusters(gap: float) -> None:
    """Two groups must exchange 0.01 of mass over a gap: a fixed step of f an iteration."""
    far = torch.zeros(1, 20, 20).double()
    far[:, :10, 10:] = far[:, 10:, :10] = gap
    cost = torch.rand(1, 20, 20).double() + far
    a, b = torch.full((1, 20), 0.05).double(), torch.full((1, 20), 0.05).double()
    a[0, 0] += 0.01
    a[0, -1] -= 0.01
    solution = solve(a, b, cost, tensor(1.0), max_iter=10_000, tol=1e-9)
    P = plan(a, b, cost, tensor(1.0), solution.f, solution.g)
    assert_close(solution.error, error(a, b, P), rtol=1e-6, atol=1e-10)
    assert solution.converged == (gap < 100)
    if gap < 100:
        assert_close(P[0, :10, 10:].sum(), torch.tensor(0.01).double(), rtol=1e-6, atol=0)


def test_warm_start_is_free() -> None:
    a, b, cost, eps = (
        weights(2, 20),
        weights(2, 30),
        torch.rand(2, 20, 30).double(),
        tensor(0.1, 1),
    )
    first = solve(a, b, cost, eps)
    again = solve(a, b, cost, eps, start=(first.f, first.g))
    assert again.n_iter.tolist() == [0, 0]
    assert_close(again.f, first.f)
