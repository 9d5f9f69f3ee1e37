"""Benchmark cases of the sparse Newton solver: hard transport problems, to an L1 error of 1e-9.

An element is an entry of the cost. The yardstick is POT's exact network simplex, which solves
another problem, that without entropy; the entropic rival is RegOT's SSNS, where installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch

from curvkern._bench.case import OURS, Bar, Case, Contestants
from curvkern._sinkhorn import Problem as Transport
from curvkern.ot import _solve

EXACT, SSNS, AUTO = "POT emd (exact)", "RegOT SSNS", f"{OURS} auto"
HAS_SSNS = find_spec("regot") is not None
TOLERANCE = 1e-9
PASSES = 20  # over the cost, about what the path takes
Problem = tuple[np.ndarray, np.ndarray, np.ndarray, float]


def cases() -> list[Case]:
    """Assignments, images on a grid, Gaussian clouds."""
    return [
        _case("assignment", "U[0, 1] costs, eps = 0.42 / n", assignment, 1000**2, faster=3),
        _case("images L1", "images on a grid, eps = max C / 1200", images, 784**2, faster=3),
        _case("cloud 64", "Gaussians in 64 dimensions, eps = max C / 1000", cloud, 2000**2, 3),
    ]


def assignment(n: int) -> Problem:
    """Random costs between equal weights."""
    weights = np.full(n, 1 / n)
    return weights, weights, np.random.default_rng(0).random((n, n)), 0.42 / n


def images(n: int) -> Problem:
    """Two smooth images under the L1 distance of their pixels: a degenerate optimum."""
    side = math.isqrt(n)
    grid = np.stack(np.meshgrid(range(side), range(side)), -1).reshape(-1, 2).astype(float)
    cost = np.abs(grid[:, None] - grid[None]).sum(-1)
    centres = side * np.random.default_rng(0).random((2, 6, 1, 2))
    a, b = np.exp(-((grid - centres) ** 2).sum(-1) / side).sum(1) + 0.01
    return a / a.sum(), b / b.sum(), cost / cost.max(), 1 / 1200


def cloud(n: int) -> Problem:
    """Squared distances between two clouds of 64 dimensions."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, 64)), rng.standard_normal((n, 64)) + 0.125
    cost = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    weights = np.full(n, 1 / n)
    return weights, weights, cost, 1e-3 * cost.max()


def solver(problem: Problem, method: str) -> Callable[[], torch.Tensor]:
    """The native solver below the public functions."""
    a, b, cost = (torch.from_numpy(x)[None] for x in problem[:3])
    eps = torch.tensor([problem[3]], dtype=torch.float64)
    rho = torch.full((1, 2), math.inf, dtype=torch.float64)
    problem = Transport(a, b, cost, None, None, "", 1.0, eps, rho)
    return lambda: (
        _solve.solve(
            problem, None, None, method=method, max_iter=10_000, tol=TOLERANCE, check_every=10
        ).f
    )


def _case(
    region: str, where: str, make: Callable[[int], Problem], elements: int, faster: float
) -> Case:
    def setup(entries: int) -> Contestants:
        import ot

        problem = make(math.isqrt(entries))
        a, b, cost, eps = problem
        calls: dict[str, Callable[[], object]] = {
            OURS: solver(problem, "newton"),
            AUTO: solver(problem, "auto"),
            EXACT: lambda: ot.emd(a, b, cost, numItermax=10**7),
        }
        if HAS_SSNS:
            import regot

            columns = np.asfortranarray(cost)
            calls[SSNS] = lambda: (
                regot.sinkhorn_ssns(columns, a, b, eps, tol=TOLERANCE, max_iter=400).niter
            )
        return calls

    return Case(
        family="sinkhorn_newton",
        op="newton",
        region=region,
        mode="solve",
        dtype="float64",
        where=where,
        setup=setup,
        yardstick=EXACT,
        bytes=8 * PASSES,
        flops=2 * PASSES,
        bars=(Bar(EXACT, slower=1), *([Bar(SSNS, faster=faster)] * HAS_SSNS)),
        elements=elements,
        needs=("ot",),
        note="the exact solver's plan has no entropy; SSNS may stop short of the tolerance",
    )
