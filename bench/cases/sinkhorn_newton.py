"""Benchmark cases of hard transport problems: the time to an L1 marginal error of 1e-9.

Eight problems, each with several seeds. Ours is the default method, "auto". The bars are
against the quickest entropic solver of each problem that reaches the same error; the yardstick
is POT's exact network simplex, which solves another problem, that without entropy. An element
is an entry of a cost; ``curvkern._bench.transport`` has the rivals and their settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

import curvkern.ot
from curvkern._bench.case import OURS, Bar, Case, Contestants
from curvkern._bench.transport import (
    ENTROPIC,
    EXACT,
    POT,
    TARGET,
    Contestant,
    Found,
    Problem,
    contestants,
)

NEWTON = f"{OURS} newton"
SEEDS = (2024, 2025, 2026)
PASSES = 20  # over the cost, about what the path of Newton steps takes
HARD = (
    Bar(tuple(ENTROPIC), faster=1),
    Bar(tuple(ENTROPIC), faster=3, mean="the best entropic solver"),
    Bar(EXACT, slower=1),
)
EASY = (Bar(POT, slower=1),)

Maker = Callable[[np.random.Generator, int], Problem]


def cases() -> list[Case]:
    """Images of digits, random assignments, Gaussian clouds."""
    side = "two of scikit-learn's digits at 28 x 28, {} distances, eps = max C / 1200"
    normal = "normal points in {} dimensions, squared distances, eps = max C / {}"
    return [
        _case("D L2", "real input, " + side.format("squared"), digits(2), 784),
        _case("A 500", "U[0, 1] costs, n = 500, eps = 1 / 1200", assignment(500 / 1200), 500),
        _case("D L1", "real input, " + side.format("L1"), digits(1), 784),
        _case("A 1000", "U[0, 1] costs, eps = 0.42 / n", assignment(0.42), 1000, quick=True),
        _case("G 3", normal.format(3, 1000), cloud(3, 1e-3), 2000),
        _case("G 64", normal.format(64, 1000), cloud(64, 1e-3), 2000),
        _case("G 3 easy", normal.format(3, 100), cloud(3, 1e-2), 2000, bars=EASY),
        _case("A 2000 easy", "U[0, 1] costs, n = 2000, eps = 1 / 1200",
              assignment(2000 / 1200), 2000, bars=EASY),
    ]  # fmt: skip


def assignment(eps_n: float) -> Maker:
    """Random costs between equal weights; n eps is what makes them hard."""

    def make(rng: np.random.Generator, n: int) -> Problem:
        weights = np.full(n, 1 / n)
        return Problem(weights, weights, rng.random((n, n)), eps_n / n)

    return make


def digits(power: int) -> Maker:
    """Two images of digits, under powers of the distance of their pixels in each direction."""

    def make(rng: np.random.Generator, n: int) -> Problem:
        from scipy.ndimage import zoom
        from sklearn.datasets import load_digits

        side = math.isqrt(n)
        images = load_digits().images
        grid = np.stack(np.meshgrid(range(side), range(side)), -1).reshape(-1, 2).astype(float)
        cost = (np.abs(grid[:, None] - grid[None]) ** power).sum(-1)
        a, b = (
            np.maximum(zoom(images[k], side / 8, order=1), 0).ravel() + 1e-3
            for k in rng.choice(len(images), 2, replace=False)
        )
        return Problem(a / a.sum(), b / b.sum(), cost / cost.max(), 1 / 1200)

    return make


def cloud(dimensions: int, eps: float) -> Maker:
    """Squared distances between two normal clouds, of at most 1."""

    def make(rng: np.random.Generator, n: int) -> Problem:
        x, y = rng.standard_normal((2, n, dimensions))
        cost = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        weights = np.full(n, 1 / n)
        return Problem(weights, weights, cost / cost.max(), eps)

    return make


def ours(method: str) -> Callable[[Problem], Found]:
    """The public function; of its potentials come the duals that the rivals have."""

    def solve(problem: Problem) -> Found:
        a, b, cost = map(torch.from_numpy, problem[:3])
        result = curvkern.ot.sinkhorn(
            a, b, cost, problem.eps, method=method, tol=TARGET, max_iter=20_000
        )
        duals = (
            np.log(problem.a) + result.f.numpy() / problem.eps,
            np.log(problem.b) + result.g.numpy() / problem.eps,
        )
        return Found(duals, int(result.n_iter))

    return solve


def _case(
    region: str,
    where: str,
    make: Maker,
    n: int,
    *,
    bars: tuple[Bar, ...] = HARD,
    quick: bool = False,
) -> Case:
    def setup(entries: int) -> Contestants:
        size = math.isqrt(entries // len(SEEDS))
        problems = [make(np.random.default_rng(seed), size) for seed in SEEDS]
        return {
            OURS: Contestant(ours("auto"), problems),
            NEWTON: Contestant(ours("newton"), problems),
            **contestants(problems),
        }

    return Case(
        family="sinkhorn_newton",
        op="to 1e-9",
        region=region,
        mode=f"{len(SEEDS)} seeds",
        dtype="float64",
        where=where,
        setup=setup,
        yardstick=EXACT,
        bytes=8 * PASSES,
        flops=2 * PASSES,
        bars=bars,
        elements=len(SEEDS) * n**2,
        quick=quick,
        needs=("ot", "scipy", "sklearn"),
        rivals=tuple((name, module) for name, (module, _) in ENTROPIC.items()),
        note="the exact solver's plan has no entropy",
    )
