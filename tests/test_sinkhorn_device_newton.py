"""Newton steps of the GPU, on the host and, where there is one, on a GPU.

Truths: the Newton solver of the CPU, the problems of tests/data/sinkhorn.npz, and marginals in
extended precision. The host runs blocks and threads forwards and backwards, which must not
change a bit.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from curvkern import _sinkhorn, _sinkhorn_device, ot
from curvkern.ot import _methods
from sinkhorn_problems import INF, KINDS, costs, dense, plan, points, rhos, tensor, weights
from sinkhorn_truth import TIGHT, Case, every_case
from test_sinkhorn import PLAN, VALUE, near
from test_sinkhorn_device import Backwards, both_devices, on
from test_sinkhorn_newton import HARD, RHO, assignment, clouds, error_of, lattice


def problem_of(a: Any, b: Any, cost: Any, eps: float, rho: tuple[float, float] = (INF, INF)):
    a, b, cost = (torch.from_numpy(np.array(x, order="C"))[None] for x in (a, b, cost))
    return dense(a, b, cost, tensor(eps), rhos(1, *rho))


def solve(
    device: str,
    problem: _sinkhorn.Problem,
    tol: float = 1e-11,
    max_iter: int = 2000,
    start: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, ...]:
    """f, g, info, trace; on the host the same bits whatever the order of the threads."""
    start = tuple(None if t is None else t.to(device) for t in start)
    found = _sinkhorn_device.newton(on(device, problem), *start, max_iter, tol)
    if device == "cpu":
        again = _sinkhorn_device.newton(Backwards(*problem), *start, max_iter, tol)
        assert_close(found, again, rtol=0, atol=0, equal_nan=True)
    return tuple(t.cpu() for t in found)


def check(problem: _sinkhorn.Problem, found: tuple[Tensor, ...], tol: float) -> None:
    """Converged: marginals within tol in extended precision, potentials at their means."""
    f, g, info, trace = found
    for k in range(len(f)):
        a, b = (t[k].numpy() for t in problem[:2])
        assert problem.cost is not None
        given = a, b, problem.cost[k].numpy(), float(problem.eps[k]), problem.rho[k].tolist()
        assert info[k, 2] == 1
        error, n_iter = float(info[k, 0]), int(info[k, 1])
        assert error <= tol
        assert error_of(*given, f[k].numpy(), g[k].numpy()) <= 1.5 * tol
        assert torch.isfinite(trace[k, :n_iter]).all()
        assert torch.isnan(trace[k, n_iter:]).all()
        if min(given[-1]) == INF:
            means = (a @ f[k].numpy()) / a.sum(), (b @ g[k].numpy()) / b.sum()
            assert abs(means[0] - means[1]) < 1e-12 * (1 + float(f[k].abs().max()))


def compare(problem: _sinkhorn.Problem, found: tuple[Tensor, ...], tol: float) -> None:
    """The potentials of the CPU's solver, after about as many iterations."""
    f, g, info, _ = found
    expected = _sinkhorn.newton(problem, None, None, 2000, tol)
    assert expected[2][:, 2].all()
    assert_close(info[:, 1], expected[2][:, 1], rtol=0.1, atol=2)
    together = (f[:, :, None] + g[:, None], expected[0][:, :, None] + expected[1][:, None])
    # What has no mass to speak of is open as far as tol reaches.
    mass = plan(problem.a, problem.b, problem.cost, problem.eps, *expected[:2])  # type: ignore[arg-type]
    far = (together[0] - together[1]).abs() / problem.eps[:, None, None]
    assert float((mass * far).sum() / mass.sum()) < 1e3 * tol


@both_devices
@pytest.mark.parametrize("kind", RHO)
@pytest.mark.parametrize("name", HARD)
def test_hard_problems(name: str, kind: str, device: str) -> None:
    a, b, cost, eps = HARD[name]
    b = b if kind in ("hard", "nearly hard") else 1.5 * b
    problem = problem_of(a, b, cost, eps, RHO[kind])
    found = solve(device, problem)
    check(problem, found, 1e-11)
    compare(problem, found, 1e-11)


@both_devices
@pytest.mark.parametrize(
    "problem",
    [
        clouds(9, 2500, 2, 1e-3, 1),
        clouds(2500, 9, 2, 1e-3, 2),
        clouds(5, 7000, 2, 1e-3, 3),
        clouds(5, 21_000, 2, 1e-3, 4),
        clouds(21_000, 5, 2, 1e-3, 5),
        clouds(700, 700, 2, 3e-3, 6),
        assignment(300, 1 / 1200, 7),
        lattice(1, 1 / 1200, 8, side=16),
    ],
    ids=lambda problem: "x".join(map(str, problem[2].shape)),
)
def test_shapes(problem: tuple[Any, ...], device: str) -> None:
    """Whatever path the passes take; more entries above the threshold than there is room."""
    given = problem_of(*problem)
    found = solve(device, given, tol=1e-10)
    check(given, found, 1e-10)
    compare(given, found, 1e-10)


@both_devices
def test_the_factor_of_the_cpu(device: str) -> None:
    """A plan that is almost a tree, where the diagonal is no preconditioner."""
    given = problem_of(*clouds(300, 300, 2, 1e-5, 1))
    check(given, solve(device, given, tol=1e-10), 1e-10)


@both_devices
@pytest.mark.parametrize("rho", [(INF, INF), (0.5, 0.5), (INF, 0.3)])
def test_zero_masses_and_forbidden_pairs(rho: tuple[float, float], device: str) -> None:
    a, b, cost, eps = clouds(100, 90, 2, 1e-3, 9)
    a[3] = b[7] = 0
    cost[5, :50] = cost[:40, 8] = INF
    cost[3] = cost[:, 7] = INF
    given = problem_of(a / a.sum(), b / b.sum(), cost, eps, rho)
    f, g, info, trace = solve(device, given)
    expected = _sinkhorn.newton(given, None, None, 2000, 1e-11)
    assert_close(info[:, 1], expected[2][:, 1], rtol=0, atol=2)
    near = torch.arange(100) != 3, torch.arange(90) != 7
    shift = (f - expected[0])[:, near[0]].mean()
    assert_close(f[:, near[0]] - shift, expected[0][:, near[0]], rtol=0, atol=1e-7)
    assert_close(g[:, near[1]] + shift, expected[1][:, near[1]], rtol=0, atol=1e-7)
    assert torch.isfinite(f).all()
    assert torch.isfinite(g).all()
    check(given, (f, g, info, trace), 1e-11)


@both_devices
def test_zero_masses_get_the_transform(device: str) -> None:
    a, b, cost, eps = clouds(30, 45, 2, 1e-2, 11)
    a[[0, 7]] = b[[3, 44]] = 0
    f, g, *_ = (t[0] for t in solve(device, problem_of(a / a.sum(), b / b.sum(), cost, eps)))
    a, b, cost = (torch.from_numpy(x) for x in (a / a.sum(), b / b.sum(), cost))
    rows = -eps * torch.logsumexp(b.log() + (g - cost) / eps, 1)
    columns = -eps * torch.logsumexp(a.log()[:, None] + (f[:, None] - cost) / eps, 0)
    assert_close(f, rows, rtol=0, atol=1e-10)
    assert_close(g, columns, rtol=0, atol=1e-10)


@both_devices
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales(scale: float, device: str) -> None:
    a, b, cost, eps = HARD["plane"]
    plain = solve(device, problem_of(a, b, cost, eps))
    scaled = solve(device, problem_of(a, b, cost * scale, eps * scale))
    assert_close(scaled[0] / scale, plain[0], rtol=0, atol=1e-7 * eps)
    masses = solve(device, problem_of(a * scale, b * scale, cost, eps))
    assert masses[2][0, 2] == 1
    moved = plain[0] - eps * np.log(scale) / 2
    assert_close(masses[0], moved, rtol=0, atol=1e-6 * eps)


@both_devices
def test_batch(device: str) -> None:
    """Problems of a batch have the bits that each has alone."""
    eps = tensor(1.0, 1e-2, 1e-3, 1e-4)
    cost = torch.rand(4, 33, 41, dtype=torch.float64).float()
    rho = rhos(4)
    rho[1] = tensor(0.7, INF)
    problem = dense(weights(4, 33), weights(4, 41), cost, eps, rho)
    together = solve(device, problem)
    check(problem, together, 1e-11)
    assert together[2][:, 1].unique().numel() > 1
    for k in range(4):
        alone = solve(device, problem.pick(torch.tensor([k])))
        for one, many in zip(alone, together, strict=True):
            assert_close(one[0], many[k], rtol=0, atol=0, equal_nan=True)


@both_devices
@pytest.mark.parametrize("kind", KINDS)
def test_points(kind: str, device: str) -> None:
    """Without a matrix of costs, as with one."""
    x, y = torch.randn(2, 70, 3, dtype=torch.float64), torch.randn(2, 50, 3).double() + 0.3
    a, b, eps = weights(2, 70), weights(2, 50), tensor(0.02, 0.004)
    matrix = dense(a, b, 1.7 * costs(kind, x, y), eps, rhos(2, INF, 2.0))
    found = solve(device, points(a, b, x, y, kind, eps, matrix.rho, scale=1.7))
    check(matrix, found, 1e-11)
    expected = _sinkhorn.newton(matrix, None, None, 2000, 1e-12)
    assert_close(found[0], expected[0], rtol=0, atol=1e-7)
    assert_close(found[1], expected[1], rtol=0, atol=1e-7)


@both_devices
@pytest.mark.parametrize("name", ["assignment", "lattice L1"])
def test_warm_start(name: str, device: str) -> None:
    a, b, cost, eps = HARD[name]
    f, g, *_ = solve(device, problem_of(a, b, cost, eps))
    again = solve(device, problem_of(a, b, cost, eps), tol=2e-11, start=(f, g))[2]
    assert again[0, 2] == 1
    assert again[0, 1] <= 3
    near = problem_of(a, b, cost, 1.05 * eps)
    warm = solve(device, near, start=(f, g))
    check(near, warm, 1e-11)
    assert warm[2][0, 1] < solve(device, near)[2][0, 1]
    zeros = solve(device, near, start=(torch.zeros_like(f), torch.zeros_like(g)))
    assert_close(zeros, solve(device, near), rtol=0, atol=0, equal_nan=True)


@both_devices
@pytest.mark.parametrize("limit", [1, 3, 10])
def test_max_iter_is_kept(limit: int, device: str) -> None:
    f, g, info, _ = solve(device, problem_of(*HARD["lattice L1"]), max_iter=limit)
    assert info[0, 1:].tolist() == [limit, 0]
    true = error_of(*HARD["lattice L1"], (INF, INF), f[0].numpy(), g[0].numpy())
    assert float(info[0, 0]) == pytest.approx(true, rel=1e-6)


@both_devices
def test_ends_where_nothing_improves(device: str) -> None:
    """The limit of the arithmetic, and two rows that cannot share their only column."""
    info = solve(device, problem_of(*HARD["plane"]), tol=1e-30, max_iter=5000)[2]
    assert info[0, 2] == 0
    assert info[0, 1] < 400
    assert info[0, 0] < 1e-12
    a, b, cost, _ = assignment(20, 1, 13)
    cost[:2, 1:] = INF
    f, g, info, _ = solve(device, problem_of(a, b, cost, 1e-2), max_iter=300)
    assert info[0, 2] == 0
    assert 0.05 < float(info[0, 0]) < 0.5
    assert torch.isfinite(f).all()
    assert torch.isfinite(g).all()


@both_devices
def test_interrupt(device: str) -> None:
    """R43: Ctrl-C between launches; the next solve works."""
    problem = problem_of(*clouds(600, 600, 2, 1e-5, 17))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    press = threading.Timer(
        0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
    )
    started = time.perf_counter()
    press.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            _sinkhorn_device.newton(on(device, problem), None, None, 5000, 1e-30)
    finally:
        press.join()
        signal.signal(signal.SIGINT, previous)
    assert time.perf_counter() - started < 2.3
    assert solve(device, problem, max_iter=2)[0].isfinite().all()


def through_the_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The public functions on the host, as on a GPU; how many problems it was given."""
    seen: list[int] = []

    def newton(
        problem: _sinkhorn.Problem,
        f: Tensor | None,
        g: Tensor | None,
        max_iter: int,
        tol: float,
    ) -> tuple[Tensor, ...]:
        seen.append(len(problem.a))
        return _sinkhorn_device.newton(_sinkhorn_device.Inputs(*problem), f, g, max_iter, tol)

    monkeypatch.setattr(_sinkhorn, "newton", newton)
    monkeypatch.setattr(_sinkhorn, "holds_costs", lambda problem: False)
    return seen


@every_case
def test_against_truths(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and plans of arbitrary precision, for matrices and points."""
    seen = through_the_device(monkeypatch)
    result = case.solve(method="newton")
    assert seen == [1]
    assert result.converged
    assert result.marginal_error <= TIGHT
    near(result.value, case["value"], VALUE)
    near(result.plan, case["plan"], PLAN)


@both_devices
@pytest.mark.parametrize(("size", "eps"), [(1e300, 1e-300), (1e308, 1e-10)])
def test_overflow_leaves_finite_potentials(device: str, size: float, eps: float) -> None:
    """Those that were kept last, and no claim."""
    a = torch.full((1, 30), 1 / 30, dtype=torch.float64)
    cost = size * torch.rand(1, 30, 30, dtype=torch.float64)
    f, g, info, _ = solve(device, dense(a, a, cost, tensor(eps)), max_iter=50)
    assert f.isfinite().all()
    assert g.isfinite().all()
    assert info[0, 2] == 0


def test_auto_goes_over_to_newton(monkeypatch: pytest.MonkeyPatch) -> None:
    """More points than the CPU may hold costs of: sweeps, then steps that hold none."""
    monkeypatch.setattr(_methods, "LARGEST", 100)
    seen = through_the_device(monkeypatch)
    x = torch.rand(60, 2, dtype=torch.float64)
    y = torch.rand(70, 2, dtype=torch.float64)
    for method in ("auto", "newton"):
        result = ot.sinkhorn_points(x, y, 1e-3, method=method, tol=1e-10)
        assert result.converged
        P = result.plan
        error = (P.sum(0) - 1 / 70).abs().sum() + (P.sum(1) - 1 / 60).abs().sum()
        assert float(error) <= 1.1e-10
    assert seen == [1, 1]


@pytest.mark.cuda
@pytest.mark.parametrize("n", [200, 2500])
def test_public_functions_on_a_gpu(n: int) -> None:
    """Points that the CPU takes over, and more than it would hold costs of."""
    x, y = torch.rand(n, 2, dtype=torch.float64), torch.rand(n, 2, dtype=torch.float64)
    found = ot.sinkhorn_points(x.cuda(), y.cuda(), 1e-3, method="newton", tol=1e-10)
    assert found.converged
    given = x.double(), y.double(), found.f.cpu(), found.g.cpu()
    cost = costs("sqeuclidean", given[0][None], given[1][None])
    w = torch.full((1, n), 1 / n, dtype=torch.float64)
    P = plan(w, w, cost, tensor(1e-3), given[2][None], given[3][None])
    assert float((P.sum(1) - 1 / n).abs().sum() + (P.sum(2) - 1 / n).abs().sum()) <= 1.1e-10


def test_what_a_gpu_takes() -> None:
    """Small problems are copied to the CPU; points beyond need no costs."""
    with FakeTensorMode():
        for n, small in ((256, True), (257, False)):
            a, x, eps, rho = (
                torch.empty(1, *shape, dtype=torch.float64, device="cuda")
                for shape in ((n,), (n, 2), (), (2,))
            )
            problem = points(a, a, x, x, "l1", eps, rho)
            assert _sinkhorn.holds_costs(problem) is small
    host = points(*[torch.ones(1, 3000)] * 2, *[torch.ones(1, 3000, 1)] * 2, "l1", tensor(1.0))
    assert _sinkhorn.holds_costs(host)
    with pytest.raises(ValueError, match="at most 4194304, got 3000 x 3000 points"):
        _methods.check_newton("sinkhorn_points", host)


def test_arguments_are_checked() -> None:
    problem = problem_of(*HARD["wide"])
    inputs = on("cpu", problem)
    with pytest.raises(ValueError, match="sinkhorn_newton: workspace must have at least"):
        inputs.module.sinkhorn_device_newton(
            inputs.native, None, torch.empty(3).double(), problem.a, problem.b,
            torch.empty(1, 3).double(), torch.empty(1, 0).double(), 1, 0.1, False, 0,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"sinkhorn: f must have shape|sinkhorn_newton: f"):
        inputs.module.sinkhorn_device_newton(
            inputs.native, None, inputs.empty(10**6), problem.b, problem.b,
            torch.empty(1, 3).double(), torch.empty(1, 0).double(), 1, 0.1, False, 0,
        )  # fmt: skip
