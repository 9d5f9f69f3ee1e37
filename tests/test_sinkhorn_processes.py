"""The native Sinkhorn solver among threads, processes, signals and callbacks.

Cases of the reliability list are named in the docstrings.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import _runtime, _sinkhorn
from curvkern.ot import _solve
from sinkhorn_problems import (
    both_dtypes,
    dense,
    error,
    plan,
    points,
    rhos,
    solve,
    tensor,
    weights,
)
from test_memory import Guarded


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
        product = _solve.products(dense(a, b, cost, eps), s.f, s.g, v[..., None], None)[0]
        results.append((*s[:5], product))
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
        from curvkern import _runtime, _sinkhorn
        from curvkern.ot import _solve
        assert _runtime.isa() == {isa!r}
        x, y, a, b, eps, rho = torch.load({str(tmp_path / "inputs.pt")!r})
        options = dict(max_iter=3000, tol=1e-11, check_every=10)
        results = []
        for dtype in (torch.float64, torch.float32):
            p = x.to(dtype), y.to(dtype)
            cost = torch.cdist(*p)
            matrix = _sinkhorn.Problem(a, b, cost, None, None, "", 1.0, eps, rho)
            cloud = _sinkhorn.Problem(a, b, None, *p, "euclidean", 1.0, eps, rho)
            s, q = (_solve.solve(t, None, None, **options) for t in (matrix, cloud))
            gradient = _solve.points_gradient(cloud, q.f, q.g, a, b)
            results.append((cost, *s[:2], s.converged & q.converged, *q[:2], *gradient))
        torch.save(results, {str(tmp_path / "results.pt")!r})
        """,
        environment={"CURVKERN_ISA": isa},
    )
    for cost, f, g, converged, *found in torch.load(tmp_path / "results.pt"):
        assert converged.all()
        assert error(a, b, plan(a, b, cost, eps, f, g)) < 2e-11
        options: dict[str, Any] = {"max_iter": 3000, "tol": 1e-11, "check_every": 10}
        p = x.to(cost.dtype), y.to(cost.dtype)
        cloud = points(a, b, *p, "euclidean", eps, rho)
        here = _solve.solve(cloud, None, None, **options)
        gradient = _solve.points_gradient(cloud, here.f, here.g, a, b)
        assert_close(found, [*here[:2], *gradient], rtol=1e-8, atol=1e-8)


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
        given = (dense(a, b, cost, tensor(1.0)), guarded.f, guarded.g)
        ones = torch.ones_like(b)[..., None], torch.ones_like(a)[..., None]
        assert all(t.isfinite().all() for t in _solve.products(*given, *ones))


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
        from curvkern import _sinkhorn
        from curvkern.ot import _solve
        torch.set_num_threads(4)
        a = torch.full((1, 500), 1 / 500, dtype=torch.float64)
        cost, eps = torch.rand(1, 500, 500).double(), torch.ones(1).double()
        rho = torch.full((1, 2), torch.inf).double()
        problem = _sinkhorn.Problem(a, a, cost, None, None, "", 1.0, eps, rho)
        options = dict(max_iter=50, tol=1e-10, check_every=10)
        expected = _solve.solve(problem, None, None, **options)
        child = os.fork()
        if child == 0:
            again = _solve.solve(problem, None, None, **options)
            os._exit(0 if bytes(again.f.numpy()) == bytes(expected.f.numpy()) else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    )
