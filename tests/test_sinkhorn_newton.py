"""The sparse Newton solver against dense Newton steps in extended precision.

P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps).
"""

from __future__ import annotations

import signal
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from curvkern import _cpu

INF = float("inf")


class Solution(NamedTuple):
    f: np.ndarray
    g: np.ndarray
    error: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    trace: np.ndarray


def solve(
    a,
    b,
    cost,
    eps,
    rho=(INF, INF),
    *,
    tol=1e-10,
    max_iter=2000,
    start=None,
):
    """All arguments with a leading batch dimension, or all without."""
    batched = np.ndim(cost) == 3
    cost = torch.from_numpy(np.array(cost if batched else cost[None], order="C"))
    size, n, m = cost.shape

    def spread(x, *shape):
        return torch.zeros(size, *shape, dtype=torch.float64) + torch.as_tensor(
            x, dtype=torch.float64
        )

    f, g = (0.0, 0.0) if start is None else start
    f, g = spread(f, n), spread(g, m)
    result = torch.zeros(size, 3, dtype=torch.float64)
    trace = torch.full((size, max_iter), torch.nan, dtype=torch.float64)
    _cpu.sinkhorn_newton(
        spread(a, n),
        spread(b, m),
        cost,
        spread(eps),
        spread(rho, 2),
        f,
        g,
        result,
        trace,
        max_iter=max_iter,
        tol=tol,
        warm_start=start is not None,
    )
    error, iterations, converged = result.numpy().T
    parts = (f.numpy(), g.numpy(), error, iterations, converged == 1, trace.numpy())
    return Solution(*(parts if batched else (part[0] for part in parts)))


def marginals(a, b, cost, eps, rho, f, g):
    """Plan, and the residuals of the optimality conditions, in extended precision."""
    a, b, cost, f, g = (np.asarray(x, np.longdouble) for x in (a, b, cost, f, g))
    with np.errstate(over="ignore"):
        plan = a[:, None] * b * np.exp((f[:, None] + g - cost) / eps)
    rows = a * np.exp(-f / np.longdouble(rho[0])) if rho[0] < INF else a
    columns = b * np.exp(-g / np.longdouble(rho[1])) if rho[1] < INF else b
    return plan, rows, columns


def error_of(a, b, cost, eps, rho, f, g):
    plan, rows, columns = marginals(a, b, cost, eps, rho, f, g)
    total = abs(plan.sum(1) - rows).sum() + abs(plan.sum(0) - columns).sum()
    return float(total / max(a.sum(), b.sum()))


def polish(a, b, cost, eps, rho, f, g):
    """Dense Newton steps with residuals in extended precision: (f, g), gauge left open."""
    f, g = np.asarray(f, np.longdouble), np.asarray(g, np.longdouble)
    n = len(f)
    gauge = np.concatenate([np.ones(len(f)), -np.ones(len(g))])
    for _ in range(6):
        plan, rows, columns = marginals(a, b, cost, eps, rho, f, g)
        residual = np.concatenate([rows - plan.sum(1), columns - plan.sum(0)])
        diagonal = np.concatenate([plan.sum(1), plan.sum(0)])
        diagonal += np.concatenate([rows * eps / rho[0], columns * eps / rho[1]])
        hessian = np.diag(diagonal).astype(float)
        hessian[:n, n:], hessian[n:, :n] = plan, plan.T
        scale = 1 / np.sqrt(diagonal).astype(float)
        hessian *= scale[:, None] * scale
        if min(rho) == INF:
            hessian += np.outer(gauge / scale, gauge / scale)
        step = scale * np.linalg.solve(hessian, scale * residual.astype(float))
        f, g = f + eps * step[:n], g + eps * step[n:]
    assert error_of(a, b, cost, eps, rho, f, g) < 1e-14
    return f, g


def uniform(n):
    return np.full(n, 1 / n)


def assignment(n, eps, seed, m=None):
    rng = np.random.default_rng(seed)
    m = n if m is None else m
    return uniform(n), uniform(m), rng.random((n, m)), eps


def lattice(power, eps, seed, side=10):
    """Two random images on a grid, whose L1 costs make the unregularised optimum degenerate."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(range(side), range(side)), -1).reshape(-1, 2)
    cost = (np.abs(grid[:, None] - grid[None]) ** power).sum(-1).astype(float)
    a, b = rng.random((2, side * side)) ** 4 + 0.01
    return a / a.sum(), b / b.sum(), cost / cost.max(), eps


def clouds(n, m, dims, relative_eps, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, dims)), rng.standard_normal((m, dims)) + 0.5
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    a, b = rng.random(n) + 0.1, rng.random(m) + 0.1
    return a / a.sum(), b / b.sum(), cost, relative_eps * cost.max()


HARD = {
    "assignment": assignment(100, 1 / 480, 1),
    "wide": assignment(40, 1 / 300, 2, m=90),
    "tall": assignment(90, 1 / 300, 3, m=40),
    "lattice L1": lattice(1, 1 / 600, 4),
    "lattice L2": lattice(2, 1 / 600, 5),
    "plane": clouds(70, 50, 2, 1e-3, 6),
    "far": clouds(60, 80, 30, 1e-3, 7),
    "smooth": clouds(50, 60, 3, 0.5, 8),
}
RHO = {
    "hard": (INF, INF),
    "soft": (0.5, 0.5),
    "semi": (INF, 0.3),
    "other semi": (0.3, INF),
    "nearly hard": (1e5, 1e5),
    "loose": (1e-3, 2.0),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_problems(name):
    a, b, cost, eps = HARD[name]
    rho = RHO["hard"]
    s = solve(a, b, cost, eps, tol=1e-12)
    assert s.converged
    assert s.error <= 1e-12
    assert s.iterations < 90
    assert error_of(a, b, cost, eps, rho, s.f, s.g) <= 1.5e-12
    f, g = polish(a, b, cost, eps, rho, s.f, s.g)
    # Potentials are determined as well as the plan's smallest spectral gap lets them.
    np.testing.assert_allclose(
        s.f[:, None] + s.g, (f[:, None] + g).astype(float), 0, 1e-6 * eps
    )
    assert abs((a @ s.f) / a.sum() - (b @ s.g) / b.sum()) < 1e-13 * (1 + abs(s.f).max())


@pytest.mark.parametrize("kind", [kind for kind in RHO if kind != "hard"])
@pytest.mark.parametrize("name", ["wide", "lattice L1", "plane"])
def test_soft_marginals(name, kind):
    a, b, cost, eps = HARD[name]
    s = solve(a, 1.5 * b if kind != "nearly hard" else b, cost, eps, RHO[kind], tol=1e-11)
    b = 1.5 * b if kind != "nearly hard" else b
    assert s.converged
    assert s.iterations < 150
    assert error_of(a, b, cost, eps, RHO[kind], s.f, s.g) <= 2e-11
    f, g = polish(a, b, cost, eps, RHO[kind], s.f, s.g)
    np.testing.assert_allclose(
        s.f[:, None] + s.g, (f[:, None] + g).astype(float), 0, 1e-5 * eps
    )


@pytest.mark.parametrize("seed", range(3))
def test_tiny_eps_finds_the_assignment(seed):
    a, b, cost, _ = assignment(60, 1, seed)
    s = solve(a, b, cost, 1e-6, tol=1e-8)
    assert s.converged
    rows, columns = linear_sum_assignment(cost)
    plan, _, _ = marginals(a, b, cost, 1e-6, RHO["hard"], s.f, s.g)
    np.testing.assert_array_equal(plan.argmax(1), columns)
    exact = cost[rows, columns].mean()
    assert (plan * cost).sum() - exact + 1e-7 >= 0
    assert (plan * cost).sum() - exact < 1e-5


def test_zero_masses_get_the_transform():
    a, b, cost, eps = clouds(30, 45, 2, 1e-2, 11)
    a[[0, 7]] = 0
    b[[3, 44]] = 0
    a, b = a / a.sum(), b / b.sum()
    s = solve(a, b, cost, eps)
    assert s.converged
    part = solve(a[a > 0], b[b > 0], cost[a > 0][:, b > 0], eps)
    shift = s.f[a > 0][0] - part.f[0]
    np.testing.assert_allclose(s.f[a > 0], part.f + shift, atol=1e-8 * eps)
    for i in (0, 7):
        want = -eps * np.log((b * np.exp((s.g - cost[i]) / eps)).sum())
        assert s.f[i] == pytest.approx(want, abs=1e-12)
    for j in (3, 44):
        want = -eps * np.log((a * np.exp((s.f - cost[:, j]) / eps)).sum())
        assert s.g[j] == pytest.approx(want, abs=1e-12)


def test_forbidden_pairs():
    """Separate blocks leave a potential open each; some rows have one way only."""
    rng = np.random.default_rng(12)
    cost = rng.random((40, 40))
    cost[:15, 15:] = cost[15:, :15] = INF
    cost[20, :] = cost[:, 20] = INF
    cost[20, 20] = 0.5
    cost[rng.random((40, 40)) < 0.3] += 1
    s = solve(uniform(40), uniform(40), cost, 1e-3)
    assert s.converged
    assert np.isfinite(s.f).all()
    assert np.isfinite(s.g).all()
    plan, _, _ = marginals(uniform(40), uniform(40), cost, 1e-3, RHO["hard"], s.f, s.g)
    assert (plan[np.isinf(cost)] == 0).all()
    assert abs(plan.sum(0) - 1 / 40).sum() + abs(plan.sum(1) - 1 / 40).sum() < 1.1e-10


def test_infeasible_support_ends():
    """Two rows that share their only column cannot both send their mass."""
    cost = np.random.default_rng(13).random((20, 20))
    cost[:2, 1:] = INF
    s = solve(uniform(20), uniform(20), cost, 1e-2, max_iter=300)
    assert not s.converged
    assert np.isfinite(s.f).all()
    assert np.isfinite(s.g).all()
    assert 0.05 < s.error < 0.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_small_shapes(shape):
    rng = np.random.default_rng(14)
    n, m = shape
    cost = rng.standard_normal(shape)
    s = solve(uniform(n), uniform(m), cost, 1e-3, tol=1e-12)
    assert s.converged
    assert error_of(uniform(n), uniform(m), cost, 1e-3, RHO["hard"], s.f, s.g) < 2e-12


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales(scale):
    a, b, cost, eps = HARD["plane"]
    s, scaled = solve(a, b, cost, eps), solve(a, b, cost * scale, eps * scale)
    np.testing.assert_allclose(scaled.f / scale, s.f, atol=1e-7 * eps)
    masses = solve(a * scale, b * scale, cost, eps)
    assert masses.converged
    assert masses.iterations == s.iterations
    # P scales with the masses: f + g takes the logarithm of the scale.
    moved = s.f[:, None] + s.g - eps * np.log(scale)
    np.testing.assert_allclose(masses.f[:, None] + masses.g, moved, atol=1e-6 * eps)


def test_large_costs_far_apart():
    a, b, cost, _ = HARD["plane"]
    cost = cost.copy()
    cost[:, 0] += 1e14
    s = solve(a, b, cost, 1e14, tol=1e-10)
    assert s.converged
    negative = solve(a, b, -cost, 1e14, tol=1e-10)
    assert negative.converged


def test_batch_equals_single_problems_bitwise():
    a, b, cost, _ = assignment(33, 1, 15, m=41)
    costs = np.stack([cost, cost[::-1], cost**2, 10 * cost])
    eps = np.array([1.0, 1e-2, 1e-3, 1e-4])
    together = solve(a, b, costs, eps)
    assert together.converged.all()
    assert len(set(together.iterations)) > 1
    for k in range(4):
        alone = solve(a, b, costs[k], eps[k])
        for part in ("f", "g", "error", "iterations"):
            np.testing.assert_array_equal(getattr(alone, part), getattr(together, part)[k])


def test_threads_do_not_matter():
    problem = assignment(300, 1 / 700, 16)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(solve(*problem))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        np.testing.assert_array_equal(other.f, results[0].f)
        np.testing.assert_array_equal(other.g, results[0].g)


def test_float32_costs_lose_nothing():
    a, b, cost, eps = HARD["assignment"]
    narrow = cost.astype(np.float32)
    s, wide = solve(a, b, narrow, eps), solve(a, b, narrow.astype(np.float64), eps)
    assert s.converged
    assert s.error <= 1e-10
    np.testing.assert_array_equal(s.f, wide.f)


@pytest.mark.parametrize("name", ["assignment", "lattice L1", "smooth"])
def test_warm_start(name):
    a, b, cost, eps = HARD[name]
    s = solve(a, b, cost, eps)
    again = solve(a, b, cost, eps, start=(s.f, s.g))
    assert again.converged
    assert again.iterations <= 3
    near = solve(a, b, cost, 1.05 * eps, start=(s.f, s.g))
    assert near.converged
    assert near.iterations < solve(a, b, cost, 1.05 * eps).iterations


def test_max_iter_is_kept():
    for limit in (1, 3, 10):
        s = solve(*HARD["lattice L1"], max_iter=limit)
        assert s.iterations == limit
        assert not s.converged
        assert np.isfinite(s.f).all()
        assert np.isfinite(s.g).all()
        assert 1e-10 < s.error < 2.1
        true = error_of(*HARD["lattice L1"], RHO["hard"], s.f, s.g)
        assert s.error == pytest.approx(true, rel=1e-6)


def test_trace():
    s = solve(*HARD["wide"])
    done = int(s.iterations)
    assert np.isfinite(s.trace[:done]).all()
    assert np.isnan(s.trace[done:]).all()
    assert s.trace[done - 1] <= 1e-10 < s.trace[:3].min()


def test_unreachable_tolerance_ends_early():
    s = solve(*HARD["plane"], tol=1e-30, max_iter=5000)
    assert not s.converged
    assert s.iterations < 400
    assert s.error < 1e-12


def test_interrupt():
    class Rung(Exception):
        pass

    def ring(*_):
        raise Rung

    problem = clouds(1500, 1500, 2, 1e-5, 17)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        began = time.perf_counter()
        with pytest.raises(Rung):
            solve(*problem, tol=1e-15)
        assert time.perf_counter() - began < 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_refusals():
    zeros = [
        torch.zeros(s, dtype=torch.float64) for s in ((1, 3), (1, 4), (1, 3, 4), (1,), (1, 2))
    ]
    a, b, cost, eps, rho = zeros
    result, trace = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 0).double()
    options = {"max_iter": 1, "tol": 0.1, "warm_start": False}

    def call(a=a, cost=cost, eps=eps):
        _cpu.sinkhorn_newton(
            a, b, cost, eps, rho, a.clone(), b.clone(), result, trace, **options
        )

    with pytest.raises(ValueError, match=r"a must have shape \(1, 3\), got \(1, 4\)"):
        call(a=b)
    with pytest.raises(TypeError, match="a must be float64"):
        call(a=a.float())
    with pytest.raises(ValueError, match="cost must have 3 dimensions, got 2"):
        call(cost=cost[0])
    with pytest.raises(ValueError, match=r"eps must have shape \(1\), got \(1, 2\)"):
        call(eps=rho)
