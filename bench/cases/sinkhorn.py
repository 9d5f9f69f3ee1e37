"""Benchmark cases of the Sinkhorn family: an iteration, points, and a batch.

An element is an entry of the cost. The number of iterations is fixed, but for the batch, where
every contestant runs to a marginal error of 1e-6. Rivals that are not installed are left out:

``torch logsumexp``, ``torch.compile``
    One logsumexp over the rows and one over the columns of the scaled cost, as written and as
    Inductor compiles it, one iteration a graph.
``OTT``
    ``ott.solvers.linear.sinkhorn.Sinkhorn`` in log domain, jitted, on one thread of XLA, with
    as many iterations and one look at the error at their end.
``POT sinkhorn``, ``POT sinkhorn_log``
    ``ot.sinkhorn`` with that method, without a stop but for the batch.
``GeomLoss online``
    ``geomloss.SamplesLoss("sinkhorn", p=2, backend="online", debias=False, potentials=True)``,
    whose reductions KeOps compiles. With diameter = blur its schedule has two steps of eps =
    blur^2; a first and a last pair of soft minima make four pairs, the work of four iterations
    here. Its updates are symmetric and averaged, ours alternate, so ours are also nearer to the
    solution after as many.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from curvkern._bench.case import OURS, Bar, Case, Contestants
from curvkern._sinkhorn import Problem
from curvkern.ot import _solve

READ = "one read of C in float64"
LOGSUMEXP = "torch logsumexp"
POT_LOG, POT = "POT sinkhorn_log", "POT sinkhorn"
COMPILED, OTT, GEOMLOSS = "torch.compile", "OTT", "GeomLoss online"
TILED = "tiled torch logsumexp"
SIZE = {"float64": 8, "float32": 4}
ITERATIONS, FEWER = 40, 20
BLUR = 0.1  # of GeomLoss: eps = BLUR^2 for half the squared distance

# Least arithmetic of an entry, stored (the weighted row sum and the column sum) and not: the
# exponent, 2^t in its range reduction and a polynomial of degree 10 or 5, and the sums.
STORED_FLOPS = 4
FLOPS = {"float64": 2 + 4 + 2 * 10 + 4, "float32": 6 + 6 + 2 * 5 + 4}


def cases() -> list[Case]:
    """One full iteration in both dtypes, points in three dimensions, many small problems."""
    return [
        *(_iteration(dtype) for dtype in SIZE),
        *(_iteration_rivals(dtype) for dtype in SIZE),
        _points(),
        _many_points(),
        _batch(),
    ]


def uniform(batch: int, n: int) -> Tensor:
    """Equal weights."""
    return torch.full((batch, n), 1 / n, dtype=torch.float64)


def hard(batch: int) -> Tensor:
    """Marginals that must be met."""
    return torch.full((batch, 2), math.inf, dtype=torch.float64)


def _step(log_a: Tensor, log_b: Tensor, scaled: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    f = -torch.logsumexp((log_b + g)[:, None] - scaled, 2)
    return f, -torch.logsumexp((log_a + f)[..., None] - scaled, 1)


def _logsumexp(
    problem: tuple[Tensor, Tensor, Tensor], count: int, step: Callable = _step
) -> Tensor:
    f, g = torch.zeros_like(problem[0]), torch.zeros_like(problem[1])
    for _ in range(count):
        f, g = step(*problem, g)
    return f


class _Dense:
    """Random costs between equal weights, and ``count`` iterations from where 20 have led."""

    def __init__(self, entries: int, dtype: str, count: int) -> None:
        self.n, self.count = math.isqrt(entries), count
        generator = torch.Generator().manual_seed(0)
        self.wide = torch.rand(1, self.n, self.n, generator=generator, dtype=torch.float64)
        self.cost = self.wide.to(getattr(torch, dtype))
        self.eps = 1 / 1200
        log_a = torch.full_like(self.cost[:, 0], -math.log(self.n))
        self.scaled = log_a, log_a, self.cost / self.eps
        self.start = self._solve(None, None, 20)

    def _solve(self, f: Tensor | None, g: Tensor | None, count: int) -> _solve.Solution:
        a, eps = uniform(1, self.n), torch.full((1,), self.eps, dtype=torch.float64)
        problem = Problem(a, a, self.cost, None, None, "", 1.0, eps, hard(1))
        return _solve.solve(
            problem, f, g, max_iter=count, tol=0.0, check_every=count, method="sinkhorn"
        )

    def ours(self) -> Tensor:
        return self._solve(self.start.f, self.start.g, self.count).f

    def read(self) -> float:
        return sum(self.wide.sum().item() for _ in range(self.count))

    def logsumexp(self) -> Tensor:
        return _logsumexp(self.scaled, self.count)


def _iteration(dtype: str) -> Case:
    def setup(entries: int) -> Contestants:
        dense = _Dense(entries, dtype, ITERATIONS)
        return {OURS: dense.ours, READ: dense.read, LOGSUMEXP: dense.logsumexp}

    return Case(
        family="sinkhorn",
        op="iteration",
        region="dense",
        mode=f"{ITERATIONS} iterations",
        dtype=dtype,
        where="random costs in [0, 1], n = m, eps = 1/1200",
        setup=setup,
        yardstick=READ,
        bytes=SIZE[dtype] * ITERATIONS,
        flops=STORED_FLOPS * ITERATIONS,
        elements=2000 * 2000,
        bars=(Bar(READ, slower=1.6 if dtype == "float64" else 0.8),),
        quick=True,
        note="the first iteration stores the entries, the last recomputes the marginals from C",
    )


def _iteration_rivals(dtype: str) -> Case:
    def setup(entries: int) -> Contestants:
        dense = _Dense(entries, dtype, FEWER)
        step = torch.compile(_step)
        return {
            OURS: dense.ours,
            LOGSUMEXP: dense.logsumexp,
            COMPILED: lambda: _logsumexp(dense.scaled, FEWER, step),
            **_ott(dense),
            **_pot(dense),
        }

    return Case(
        family="sinkhorn",
        op="iteration",
        region="dense",
        mode=f"{FEWER} iterations",
        dtype=dtype,
        where="random costs in [0, 1], n = m, eps = 1/1200",
        setup=setup,
        yardstick=LOGSUMEXP,
        bytes=SIZE[dtype] * FEWER,
        flops=STORED_FLOPS * FEWER,
        elements=2000 * 2000,
        bars=(Bar(OTT, faster=5), Bar(POT_LOG, faster=50)) if dtype == "float64" else (),
        rivals=((OTT, "ott"), (POT, "ot"), (POT_LOG, "ot")),
        note="POT sinkhorn has no logarithms: it is not safe where exp(-C / eps) underflows",
    )


def _ott(dense: _Dense) -> dict[str, Callable[[], object]]:
    if find_spec("ott") is None:
        return {}
    one_thread = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("XLA_FLAGS", one_thread)
    import jax
    import numpy as np
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    jax.config.update("jax_enable_x64", True)
    count, eps = dense.count, dense.eps
    solver = Sinkhorn(
        threshold=0.0, inner_iterations=count, min_iterations=count, max_iterations=count
    )
    solve = jax.jit(lambda cost: solver(LinearProblem(Geometry(cost, epsilon=eps))).f)
    cost = jax.numpy.asarray(dense.cost[0].numpy())
    return {OTT: lambda: np.asarray(solve(cost))}


def _pot(dense: _Dense) -> dict[str, Callable[[], object]]:
    if find_spec("ot") is None:
        return {}
    import ot

    a, cost = torch.full_like(dense.cost[0, 0], 1 / dense.n).numpy(), dense.cost[0].numpy()

    def solve(method: str) -> Callable[[], object]:
        return lambda: ot.sinkhorn(
            a, a, cost, dense.eps,
            method=method, numItermax=dense.count, stopThr=0.0, warn=False,
        )  # fmt: skip

    return {POT: solve("sinkhorn"), POT_LOG: solve("sinkhorn_log")}


def _points() -> Case:
    def setup(entries: int) -> Contestants:
        n = math.isqrt(entries)
        generator = torch.Generator().manual_seed(0)
        x, y = torch.rand(2, 1, n, 3, generator=generator)
        a, eps = uniform(1, n), torch.full((1,), 0.05, dtype=torch.float64)
        start = torch.zeros_like(a)

        def ours() -> Tensor:
            problem = Problem(a, a, None, x, y, "sqeuclidean", 1.0, eps, hard(1))
            return _solve.solve(
                problem, start, start,
                max_iter=5, tol=0.0, check_every=5, method="sinkhorn",
            ).f  # fmt: skip

        def tiled() -> Tensor:
            f, g = torch.zeros(n), torch.zeros(n)
            rows = max(1, 2**22 // n)
            for _ in range(5):
                for one, other, source, target in ((f, g, x, y), (g, f, y, x)):
                    for i in range(0, n, rows):
                        cost = torch.cdist(source[0, i : i + rows], target[0]).square() / 0.05
                        one[i : i + rows] = math.log(n) - torch.logsumexp(other - cost, 1)
            return f

        return {OURS: ours, TILED: tiled}

    return Case(
        family="sinkhorn",
        op="iteration",
        region="points",
        mode="5 iterations",
        dtype="float32",
        where="points uniform in the unit cube, squared distances, eps = 0.05",
        setup=setup,
        yardstick=TILED,
        bytes=0,
        flops=5 * (FLOPS["float32"] + 9),
        elements=4000 * 4000,
        bars=(Bar(TILED, faster=1),),
    )


def _many_points() -> Case:
    def setup(entries: int) -> Contestants:
        from geomloss import SamplesLoss

        n, pairs = math.isqrt(entries), 4
        generator = torch.Generator().manual_seed(0)
        x, y = torch.rand(2, 1, n, 3, generator=generator)
        a, eps = uniform(1, n), torch.full((1,), BLUR**2, dtype=torch.float64)
        start = torch.zeros_like(a)
        loss = SamplesLoss(
            "sinkhorn", p=2, blur=BLUR, diameter=BLUR, debias=False, potentials=True,
            backend="online",
        )  # fmt: skip
        loss(x[0, :8], y[0, :8])  # compiles

        def ours() -> Tensor:
            problem = Problem(a, a, None, x, y, "half_sqeuclidean", 1.0, eps, hard(1))
            return _solve.solve(
                problem, start, start,
                max_iter=pairs, tol=0.0, check_every=pairs, method="sinkhorn",
            ).f  # fmt: skip

        return {OURS: ours, GEOMLOSS: lambda: loss(x[0], y[0])[0]}

    return Case(
        family="sinkhorn",
        op="iteration",
        region="many points",
        mode="4 iterations",
        dtype="float32",
        where=f"20 000 points uniform in the unit cube, half squared distances, eps = {BLUR}^2",
        setup=setup,
        yardstick=GEOMLOSS,
        bytes=0,
        flops=4 * (FLOPS["float32"] + 9),
        elements=20_000 * 20_000,
        bars=(Bar(GEOMLOSS, faster=1),),
        memory=True,
        needs=("geomloss", "pykeops"),
        note="GeomLoss's symmetric updates are two soft minima an iteration, as ours",
    )


def _batch() -> Case:
    def setup(entries: int) -> Contestants:
        batch = max(1, entries // (32 * 40))
        generator = torch.Generator().manual_seed(0)
        cost = torch.rand(batch, 32, 40, generator=generator, dtype=torch.float64)
        a, b = uniform(batch, 32), uniform(batch, 40)
        eps = torch.logspace(0, -3, batch, dtype=torch.float64)

        def ours() -> Tensor:
            problem = Problem(a, b, cost, None, None, "", 1.0, eps, hard(batch))
            return _solve.solve(
                problem, None, None, max_iter=10_000, tol=1e-6, check_every=10
            ).f

        def logsumexp(step: Callable = _step) -> Tensor:
            scaled, log_a, log_b = cost / eps[:, None, None], a.log(), b.log()
            f, g, total = torch.zeros_like(a), torch.zeros_like(b), 0
            while total < 10_000:
                for _ in range(50):
                    f, g = step(log_a, log_b, scaled, g)
                total += 50
                exponent = f[..., None] + g[:, None] - scaled
                rows = (exponent + log_b[:, None]).exp().sum(2)
                if ((rows - 1).abs() * a).sum(1).max() <= 1e-6:
                    break
            return f

        step = torch.compile(_step)
        calls: dict[str, Callable[[], object]] = {
            OURS: ours,
            LOGSUMEXP: logsumexp,
            COMPILED: lambda: logsumexp(step),
        }
        try:
            import ot
        except ImportError:
            return calls

        def pot(method: str) -> Tensor:
            return torch.stack(
                [
                    ot.sinkhorn(
                        a[i], b[i], cost[i], float(eps[i]), method=method,
                        stopThr=1e-6, numItermax=10_000, warn=False,
                    )
                    for i in range(batch)
                ]
            )  # fmt: skip

        return {**calls, **{name: partial(pot, name.split()[1]) for name in (POT, POT_LOG)}}

    return Case(
        family="sinkhorn",
        op="batch",
        region="32x40",
        mode="to 1e-6",
        dtype="float64",
        where="problems of 32 x 40 with random costs, eps from 1 to 1e-3, to 1e-6 of the mass",
        setup=setup,
        yardstick=LOGSUMEXP,
        bytes=0,
        flops=FLOPS["float64"],
        elements=256 * 32 * 40,
        bars=(Bar((LOGSUMEXP, COMPILED), faster=5), Bar((POT, POT_LOG), faster=20)),
        rivals=((POT, "ot"), (POT_LOG, "ot")),
        note="each problem stops for itself; the batched logsumexp waits for the last",
    )
