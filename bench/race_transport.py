"""The ways to a small eps that were raced: passes over the costs until the error is 1e-9.

    python bench/race_transport.py

prints the table of CONTRIBUTING.md. Problems are those of ``cases/sinkhorn_newton.py`` with
their first seed; counts are the same on every machine, but for Anderson's, which depend on how
sums are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cases.sinkhorn_newton import SEEDS, assignment, digits
from curvkern import _sinkhorn
from curvkern._bench import transport
from curvkern.ot import _solve

TOL, MOST = 1e-9, 60_000
PROBLEMS = {
    "D L2": (digits(2), 784),
    "A 500": (assignment(500 / 1200), 500),
    "D L1": (digits(1), 784),
    "A 1000": (assignment(0.42), 1000),
}
WINDOW = 8  # of Anderson's method

Way = Callable[[transport.Problem], float]


def tensors(
    problem: transport.Problem, dtype: torch.dtype = torch.float64
) -> _sinkhorn.Problem:
    """The problem as the solvers take it, costs rounded to a dtype."""
    a, b, cost = (torch.from_numpy(np.ascontiguousarray(t))[None] for t in problem[:3])
    eps = torch.tensor([problem.eps], dtype=torch.float64)
    rho = torch.full((1, 2), math.inf, dtype=torch.float64)
    return _sinkhorn.Problem(a, b, cost.to(dtype), None, None, "", 1.0, eps, rho)


def count(info: Tensor) -> float:
    """Iterations, or inf without convergence."""
    return float(info[0, 1]) if info[0, 2] > 0 else math.inf


def auto(problem: transport.Problem) -> float:
    found = _solve.solve(
        tensors(problem), None, None, max_iter=MOST, tol=TOL, check_every=10, method="auto"
    )
    return float(found.n_iter) if found.converged else math.inf


def newton(problem: transport.Problem) -> float:
    return count(_sinkhorn.newton(tensors(problem), None, None, MOST, TOL)[2])


def sweeps(
    problem: transport.Problem, anneal: bool, dtype: torch.dtype = torch.float64
) -> float:
    given = tensors(problem, dtype)
    return count(_sinkhorn.solve(given, None, None, MOST, TOL, 10, anneal=anneal)[2])


def duals(problem: transport.Problem) -> tuple[Tensor, Tensor]:
    """Those of the problem without entropy, by POT's network simplex."""
    import ot

    log = ot.emd(*problem[:3], numItermax=10**7, log=True)[1]
    f, g = (torch.from_numpy(log[name])[None] for name in ("u", "v"))
    return f, g


def newton_from_duals(problem: transport.Problem) -> float:
    return count(_sinkhorn.newton(tensors(problem), *duals(problem), MOST, TOL)[2])


def sweeps_from_duals(problem: transport.Problem) -> float:
    return count(_sinkhorn.solve(tensors(problem), *duals(problem), MOST, TOL, 10)[2])


def anderson(problem: transport.Problem) -> float:
    """Sinkhorn's iteration in g, extrapolated; back to the best g where the error trebles."""
    a, b, cost = (torch.from_numpy(np.ascontiguousarray(t)) for t in problem[:3])
    log_a, log_b, scaled = a.log(), b.log(), cost / problem.eps
    g = best_next = torch.zeros_like(b)
    best, images, moves = math.inf, [], []
    for iteration in range(1, MOST + 1):
        f = -torch.logsumexp(log_b + g - scaled, 1)
        following = -torch.logsumexp((log_a + f)[:, None] - scaled, 0)
        error = float((b * torch.expm1(g - following)).abs().sum())
        if error <= TOL:
            return iteration
        if not error <= 3 * best:
            g, best, images, moves = best_next, math.inf, [], []
            continue
        if error < best:
            best, best_next = error, following
        move = following - g
        images = [*images, following][-WINDOW:]
        moves = [*moves, move - b @ move][-WINDOW:]
        g = images[-1]
        if len(moves) > 1:
            steps = torch.stack([moves[-1] - m for m in moves[:-1]], 1)
            ridge = 1e-10 * steps.norm() * torch.eye(steps.shape[1], dtype=steps.dtype)
            target = torch.cat([moves[-1], steps.new_zeros(len(ridge))])
            shares = torch.linalg.lstsq(torch.cat([steps, ridge]), target).solution
            g = g - torch.stack([images[-1] - x for x in images[:-1]], 1) @ shares
    return math.inf


WAYS: dict[str, Way] = {
    'sweeps, then Newton steps (method "auto")': auto,
    'Newton steps along a path of eps (method "newton")': newton,
    "Newton steps from the duals of POT's exact solver": newton_from_duals,
    "sweeps with Anderson's extrapolation, window 8": anderson,
    "sweeps from the duals of POT's exact solver": sweeps_from_duals,
    'sweeps with falling eps (method "sinkhorn")': lambda p: sweeps(p, anneal=True),
    "the same, in float32 up to an error of 1e-5": lambda p: sweeps(p, True, torch.float32),
    "sweeps": lambda p: sweeps(p, anneal=False),
}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    problems = [make(np.random.default_rng(SEEDS[0]), size) for make, size in PROBLEMS.values()]
    print(f"| way | {' | '.join(PROBLEMS)} |")
    print("|---|" + "---:|" * len(PROBLEMS))
    for name, way in WAYS.items():
        found = " | ".join(f"{way(problem):.0f}" for problem in problems)
        print(f"| {name} | {found} |", flush=True)


if __name__ == "__main__":
    main()
