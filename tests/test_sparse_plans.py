"""Quadratic and sparsity-constrained transport: against a dense QP solver, POT and the dual."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.testing import assert_close

import curvkern
from curvkern import _runtime, ot
from sparse_plan_problems import FUNCTIONS, every_function, problem


def objective(P: Tensor, C: Tensor, gamma: float) -> float:
    cost = torch.where(P > 0, C, 0.0)
    return ((P * cost).sum() + gamma / 2 * (P * P).sum()).item()


def check(result: ot.SparsePlanResult, a: Tensor, b: Tensor, C: Tensor, gamma: float) -> None:
    """What every converged result promises, recomputed from the plan."""
    P, mass = result.plan, a.sum().item()
    assert result.converged
    assert (P >= 0).all()
    assert (P.sum(1) - a).abs().sum() <= 2e-9 * mass
    assert_close(P.sum(0), b, rtol=1e-14, atol=1e-14 * mass)
    assert_close(objective(P, C, gamma), result.value.item(), rtol=1e-12, atol=0)
    assert result.lower_bound <= result.value.item() + 1e-8 * abs(result.value.item())
    if result.k is not None:
        assert int((P > 0).sum(0).max()) <= result.k
    wanted = ((result.f[:, None] + result.g - C) / gamma).clamp_min(0)
    assert_close(P[P > 0], wanted[P > 0], rtol=1e-9, atol=1e-12 * mass)
    if result.k is None:
        assert_close(P, wanted, rtol=1e-9, atol=1e-12 * mass)
        dual = a @ result.f + b @ result.g - gamma / 2 * (wanted**2).sum()
        assert_close(dual.item(), result.value.item(), rtol=1e-8, atol=0)
    assert_close((a @ result.f).item(), (b @ result.g).item(), rtol=1e-9, atol=1e-12)


def quadratic_program(
    a: Tensor, b: Tensor, C: Tensor, gamma: float, allowed: np.ndarray | None = None
) -> float | None:
    """The value by SciPy's SLSQP, with zeros outside `allowed`; None where it is infeasible."""
    n, m = C.shape
    cost = C.numpy().ravel()
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))[:-1]
    A, target = np.vstack([rows, columns]), np.concatenate([a, b[:-1]])
    bounds = [(0, 1)] * (n * m) if allowed is None else [(0, int(x)) for x in allowed.flat]
    linear = scipy.optimize.linprog(cost, A_eq=A, b_eq=target, bounds=bounds)
    if linear.status != 0:
        return None
    solved = scipy.optimize.minimize(
        lambda p: cost @ p + gamma / 2 * p @ p,
        linear.x,
        jac=lambda p: cost + gamma * p,
        bounds=bounds,
        constraints={"type": "eq", "fun": lambda p: A @ p - target, "jac": lambda _: A},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    return float(solved.fun)


# Values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.01, 0.3, 3.0, 100.0])
@pytest.mark.parametrize(("n", "m"), [(4, 5), (6, 3), (1, 4), (4, 1), (1, 1)])
def test_quadratic_program(n: int, m: int, gamma: float) -> None:
    a, b, C = problem(n, m)
    result = ot.quadratic_ot(a, b, C, gamma)
    check(result, a, b, C, gamma)
    assert_close(result.value.item(), quadratic_program(a, b, C, gamma), rtol=1e-7, atol=0)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("gamma", [0.1, 2.0, 30.0])
def test_all_supports(k: int, gamma: float) -> None:
    """The best of all supports of k in each column is bounded, and nearly reached."""
    n = m = 3
    _, _, C = problem(n, m)
    a = b = torch.full((n,), 1 / n, dtype=torch.float64)
    columns = [*itertools.combinations(range(n), k)]
    values = []
    for choice in itertools.product(columns, repeat=m):
        allowed = np.zeros((n, m), dtype=bool)
        for j, kept in enumerate(choice):
            allowed[list(kept), j] = True
        values.append(quadratic_program(a, b, C, gamma, allowed))
    best = min(value for value in values if value is not None)
    result = ot.sparsity_constrained_ot(None, None, C, gamma, k)
    check(result, a, b, C, gamma)
    assert result.lower_bound <= best * (1 + 1e-6)
    assert best * (1 - 1e-6) <= result.value.item() <= best * 1.1


@pytest.mark.parametrize("gamma", [0.1, 1.0, 20.0])
def test_against_pot(gamma: float) -> None:
    smooth = pytest.importorskip("ot", reason="POT is not installed").smooth
    a, b, C = problem(60, 45)
    arrays = a.numpy(), b.numpy(), C.numpy()
    P = smooth.smooth_ot_dual(*arrays, gamma, reg_type="l2", numItermax=5000, stopThr=1e-15)
    result = ot.quadratic_ot(a, b, C, gamma)
    check(result, a, b, C, gamma)
    assert_close(result.plan.numpy(), P, rtol=0, atol=1e-5)
    assert_close(result.value.item(), objective(torch.tensor(P), C, gamma), rtol=1e-5, atol=0)


@pytest.mark.parametrize("k", [3, 5, 10])
@pytest.mark.parametrize("gamma", [0.05, 1.0, 30.0])
def test_sparsity(k: int, gamma: float) -> None:
    a, b, C = problem(40, 50)
    dense = ot.quadratic_ot(a, b, C, gamma)
    result = ot.sparsity_constrained_ot(a, b, C, gamma, k)
    check(result, a, b, C, gamma)
    assert result.value >= dense.value * (1 - 1e-8)
    assert result.lower_bound >= dense.lower_bound * (1 - 1e-8)
    if int((dense.plan > 0).sum(0).max()) <= k:
        assert torch.equal(result.plan, dense.plan)


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 50.0])
def test_one_nonzero_is_the_assignment(gamma: float) -> None:
    """With equal masses and k = 1 the regularisation is constant."""
    _, _, C = problem(30, 30)
    result = ot.sparsity_constrained_ot(None, None, C, gamma, 1)
    rows, columns = scipy.optimize.linear_sum_assignment(C.numpy())
    assert result.converged
    assert_close(result.plan[rows, columns], torch.full((30,), 1 / 30).double())
    assert_close(result.value.item(), C[rows, columns].mean().item() + gamma / 2 / 30)


def test_impossible_sparsity_is_told() -> None:
    """Two rows share one column: with k = 1 one of them gets nothing."""
    C = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
    with pytest.warns(
        curvkern.ConvergenceWarning, match=r"row marginals are off by 1 .*tol=1e"
    ):
        result = ot.sparsity_constrained_ot(None, None, C, 1.0, 1)
    assert not result.converged
    assert_close(result.plan.sum(0), torch.ones(1).double())
    assert int((result.plan > 0).sum()) == 1
    assert result.marginal_error == 1
    assert result.value.isfinite()


@every_function
@pytest.mark.parametrize("cost", [1e-30, 1e30])
@pytest.mark.parametrize("mass", [1e-30, 1e10])
def test_scales(name: str, cost: float, mass: float) -> None:
    """R09"""
    a, b, C = problem(12, 9)
    plain = FUNCTIONS[name](a, b, C, 1.0)
    scaled = FUNCTIONS[name](mass * a, mass * b, cost * C - 3 * cost, cost / mass)
    assert_close(scaled.plan / mass, plain.plan, rtol=1e-9, atol=1e-12)
    assert_close(scaled.value.item() / (cost * mass), plain.value.item() - 3, rtol=1e-9, atol=0)
    potentials = (scaled.f[:, None] + scaled.g) / cost + 3
    assert_close(potentials, plain.f[:, None] + plain.g, rtol=0, atol=1e-8)


def test_constant_costs() -> None:
    result = ot.quadratic_ot(None, None, torch.full((3, 4), 7.0, dtype=torch.float64), 1.0)
    assert_close(result.plan, torch.full((3, 4), 1 / 12).double())
    assert_close(result.value.item(), 7 + 1 / 24)


@every_function
@pytest.mark.parametrize("gamma", [1e-2, 1e-4, 1e-6])
def test_small_gamma_in_float32(name: str, gamma: float) -> None:
    """R07: finite, and converged only where the marginals are met."""
    a, b, C = problem(50, 50, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", curvkern.ConvergenceWarning)
        result = FUNCTIONS[name](a, b, C, gamma, max_iter=300)
    assert result.value.isfinite()
    assert result.plan.dtype == result.value.dtype == torch.float32
    error = (result.plan.double().sum(1) - a.double() / a.double().sum()).abs().sum().item()
    assert error <= result.marginal_error + 1e-6
    assert result.converged == (result.marginal_error <= 1e-9)


@every_function
def test_barred_entries_and_empty_points(name: str) -> None:
    """R02, R03"""
    a, b, C = problem(8, 7)
    a[2] = b[4] = 0
    a, b = a / a.sum(), b / b.sum()
    C[0, :5] = torch.inf
    C[2] = torch.inf
    C[1, 4] = torch.inf
    a, b, C = (t.requires_grad_() for t in (a, b, C))
    result = FUNCTIONS[name](a, b, C, 0.5)
    P = result.plan
    assert (P[C.detach().isinf()] == 0).all()
    assert (P[2] == 0).all()
    assert (P[:, 4] == 0).all()
    assert (P.sum(1) - a).abs().sum() < 1e-9
    for gradient in torch.autograd.grad(result.value, (a, b, C)):
        assert gradient.isfinite().all()
    kept_a, kept_b = a.detach() > 0, b.detach() > 0
    smaller = FUNCTIONS[name](
        a.detach()[kept_a], b.detach()[kept_b], C.detach()[kept_a][:, kept_b], 0.5
    )
    assert_close(P[kept_a][:, kept_b], smaller.plan)


def test_potentials_of_empty_points() -> None:
    """The largest that keep the plan zero there: what a little mass would be charged."""
    a, b, C = problem(6, 5)
    a[3] = 0
    a = a / a.sum()
    result = ot.quadratic_ot(a, b, C, 0.5)
    assert_close(result.f[3], (C[3] - result.g).min())
    h = 1e-5
    more = ot.quadratic_ot((a + h * (torch.arange(6) == 3)) / (1 + h), b, C, 0.5)
    mean = (a * result.f).sum()
    slope = (more.value - result.value) / h
    assert_close(slope, result.f[3] - mean, rtol=0, atol=1e-3)


# Gradients ----------------------------------------------------------------------------------


@every_function
def test_gradients_by_differences(name: str) -> None:
    a, b, C = (t.requires_grad_() for t in problem(7, 6))
    gamma, h = 0.7, 1e-5
    result = FUNCTIONS[name](a, b, C, gamma)
    da, db, dC = torch.autograd.grad(3 * result.value, (a, b, C))
    assert_close(dC, 3 * result.plan)
    assert_close((da, db), (3 * result.f, 3 * result.g))
    va, vb, vC = torch.randn(7).double(), torch.randn(6).double(), torch.randn(7, 6).double()
    va, vb = va - va.mean(), vb - vb.mean()  # the masses stay equal

    def moved(t: float) -> float:
        with torch.no_grad():
            return FUNCTIONS[name](a + t * va, b + t * vb, C + t * vC, gamma).value.item()

    slope = (moved(h) - moved(-h)) / (2 * h)
    expected = ((da * va).sum() + (db * vb).sum() + (dC * vC).sum()).item() / 3
    assert_close(slope, expected, rtol=1e-5, atol=1e-7)


def test_gradient_transforms() -> None:
    a, b, C = problem(5, 4)
    expected = ot.quadratic_ot(a, b, C, 1.0).plan
    got = torch.func.grad(lambda C: ot.quadratic_ot(a, b, C, 1.0).value)(C)
    assert_close(got, expected)
    C.requires_grad_()
    (slope,) = torch.autograd.grad(ot.quadratic_ot(a, b, C, 1.0).value, C, create_graph=True)
    with pytest.raises(RuntimeError, match="quadratic_ot: second derivatives are not implem"):
        slope.pow(2).sum().backward()
    with torch.no_grad():
        assert not ot.quadratic_ot(a, b, C, 1.0).value.requires_grad


# The result, and the run --------------------------------------------------------------------


@every_function
def test_plan_sparse(name: str) -> None:
    a, b, C = problem(9, 11)
    result = FUNCTIONS[name](a, b, C, 0.2)
    sparse = result.plan_sparse()
    assert sparse.layout is torch.sparse_csr
    assert torch.equal(sparse.to_dense(), result.plan)
    assert len(sparse.values()) == int((result.plan > 0).sum())
    v = torch.randn(11).double()
    assert_close(sparse @ v, result.plan @ v)


@every_function
def test_one_iteration(name: str) -> None:
    """R08"""
    a, b, C = problem(30, 30)
    with pytest.warns(
        curvkern.ConvergenceWarning, match=f"{name}: .* after 1 steps, tol"
    ) as found:
        result = FUNCTIONS[name](a, b, C, 0.01, max_iter=1)
    assert len(found) == 1
    assert result.n_iter == len(result.history) == 1
    assert not result.converged
    assert result.value.isfinite()
    assert_close(result.plan.sum(0), b)


@every_function
def test_callback(name: str) -> None:
    a, b, C = problem(20, 20)
    seen = []
    result = FUNCTIONS[name](a, b, C, 0.1, callback=lambda i, e: seen.append((i, e.item())))
    assert seen == result.history
    assert [i for i, _ in seen] == [*range(1, result.n_iter + 1)]

    def stop(*_: Any) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        FUNCTIONS[name](a, b, C, 0.1, callback=stop)


@every_function
def test_deterministic(name: str, thread_counts: Any) -> None:
    a, b, C = problem(150, 140)
    results = []
    for threads in (1, 1, 2):
        thread_counts(threads)
        results.append(FUNCTIONS[name](a, b, C, 1.0))
    for again in results[1:]:
        assert again.value == results[0].value
        assert torch.equal(again.plan, results[0].plan)
        assert torch.equal(again.f, results[0].f)


@every_function
def test_reference_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, C = problem(12, 10)
    native = FUNCTIONS[name](a, b, C, 0.5)
    monkeypatch.setattr(_runtime, "_BACKEND", "reference")
    twin = FUNCTIONS[name](a, b, C, 0.5)
    assert_close(twin.plan, native.plan, rtol=0, atol=1e-9)
    assert_close(twin.value, native.value)


def test_interrupt(run_python: Any) -> None:
    """R43: Ctrl-C ends a solve within two seconds, and the next one works."""
    run_python(
        """
        import signal, time, torch
        from curvkern import ot
        C = torch.rand(1500, 1500, dtype=torch.float64)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            ot.sparsity_constrained_ot(None, None, C, 1e-3, 1, max_iter=100_000, tol=1e-15)
            raise SystemExit("not interrupted")
        except KeyboardInterrupt:
            pass
        assert ot.quadratic_ot(None, None, C[:20, :20], 1.0).converged
        """
    )


@every_function
def test_batch(name: str) -> None:
    """Each problem as if alone, with its gradients."""
    parts = [problem(8, 10) for _ in range(3)]
    a, b, C = (torch.stack(t).requires_grad_() for t in zip(*parts, strict=True))
    result = FUNCTIONS[name](a, b, C, 1.0)
    result.value.square().sum().backward()
    for i, (a1, b1, C1) in enumerate(parts):
        C1.requires_grad_()
        one = FUNCTIONS[name](a1, b1, C1, 1.0)
        one.value.square().backward()
        for field in ("f", "g", "value", "plan"):
            assert_close(getattr(result, field)[i], getattr(one, field), rtol=0, atol=0)
        for field in ("lower_bound", "marginal_error", "converged", "n_iter"):
            assert getattr(result, field)[i] == getattr(one, field)
        assert_close(C.grad[i], C1.grad, rtol=0, atol=0)
        assert_close(result.plan_sparse()[i].to_dense(), one.plan, rtol=0, atol=0)
    assert len(result.history) == result.n_iter.max()
    shared = FUNCTIONS[name](a[0], None, C, 1.0)
    assert shared.converged.all()
    assert_close(shared.plan.sum(2), a[:1].expand(3, 8), rtol=1e-8, atol=1e-10)
