"""The transport kernels of the GPU, on the host and, where there is one, on a GPU.

One source makes both, so the host shows whether the kernels are right; what it cannot show are
races within a barrier's reach, beyond what running the threads backwards, too, brings to light.
Truths: textbook iterations, the plain-PyTorch twin, and the solvers of the CPU.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import _runtime, _sinkhorn, _sinkhorn_device, ot
from curvkern.ot import _solving
from curvkern.reference import sinkhorn as reference
from sinkhorn_problems import (
    INF,
    KINDS,
    both_dtypes,
    costs,
    dense,
    iterate,
    rhos,
    tensor,
    weights,
)

both_devices = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
)


def on(device: str, problem: _sinkhorn.Problem) -> _sinkhorn_device.Inputs:
    return _sinkhorn_device.Inputs(
        *(t.to(device) if torch.is_tensor(t) else t for t in problem)
    )


class Backwards(_sinkhorn_device.Inputs):
    """Run on the host with blocks and threads in the other order."""

    stream = 1


def solve(device: str, problem: _sinkhorn.Problem, **options: Any) -> tuple[Tensor, ...]:
    given = {"max_iter": 20_000, "tol": 1e-12, "check_every": 10, **options}
    start = (None if t is None else t.to(device) for t in given.pop("start", (None, None)))
    found = _sinkhorn_device.solve(on(device, problem), *start, **given)
    return tuple(t.cpu() for t in found)


def on_host(problem: _sinkhorn.Problem, **options: Any) -> tuple[Tensor, ...]:
    given = {"max_iter": 20_000, "tol": 1e-12, "check_every": 10, **options}
    return _sinkhorn.solve(problem, None, None, **given)


def random_problem(
    batch: int, n: int, m: int, eps: float, dtype: torch.dtype = torch.float64
) -> _sinkhorn.Problem:
    cost = torch.rand(batch, n, m, dtype=torch.float64).to(dtype)
    return dense(weights(batch, n), weights(batch, m), cost, tensor(*[eps] * batch))


@both_devices
@pytest.mark.parametrize(
    ("eps", "dtype"),
    [(10.0, torch.float64), (0.02, torch.float32), (1e-5, torch.float64)],
    ids=str,
)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1), (1, 1, 7), (1, 7, 1), (2, 5, 3), (1, 33, 65), (1, 70, 1100), (1, 700, 9),
        (2, 20, 2500), (1, 5, 7001), (1, 4300, 2),
    ],
)  # fmt: skip
def test_first_iterations(
    shape: tuple[int, int, int], eps: float, dtype: torch.dtype, device: str
) -> None:
    """Two iterations from zero equal those of the textbook, whatever path the shape takes."""
    problem = random_problem(*shape, eps, dtype)
    a, b, cost = problem[:3]
    assert cost is not None
    f, g, info, _ = solve(device, problem, max_iter=2, tol=0.0, anneal=False)
    expected = iterate(a, b, cost, problem.eps, rhos(len(a)), 2)
    gauge = ((b * expected[1]).sum(1) - (a * expected[0]).sum(1))[:, None] / 2
    assert_close(f, expected[0] + gauge, rtol=1e-13, atol=max(1e-13 * eps, 1e-15))
    assert_close(g, expected[1] - gauge, rtol=1e-13, atol=max(1e-13 * eps, 1e-15))
    assert (info[:, 1] == 2).all()


@both_devices
@pytest.mark.parametrize("shape", [(1, 70, 20_481), (2, 3, 30_000)])
def test_many_columns(shape: tuple[int, int, int], device: str) -> None:
    """More columns than a block holds sums of: the costs are read a second time for them."""
    problem = random_problem(*shape, 0.1)
    f, g, info, history = solve(device, problem, max_iter=3, tol=0.0, check_every=1)
    expected = on_host(problem, max_iter=3, tol=0.0, check_every=1)
    for found, wanted in zip((f, g, info, history), expected, strict=True):
        assert_close(found, wanted, rtol=1e-11, atol=1e-13)


@both_devices
@pytest.mark.parametrize("rho", [(INF, INF), (0.5, 0.5), (10.0, 10.0), (0.3, 4.0), (INF, 1.0)])
@pytest.mark.parametrize("translate", [True, False])
def test_path_of_the_cpu(rho: tuple[float, float], translate: bool, device: str) -> None:
    """Annealing, translation, checks: the same errors after the same iterations."""
    problem = random_problem(3, 40, 30, 0.02)._replace(rho=rhos(3, *rho))
    options: dict[str, Any] = {"max_iter": 60, "tol": 0.0, "translate": translate}
    expected = on_host(problem, **options)
    for found, wanted in zip(solve(device, problem, **options), expected, strict=True):
        assert_close(found, wanted, rtol=1e-9, atol=1e-13)


@both_devices
@pytest.mark.parametrize("size", [4, 150])
def test_batch_of_different_problems(size: int, device: str) -> None:
    """eps, rho and the end of the iterations are each problem's own."""
    problem = random_problem(size, 12, 20, 1.0)
    eps = torch.logspace(0, -2, size, dtype=torch.float64)
    rho = rhos(size)
    rho[::3] = tensor(0.7, INF)
    problem = problem._replace(eps=eps, rho=rho)
    f, g, info, history = solve(device, problem, tol=1e-11)
    expected = on_host(problem, tol=1e-11)
    assert info[:, 2].all()
    assert info[:, 1].unique().numel() > 3
    assert float(history[-1, 0]) == float(info[:, 1].max())
    assert_close(f, expected[0], rtol=0, atol=1e-8)
    assert_close(g, expected[1], rtol=0, atol=1e-8)
    alone = solve(device, problem.pick(torch.tensor([size - 1])), tol=1e-11)
    assert_close(f[-1:], alone[0], rtol=0, atol=0)
    assert_close(info[-1:], alone[2], rtol=0, atol=0)


@both_devices
@pytest.mark.parametrize("rho", [INF, 0.8])
@both_dtypes
def test_edges_against_the_twin(rho: float, dtype: torch.dtype, device: str) -> None:
    """Zero masses and forbidden pairs: a row, a column and entries of +inf."""
    problem = random_problem(2, 14, 11, 0.1, dtype)
    a, b, cost = problem[:3]
    assert cost is not None
    a[:, 3] = a[0, 5] = b[:, 2] = 0
    cost[:, 3] = INF
    cost[0, 5, :4] = INF
    cost[1, :, 2] = INF
    cost[:, 0, 1:] = INF
    cost[:, 1:, 0] = torch.where(torch.rand(2, 13) < 0.3, INF, cost[:, 1:, 0])
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    if rho == INF:
        b[:, 0] = a[:, 0] + 0.1
        b = b / b.sum(1, keepdim=True)
    problem = dense(a, b, cost, tensor(0.1, 0.3), rhos(2, rho, rho))
    f, g, info, _ = solve(device, problem, tol=1e-11)
    twin = reference.solve(problem, method="sinkhorn", tol=1e-11, max_iter=20_000)
    assert info[:, 2].all()
    assert twin.converged.all()
    within_reach = torch.isfinite(cost)
    for mine, theirs, near in (
        (f, twin.f, within_reach.any(2)),
        (g, twin.g, within_reach.any(1)),
    ):
        assert_close(mine[near], theirs[near], rtol=0, atol=1e-8)
        assert (mine[~near].abs() < 1e-8).all()  # the twin puts the gauge on top of 0


@both_devices
@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_scales(factor: float, device: str) -> None:
    problem = random_problem(1, 20, 30, 0.05)
    assert problem.cost is not None
    plain = solve(device, problem)
    scaled = problem._replace(
        a=problem.a * factor, b=problem.b * factor, cost=problem.cost * factor,
        eps=problem.eps * factor,
    )  # fmt: skip
    f, g, info, _ = solve(device, scaled)
    shift = 0.05 * math.log(factor) / 2
    assert info[0, 2] == plain[2][0, 2] == 1
    assert_close(f / factor + shift, plain[0], rtol=0, atol=1e-11)
    assert_close(g / factor + shift, plain[1], rtol=0, atol=1e-11)


@both_devices
@pytest.mark.parametrize("gap", [60.0, 1e5])
def test_far_clusters(gap: float, device: str) -> None:
    """Sums that underflow are done again by their largest exponents."""
    x = torch.cat([torch.rand(20, 2), torch.rand(10, 2) + gap]).double()[None]
    y = torch.cat([torch.rand(24, 2), torch.rand(12, 2) + gap]).double()[None]
    a, b = tensor(*[1 / 30] * 30)[None], tensor(*[1 / 36] * 36)[None]
    problem = dense(a, b, costs("sqeuclidean", x, y), tensor(0.1))
    f, g, info, _ = solve(device, problem, anneal=False)
    expected = on_host(problem, anneal=False)
    assert info[0, 2] == expected[2][0, 2] == 1
    assert_close(f, expected[0], rtol=1e-9, atol=1e-9)
    assert_close(g, expected[1], rtol=1e-9, atol=1e-9)


@both_devices
@pytest.mark.parametrize("eps", [1e-3, 1e-6])
def test_tiny_eps(eps: float, device: str) -> None:
    """Finite whatever eps is, and converged only where the marginals, taken anew, are met."""
    problem = random_problem(1, 30, 25, eps)
    a, b, cost = problem[:3]
    f, g, info, _ = solve(device, problem, max_iter=300, tol=1e-6)
    plan = reference._Problem(a, b, cost, problem.eps, problem.rho).plan(f, g)  # type: ignore[arg-type]
    error = (plan.sum(2) - a).abs().sum() + (plan.sum(1) - b).abs().sum()
    assert torch.isfinite(f).all()
    assert torch.isfinite(g).all()
    assert float(info[0, 0]) == pytest.approx(float(error), rel=1e-6, abs=1e-9)
    assert bool(info[0, 2]) == bool(error <= 1e-6)


@both_devices
@pytest.mark.parametrize("kind", KINDS)
@both_dtypes
def test_points(kind: str, dtype: torch.dtype, device: str) -> None:
    """Solve, products and gradient between points equal those of the CPU."""
    x, y = torch.randn(2, 41, 11).to(dtype), torch.randn(2, 37, 11).to(dtype) + 0.5
    a, b, eps = weights(2, 41), weights(2, 37), tensor(0.9, 3.0)
    a[0, 7] = b[1, 3] = 0
    y[0, 0] = x[0, 0]  # where the distance has a kink
    problem = _sinkhorn.Problem(a, b, None, x, y, kind, 1.7, eps, rhos(2, 2.0, 3.0))
    options = {"tol": 1e-12}
    f, g, info, _ = solve(device, problem, **options)
    matrix = dense(a, b, 1.7 * costs(kind, x, y), eps, problem.rho)
    expected = on_host(matrix, **options)
    assert info[:, 2].all()
    assert_close(f, expected[0], rtol=1e-9, atol=1e-9)
    assert_close(g, expected[1], rtol=1e-9, atol=1e-9)
    u, w = torch.randn_like(a), torch.randn_like(b)
    given = (t.to(device) for t in (f, g, u, w))
    found = _sinkhorn_device.gradient(on(device, problem), *given).cpu()
    assert_close(found, _sinkhorn.gradient(problem, f, g, u, w), rtol=1e-11, atol=1e-12)


@both_devices
@pytest.mark.parametrize("shape", [(1, 1), (6, 9), (70, 130), (300, 700)])
@both_dtypes
def test_products(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    problem = random_problem(2, *shape, 0.2, dtype)
    n, m = shape
    assert problem.cost is not None
    if n > 1:
        problem.cost[:, 0, 1:] = INF
        problem.a[0, 1] = 0
    f, g = 0.1 * torch.randn(2, n).double(), 0.1 * torch.randn(2, m).double()
    for count in (1, 10):
        v, u = torch.randn(2, m, count).double(), torch.randn(2, n, count).double()
        for one, other in ((v, u), (v, None), (None, u)):
            expected = _sinkhorn.products(problem, f, g, one, other)
            given = (None if t is None else t.to(device) for t in (f, g, one, other))
            found = _sinkhorn_device.products(on(device, problem), *given)  # type: ignore[arg-type]
            for mine, theirs in zip(found, expected, strict=True):
                assert_close(mine.cpu(), theirs, rtol=1e-11, atol=1e-13)


@both_devices
def test_warm_start_is_free(device: str) -> None:
    problem = random_problem(2, 30, 40, 0.1)
    f, g, *_ = solve(device, problem)
    info = solve(device, problem, start=(f, g), tol=1e-11)[2]
    assert_close(info[:, 1:], tensor(0, 1).expand(2, 2), rtol=0, atol=0)


@both_devices
def test_callback_and_history(device: str) -> None:
    problem = random_problem(2, 30, 40, 0.05)
    seen: list[tuple[int, Tensor]] = []
    info, history = solve(
        device, problem, check_every=7, callback=lambda i, e: seen.append((i, e.cpu()))
    )[2:]
    assert [i for i, _ in seen] == history[:, 0].tolist()
    assert all(i % 7 == 0 for i, _ in seen)
    assert_close(seen[-1][1], info[:, 0], rtol=0, atol=0)
    assert_close(torch.stack([e.max() for _, e in seen]), history[:, 1], rtol=0, atol=0)
    thinned = solve(device, problem, check_every=1, tol=0.0, max_iter=100, history=8)[3]
    assert thinned[:, 0].tolist() == [1.0 + 16 * k for k in range(7)]


@both_devices
def test_raising_callback(device: str) -> None:
    def stop(*_: Any) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        solve(device, random_problem(1, 30, 40, 0.05), callback=stop)


@both_devices
@pytest.mark.parametrize("shape", [(1, 300, 200), (300, 8, 9)])
def test_interrupt(shape: tuple[int, int, int], device: str) -> None:
    """R43: Ctrl-C between launches ends a solve that would take hours; the next one works."""
    problem = random_problem(*shape, 1e-5)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    press = threading.Timer(
        0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
    )
    started = time.perf_counter()
    press.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            solve(device, problem, max_iter=10**8, check_every=10**7, tol=0.0)
    finally:
        press.join()
        signal.signal(signal.SIGINT, previous)
    assert time.perf_counter() - started < 2.3
    assert solve(device, problem, max_iter=3)[0].isfinite().all()


@both_devices
@pytest.mark.parametrize("shape", [(1, 300, 200), (20, 60, 50), (300, 8, 9)])
def test_bits_from_run_to_run(shape: tuple[int, int, int], device: str) -> None:
    problem = random_problem(*shape, 0.05)._replace(rho=rhos(shape[0], 1.0, INF))
    runs = [solve(device, problem, max_iter=30, tol=0.0) for _ in range(3)]
    if device == "cpu":
        backwards = Backwards(*problem)
        runs.append(_sinkhorn_device.solve(backwards, None, None, 30, 0.0, 10))
    for other in runs[1:]:
        for first, again in zip(runs[0], other, strict=True):
            assert_close(first, again, rtol=0, atol=0)


def test_arguments_are_checked() -> None:
    problem = random_problem(1, 3, 4, 1.0)
    assert problem.cost is not None
    shapes = r"shape \(1, 3, 4\), got \(1, 2, 4\)"
    with pytest.raises(ValueError, match=f"sinkhorn: cost must have {shapes}"):
        solve("cpu", problem._replace(cost=problem.cost[:, :2]))
    with pytest.raises(ValueError, match=r"sinkhorn: eps must have shape \(1\), got \(2\)"):
        solve("cpu", problem._replace(eps=tensor(1.0, 2.0)))
    with pytest.raises(TypeError, match="sinkhorn: a must be float64"):
        solve("cpu", problem._replace(a=problem.a.float()))


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["sinkhorn", "newton", "auto"])
@both_dtypes
def test_public_functions_on_a_gpu(method: str, dtype: torch.dtype) -> None:
    """On a side stream, too, a result and its gradients are those of the CPU."""
    cost = torch.rand(300, 260, dtype=dtype)  # more than Newton steps leave to the CPU
    found = {}
    stream = torch.cuda.Stream()
    for device in ("cpu", "cuda"):
        with torch.cuda.stream(stream):
            C = cost.to(device).requires_grad_()
            result = ot.sinkhorn(None, None, C, 0.02, method=method, tol=1e-10)
            (slope,) = torch.autograd.grad(result.value, C)
        found[device] = [t.cpu() for t in (result.value, result.f, result.plan, slope)]
        assert result.converged
        assert result.f.device.type == device
    for mine, theirs in zip(found["cuda"], found["cpu"], strict=True):
        assert_close(mine, theirs, rtol=1e-5 if dtype is torch.float32 else 1e-7, atol=1e-8)


def test_other_devices_fall_back() -> None:
    """Tensors of a device for which there are no kernels go to the twin."""
    assert _runtime.has_kernels(torch.device("cpu"))
    assert not _runtime.has_kernels(torch.device("meta"))
    assert _solving.native(torch.ones(1, device="meta")) is None
