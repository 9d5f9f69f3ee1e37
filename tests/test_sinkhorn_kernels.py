"""The native Sinkhorn solver and its passes over the plan, below the public functions.

Truths: plain float64 log-sum-exp iterations of torch, POT, and closed forms. Cases of the
reliability list are named in the docstrings.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import Any

import ot
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import _runtime, _sinkhorn
from curvkern.ot import _solve
from test_memory import Guarded

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
    return _solve.solve_dense(a, b, cost, eps, rho, *start, **given)


# One iteration ------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3), (33, 65), (130, 1100)])
@pytest.mark.parametrize("eps", [10.0, 0.02, 1e-5])
def test_first_iterations(shape: tuple[int, int], eps: float, dtype: torch.dtype) -> None:
    """Two iterations from zero equal those of the textbook, at any eps."""
    a, b = weights(1, shape[0]), weights(1, shape[1])
    cost = torch.rand(1, *shape, dtype=torch.float64).to(dtype)
    problem = _sinkhorn.Problem(a, b, cost, None, None, "", 1.0, tensor(eps), rhos(1))
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
    dense = _solve.solve_dense(a, b, cost, eps, rhos(3), None, None, **options)
    points = _solve.solve_points(
        a, b, x, y, kind, eps, rhos(3), None, None, scale=1.7, **options
    )
    assert points.converged.all()
    assert_close(points.f, dense.f, rtol=1e-9, atol=1e-9)
    assert_close(points.g, dense.g, rtol=1e-9, atol=1e-9)
    v, u = torch.randn(3, 37, 2).double(), torch.randn(3, 41).double()
    given = (eps, dense.f, dense.g)
    assert_close(
        _solve.apply_points(a, b, x, y, kind, *given, v, scale=1.7),
        _solve.apply_dense(a, b, cost, *given, v),
    )
    assert_close(
        _solve.apply_points(a, b, x, y, kind, *given, u, True, scale=1.7),
        _solve.apply_dense(a, b, cost, *given, u, True),
    )
    assert_close(
        _solve.marginals_points(a, b, x, y, kind, *given, scale=1.7),
        _solve.marginals_dense(a, b, cost, *given),
    )


def test_float32_costs_between_far_clouds() -> None:
    """Costs are formed from differences: an offset of 1000 does not blur distances of 1."""
    x, y = torch.rand(1, 50, 3) + 1000, torch.rand(1, 60, 3) + 1000
    a, b, eps = weights(1, 50), weights(1, 60), tensor(0.05)
    solution = _solve.solve_points(
        a, b, x, y, "sqeuclidean", eps, rhos(1), None, None,
        max_iter=5000, tol=1e-12, check_every=10,
    )  # fmt: skip
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
    sums = _solve.marginals_dense(a, b, cost, tensor(0.05), solution.f, solution.g)
    assert_close(sums.linear_cost, torch.where(forbidden, 0, P * cost.double()).sum((1, 2)))


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


# Passes over the plan -----------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("shape", [(1, 1), (6, 9), (70, 130), (300, 700)])
def test_products(shape: tuple[int, int], dtype: torch.dtype) -> None:
    n, m = shape
    a, b, cost = weights(2, n), weights(2, m), torch.rand(2, n, m).to(dtype)
    eps, f, g = tensor(0.3, 0.1), torch.randn(2, n).double() / 9, torch.randn(2, m).double() / 9
    P = plan(a, b, cost, eps, f, g)
    v, u = torch.randn(2, m, 11).double(), torch.randn(2, n, 11).double()
    given = (a, b, cost, eps, f, g)
    assert_close(_solve.apply_dense(*given, v), P @ v, rtol=1e-12, atol=1e-13)
    assert_close(_solve.apply_dense(*given, v[..., 0]), (P @ v)[..., 0], rtol=1e-12, atol=1e-13)
    assert_close(_solve.apply_dense(*given, u, True), P.mT @ u, rtol=1e-12, atol=1e-13)
    sums = _solve.marginals_dense(*given)
    ab = a[:, :, None] * b[:, None]
    assert_close(sums.row, P.sum(2))
    assert_close(sums.col, P.sum(1))
    assert_close(sums.linear_cost, (P * cost.double()).sum((1, 2)))
    assert_close(sums.kl, ((P * (P / ab).log()) - P + ab).sum((1, 2)), rtol=1e-10, atol=1e-12)


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
    for given, W in (((), P), ((u, w), P * (u[:, :, None] + w[:, None]))):
        expected = list(torch.autograd.grad((0.7 * costs(kind, *z) * W).sum(), z))
        result = _solve.points_gradient(a, b, x, y, kind, eps, f, g, *given, scale=0.7)
        assert_close(list(result), expected, rtol=1e-11, atol=1e-13)


def test_exponential_is_accurate() -> None:
    """One entry a problem: P = exp(f), to the bound at the top of csrc/sinkhorn/exp2.hpp."""
    f = torch.linspace(-600, 600, 20_001, dtype=torch.float64)[:, None]
    one = torch.ones_like(f)
    P = _solve.marginals_dense(one, one, 0 * one[:, None], one[:, 0], f, 0 * f).row
    # log2(e) f is rounded before it is used
    bound = 3e-16 + 2.0**-53 * (f.abs() * 2 + 2)
    assert ((P / f.exp() - 1).abs() <= bound).all()


# Processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 700, 900), (5, 60, 50), (2, 400, 500)])
@both_dtypes
def test_bits_do_not_depend_on_threads(
    shape: tuple[int, int, int], dtype: torch.dtype, thread_counts: Any
) -> None:
    """R47."""
    batch, n, m = shape
    a, b, cost = weights(batch, n), weights(batch, m), torch.rand(shape).to(dtype)
    eps = torch.full((batch,), 0.01, dtype=torch.float64)
    results = []
    for count in (1, 2, 3, 7):
        thread_counts(count)
        s = solve(a, b, cost, eps, max_iter=45, tol=1e-8)
        v = torch.ones(batch, m, dtype=torch.float64)
        results.append((*s[:5], _solve.apply_dense(a, b, cost, eps, s.f, s.g, v)))
    for other in results[1:]:
        assert_close(other, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("isa", ["v2", "v3", "v4", "baseline"])
def test_every_instruction_set(isa: str, run_python: Any, tmp_path: Any) -> None:
    supported = _runtime.build_info()["isas"]
    if isa not in supported:
        pytest.skip(f"this processor runs {', '.join(supported)}, not {isa}")
    x, y, a, b = torch.randn(1, 70, 3), torch.randn(1, 90, 3), weights(1, 70), weights(1, 90)
    eps, rho = tensor(0.2), rhos(1)
    torch.save((x, y, a, b, eps, rho), tmp_path / "inputs.pt")
    run_python(
        f"""
        import torch
        from curvkern import _runtime
        from curvkern.ot import _solve
        assert _runtime.isa() == {isa!r}
        x, y, a, b, eps, rho = torch.load({str(tmp_path / "inputs.pt")!r})
        options = dict(max_iter=3000, tol=1e-11, check_every=10)
        results = []
        for dtype in (torch.float64, torch.float32):
            p = x.to(dtype), y.to(dtype)
            cost = torch.cdist(*p)
            s = _solve.solve_dense(a, b, cost, eps, rho, None, None, **options)
            q = _solve.solve_points(a, b, *p, "euclidean", eps, rho, None, None, **options)
            gradient = _solve.points_gradient(a, b, *p, "euclidean", eps, q.f, q.g)
            results.append((cost, *s[:2], s.converged & q.converged, *q[:2], *gradient))
        torch.save(results, {str(tmp_path / "results.pt")!r})
        """,
        environment={"CURVKERN_ISA": isa},
    )
    for cost, f, g, converged, *points in torch.load(tmp_path / "results.pt"):
        assert converged.all()
        assert error(a, b, plan(a, b, cost, eps, f, g)) < 2e-11
        options: dict[str, Any] = {"max_iter": 3000, "tol": 1e-11, "check_every": 10}
        p = x.to(cost.dtype), y.to(cost.dtype)
        here = _solve.solve_points(a, b, *p, "euclidean", eps, rho, None, None, **options)
        gradient = _solve.points_gradient(a, b, *p, "euclidean", eps, here.f, here.g)
        assert_close(points, [*here[:2], *gradient], rtol=1e-8, atol=1e-8)


@both_dtypes
@pytest.mark.parametrize("end", ["front", "back"])
def test_no_access_beyond_the_cost(dtype: torch.dtype, end: str) -> None:
    """R54."""
    memory = Guarded()
    for n, m in [(1, 1), (2, 3), (3, 17), (5, 33), (7, 40), (16, 16)]:
        cost = memory.tensor(n * m, dtype, end).view(1, n, m)
        cost.copy_(torch.rand(1, n, m))
        a, b = weights(1, n), weights(1, m)
        for eps in (1.0, 1e-4):  # the second takes the way around underflow as well
            guarded = solve(a, b, cost, tensor(eps), max_iter=20)
            plain = solve(a, b, cost.clone(), tensor(eps), max_iter=20)
            assert_close(guarded.f, plain.f, rtol=0, atol=0)
        given = (a, b, cost, tensor(1.0), guarded.f, guarded.g)
        assert _solve.apply_dense(*given, torch.ones_like(b)).isfinite().all()


def test_callback_and_history() -> None:
    a, b, cost = weights(3, 20), weights(3, 30), torch.rand(3, 20, 30).double()
    seen: list[tuple[int, Tensor]] = []
    solution = solve(
        a, b, cost, tensor(0.1, 0.05, 0.01), check_every=7,
        callback=lambda i, e: seen.append((i, e)),
    )  # fmt: skip
    assert [i for i, _ in seen] == [7 * (k + 1) for k in range(len(seen))]
    assert solution.history == [(i, e.max().item()) for i, e in seen]
    assert_close(seen[-1][1], solution.error, rtol=0, atol=0)
    assert solution.n_iter.max() == seen[-1][0]


def test_raising_callback() -> None:
    """R49."""

    def stop(iteration: int, _: Tensor) -> None:
        raise KeyError(iteration)

    a, b, cost = weights(1, 20), weights(1, 30), torch.rand(1, 20, 30).double()
    with pytest.raises(KeyError, match="30"):
        solve(a, b, cost, tensor(1e-3), check_every=30, callback=stop)
    assert solve(a, b, cost, tensor(1.0)).converged.all()


def test_max_iter() -> None:
    a, b, cost = weights(1, 20), weights(1, 30), torch.rand(1, 20, 30).double()
    for count in (0, 1, 9, 10, 11, 25):
        solution = solve(a, b, cost, tensor(1e-3), max_iter=count)
        assert solution.n_iter.tolist() == [count]
        assert not solution.converged.any()
        P = plan(a, b, cost, tensor(1e-3), solution.f, solution.g)
        assert_close(solution.error, error(a, b, P), rtol=1e-9, atol=1e-12)


def test_long_history_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sinkhorn, "HISTORY", 8)
    a, b, cost = weights(1, 20), weights(1, 30), torch.rand(1, 20, 30).double()
    history = solve(a, b, cost, tensor(1e-4), max_iter=100, check_every=1, tol=0).history
    steps = [i for i, _ in history]
    assert len(steps) <= 8
    assert steps == list(range(1, 101, 16))


@pytest.mark.parametrize("shape", [(1, 600, 600), (4, 100, 100)])
def test_interrupt(shape: tuple[int, int, int]) -> None:
    """R43: Ctrl-C ends a solve that would take minutes; the next one works."""
    a, b, cost = weights(*shape[:2]), weights(*shape[::2]), torch.rand(shape).double()
    eps = torch.full((shape[0],), 1e-5, dtype=torch.float64)
    pressed: list[float] = []
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        time.sleep(0.3)
        pressed.append(time.perf_counter())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            solve(a, b, cost, eps, max_iter=10**8, check_every=10**7, tol=0)
        ended = time.perf_counter()
    finally:
        presser.join()
        signal.signal(signal.SIGINT, previous)
    assert ended - pressed[0] < 2.0
    assert solve(a, b, cost, eps, max_iter=3).f.isfinite().all()


def test_fork_after_parallel_use(run_python: Any) -> None:
    """R46."""
    run_python(
        """
        import os, warnings
        warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads
        import torch
        from curvkern.ot import _solve
        torch.set_num_threads(4)
        a = torch.full((1, 500), 1 / 500, dtype=torch.float64)
        cost, eps = torch.rand(1, 500, 500).double(), torch.ones(1).double()
        rho = torch.full((1, 2), torch.inf).double()
        options = dict(max_iter=50, tol=1e-10, check_every=10)
        expected = _solve.solve_dense(a, a, cost, eps, rho, None, None, **options)
        child = os.fork()
        if child == 0:
            again = _solve.solve_dense(a, a, cost, eps, rho, None, None, **options)
            os._exit(0 if bytes(again.f.numpy()) == bytes(expected.f.numpy()) else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    )


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
    with pytest.raises(ValueError, match=r"cost must be one of .* got 'cosine'"):
        _solve.solve_points(
            a, b, cost[..., :3], cost[..., 3:].mT.contiguous()[:, :, :3].repeat(1, 2, 1),
            "cosine", tensor(1, 1), rhos(2), None, None, max_iter=1, tol=1.0, check_every=1,
        )  # fmt: skip
