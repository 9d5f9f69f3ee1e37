"""Benchmark cases of the Sinkhorn family: an iteration, points, and a batch.

An element is an entry of the cost. The number of iterations is fixed, but for the batch, where
every contestant runs to a marginal error of 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from curvkern._bench.case import OURS, Bar, Case, Contestants
from curvkern._sinkhorn import Problem
from curvkern.ot import _solve

READ = "one read of C in float64"
LOGSUMEXP = "torch logsumexp"
POT_LOG, POT = "POT sinkhorn_log", "POT sinkhorn"
TILED = "tiled torch logsumexp"
SIZE = {"float64": 8, "float32": 4}
ITERATIONS = 40

# Least arithmetic of an entry, stored (the weighted row sum and the column sum) and not: the
# exponent, 2^t in its range reduction and a polynomial of degree 10 or 5, and the sums.
STORED_FLOPS = 4
FLOPS = {"float64": 2 + 4 + 2 * 10 + 4, "float32": 6 + 6 + 2 * 5 + 4}


def cases() -> list[Case]:
    """One full iteration in both dtypes, points in three dimensions, many small problems."""
    return [*(_iteration(dtype) for dtype in SIZE), _points(), _batch()]


def uniform(batch: int, n: int) -> Tensor:
    """Equal weights."""
    return torch.full((batch, n), 1 / n, dtype=torch.float64)


def hard(batch: int) -> Tensor:
    """Marginals that must be met."""
    return torch.full((batch, 2), math.inf, dtype=torch.float64)


def _logsumexp_iterations(
    log_a: Tensor, log_b: Tensor, scaled: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    g = torch.zeros_like(log_b)
    for _ in range(count):
        f = -torch.logsumexp((log_b + g)[:, None] - scaled, 2)
        g = -torch.logsumexp((log_a + f)[..., None] - scaled, 1)
    return f, g


def _iteration(dtype: str) -> Case:
    def setup(entries: int) -> Contestants:
        n = math.isqrt(entries)
        generator = torch.Generator().manual_seed(0)
        cost = torch.rand(1, n, n, generator=generator, dtype=torch.float64)
        wide, cost = cost, cost.to(getattr(torch, dtype))
        a, eps = uniform(1, n), torch.full((1,), 1 / 1200, dtype=torch.float64)
        scaled, log_a = cost / eps.to(cost.dtype), a.log().to(cost.dtype)

        problem = Problem(a, a, cost, None, None, "", 1.0, eps, hard(1))

        def solve(f: Tensor | None, g: Tensor | None, iterations: int) -> _solve.Solution:
            return _solve.solve(
                problem, f, g,
                max_iter=iterations, tol=0.0, check_every=iterations, method="sinkhorn",
            )  # fmt: skip

        start = solve(None, None, 20)

        def ours() -> Tensor:
            return solve(start.f, start.g, ITERATIONS).f

        def read() -> float:
            return sum(wide.sum().item() for _ in range(ITERATIONS))

        calls: dict[str, Callable[[], object]] = {
            OURS: ours,
            READ: read,
            LOGSUMEXP: lambda: _logsumexp_iterations(log_a, log_a, scaled, ITERATIONS)[0],
        }
        return calls

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

        def logsumexp() -> Tensor:
            scaled, log_a, log_b = cost / eps[:, None, None], a.log(), b.log()
            f, g, total = torch.zeros_like(a), torch.zeros_like(b), 0
            while total < 10_000:
                for _ in range(50):
                    f = -torch.logsumexp((log_b + g)[:, None] - scaled, 2)
                    g = -torch.logsumexp((log_a + f)[..., None] - scaled, 1)
                total += 50
                exponent = f[..., None] + g[:, None] - scaled
                rows = (exponent + log_b[:, None]).exp().sum(2)
                if ((rows - 1).abs() * a).sum(1).max() <= 1e-6:
                    break
            return f

        calls: dict[str, Callable[[], object]] = {OURS: ours, LOGSUMEXP: logsumexp}
        try:
            import ot
        except ImportError:
            return calls

        def pot() -> Tensor:
            return torch.stack(
                [
                    ot.sinkhorn(
                        a[i], b[i], cost[i], float(eps[i]), method="sinkhorn_log",
                        stopThr=1e-6, numItermax=10_000, warn=False,
                    )
                    for i in range(batch)
                ]
            )  # fmt: skip

        calls[POT_LOG] = pot
        return calls

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
        bars=(Bar(LOGSUMEXP, faster=5), Bar(POT_LOG, faster=20)),
        note="each problem stops for itself; the batched logsumexp waits for the last",
    )
