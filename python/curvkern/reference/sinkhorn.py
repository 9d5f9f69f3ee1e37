"""Entropic optimal transport in plain PyTorch: log-domain sweeps and dense Newton steps.

With e_ij = exp((f_i + g_j - C_ij) / eps) and P_ij = a_i b_j e_ij the solution satisfies

    sum_j b_j e_ij = exp(-f_i / rho_a),    sum_i a_i e_ij = exp(-g_j / rho_b)

where rho = inf stands for a hard marginal. A sweep solves the first equations for f, then the
second for g. In this form they make sense at points without mass, too.

A Newton step works on the semi-dual phi(f) = max_g D(f, g). In variables scaled by
d = a sum_j b_j e_ij its Hessian is a symmetric contraction away from the identity; its spectral
decomposition gives the step with a shift in proportion to the error, which keeps convergence
quadratic, and drops what is singular: the constants, and parts that +inf costs cut off.

All problems of a batch run side by side, each until it has converged.

References
----------
.. [1] G. Peyre, M. Cuturi, "Computational Optimal Transport", 2019, sections 4.4 and 10.2.
.. [2] T. Sejourne, J. Feydy, F.-X. Vialard, A. Trouve, G. Peyre, "Sinkhorn Divergences for
   Unbalanced Optimal Transport", 2019, arXiv:1910.12958.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._sinkhorn import Problem
from .costs import cost_matrix

PLAIN_SWEEPS = 40  # "auto" goes over to Newton steps after as many
ANNEALING = 4.0  # factor between the levels of eps
STEPS_A_LEVEL = 8
LEVEL_TOL = 0.05
SHIFT = 1e-3  # of the Hessian, per unit of the error
SINGULAR = 1e-14  # eigenvalues that count as zero
HALVINGS = 30
STAGNATION = 30  # Newton steps without a smaller error after which a problem is given up
MARGIN = 0.5  # of tol: the error that is recomputed at the end differs by rounding
GROWTH = 2.0  # of the error in a step that does not raise the dual


class Solution(NamedTuple):
    """What a solver returns for a batch of B problems of n x m."""

    f: Tensor  # (B, n) float64
    g: Tensor  # (B, m) float64
    error: Tensor  # (B,) float64, L1 norm of both marginal residuals over the total mass
    n_iter: Tensor  # (B,) int64
    converged: Tensor  # (B,) bool: finite, and error <= tol
    history: list[tuple[int, float]]  # (iteration, largest error) at each check


@dataclass(frozen=True)
class _Problem:
    """A batch of problems in float64, with the operations of both phases."""

    a: Tensor  # (B, n)
    b: Tensor  # (B, m)
    cost: Tensor  # (B, n, m)
    eps: Tensor  # (B,)
    rho: Tensor  # (B, 2)

    def pick(self, index: Tensor) -> _Problem:
        return _Problem(
            self.a[index], self.b[index], self.cost[index], self.eps[index], self.rho[index]
        )

    def exponent(self, f: Tensor, g: Tensor) -> Tensor:
        return (f[:, :, None] + g[:, None, :] - self.cost) / self.eps[:, None, None]

    def f_of(self, g: Tensor) -> Tensor:
        """Solution of the row equations."""
        log_sum = torch.logsumexp(
            self.b.log()[:, None] + self.exponent(torch.zeros_like(self.a), g), 2
        )
        return self._transform(log_sum, self.rho[:, :1])

    def g_of(self, f: Tensor) -> Tensor:
        """Solution of the column equations."""
        log_sum = torch.logsumexp(
            self.a.log()[:, :, None] + self.exponent(f, torch.zeros_like(self.b)), 1
        )
        return self._transform(log_sum, self.rho[:, 1:])

    def _transform(self, log_sum: Tensor, rho: Tensor) -> Tensor:
        reachable = log_sum > -torch.inf  # a point whose costs are all +inf keeps 0
        potential = -torch.where(reachable, log_sum, 0.0) / (1 / self.eps[:, None] + 1 / rho)
        return potential

    def plan(self, f: Tensor, g: Tensor) -> Tensor:
        log_mass = self.a.log()[:, :, None] + self.b.log()[:, None]
        return torch.exp(log_mass + self.exponent(f, g))

    def targets(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The marginals that these potentials ask for."""
        rows, columns = torch.exp(-f / self.rho[:, :1]), torch.exp(-g / self.rho[:, 1:])
        # Without mass there is none to ask for, even where the factors overflow.
        return (
            torch.where(self.a > 0, self.a * rows, 0.0),
            torch.where(self.b > 0, self.b * columns, 0.0),
        )

    def error(self, f: Tensor, g: Tensor) -> Tensor:
        plan, (rows, columns) = self.plan(f, g), self.targets(f, g)
        off = (plan.sum(2) - rows).abs().sum(1) + (plan.sum(1) - columns).abs().sum(1)
        error = off / torch.maximum(self.a.sum(1), self.b.sum(1))
        return torch.where(torch.isfinite(error), error, torch.inf)

    def dual(self, f: Tensor, g: Tensor) -> Tensor:
        """D up to a constant."""
        rows = _penalty(self.a, f, self.rho[:, :1])
        columns = _penalty(self.b, g, self.rho[:, 1:])
        return rows.sum(1) + columns.sum(1) - self.eps * self.plan(f, g).sum((1, 2))

    def newton_direction(self, f: Tensor, g: Tensor, error: Tensor) -> Tensor:
        """Step of f on the semi-dual, at g = g_of(f)."""
        plan, (rows, columns) = self.plan(f, g), self.targets(f, g)
        eps = self.eps[:, None]
        d = _inverse_root(plan.sum(2) / eps + rows / self.rho[:, :1])
        e = _inverse_root(plan.sum(1) / eps + columns / self.rho[:, 1:])
        scaled = d[:, :, None] * (plan / eps[:, :, None]) * e[:, None, :]
        identity = torch.eye(d.shape[1], dtype=d.dtype, device=d.device)
        values, vectors = torch.linalg.eigh(identity - scaled @ scaled.mT)
        values = values.clamp_min(0.0) + SHIFT * error.clamp_max(1.0)[:, None]
        inverse = torch.where(values > SINGULAR, 1 / values, 0.0)
        gradient = ((rows - plan.sum(2)) * d)[:, :, None]
        step = (vectors @ (inverse[:, :, None] * (vectors.mT @ gradient)))[:, :, 0] * d
        return torch.where(self.a > 0, step, 0.0)


def _inverse_root(d: Tensor) -> Tensor:
    return torch.where(d > 0, d.rsqrt(), 0.0)


def _penalty(a: Tensor, f: Tensor, rho: Tensor) -> Tensor:
    """a f for a hard marginal, else a rho (1 - exp(-f / rho)); no mass, no term."""
    hard = torch.isinf(rho)
    finite = torch.where(hard, 1.0, rho)
    term = torch.where(hard, f, -finite * torch.expm1(-f / finite))
    return torch.where(a > 0, a * term, 0.0)


class _Run:
    """State of one solve: potentials, errors and counts of all problems."""

    def __init__(
        self, problem: _Problem, f: Tensor, g: Tensor, options: dict[str, Any]
    ) -> None:
        self.problem, self.f, self.g = problem, f, g
        self.max_iter: int = options["max_iter"]
        self.goal: float = MARGIN * options["tol"]
        self.check_every: int = options["check_every"]
        self.callback: Callable[[int, Tensor], object] | None = options["callback"]
        self.error = torch.full_like(problem.eps, torch.inf)
        self.n_iter = torch.zeros_like(problem.eps, dtype=torch.int64)
        self.history: list[tuple[int, float]] = []

    @property
    def iteration(self) -> int:
        return int(self.n_iter.max())

    def open(self) -> Tensor:
        """Indices of the problems that go on."""
        return ((self.error > self.goal) & (self.n_iter < self.max_iter)).nonzero()[:, 0]

    def put(self, at: Tensor, f: Tensor, g: Tensor) -> None:
        self.f[at], self.g[at] = f, g
        self.n_iter[at] += 1

    def check(self, at: Tensor) -> None:
        self.error[at] = self.problem.pick(at).error(self.f[at], self.g[at])
        self.history.append((self.iteration, float(self.error.max())))
        if self.callback is not None:
            self.callback(self.iteration, self.error.clone())

    def sweeps(self, most: int, symmetric: bool = False) -> None:
        """Sinkhorn sweeps, at most so many; symmetric: f <- (f + update(f)) / 2, g = f."""
        for sweep in range(1, most + 1):
            at = self.open()
            if not len(at):
                return
            picked = self.problem.pick(at)
            f = picked.f_of(self.g[at])
            if symmetric:
                f = torch.where(picked.a > 0, (self.f[at] + f) / 2, f)
            self.put(at, f, f if symmetric else picked.g_of(f))
            if (
                sweep % self.check_every == 0
                or sweep == most
                or self.n_iter[at[0]] >= self.max_iter
            ):
                self.check(at)

    def newton(self, annealed: bool) -> None:
        """Newton steps, each followed by a sweep; from a large eps downwards where asked."""
        eps = self.problem.eps
        cost = torch.where(torch.isfinite(self.problem.cost), self.problem.cost, 0.0)
        level = (cost.amax((1, 2)) - cost.amin((1, 2))) / ANNEALING if annealed else eps
        while annealed and bool((level > eps).any()):
            self._level(torch.maximum(level, eps), level > eps)
            level = level / ANNEALING
        best, since = self.error.clone(), torch.zeros_like(self.n_iter)
        at = self.open()
        while len(at):
            self._step(self.problem, at)
            self.check(at)
            better = self.error < best
            best = torch.where(better, self.error, best)
            since = torch.where(better, 0, since + 1)
            at = self.open()
            at = at[since[at] < STAGNATION]

    def _level(self, eps: Tensor, above: Tensor) -> None:
        problem = replace(self.problem, eps=eps)
        for step in range(STEPS_A_LEVEL):
            rough = above & (problem.error(self.f, self.g) > LEVEL_TOL)
            rough &= (self.error > self.goal) & (self.n_iter < self.max_iter)
            at = rough.nonzero()[:, 0]
            if not len(at):
                return
            if step < 2:
                picked = problem.pick(at)
                f = picked.f_of(self.g[at])
                self.put(at, f, picked.g_of(f))
            else:
                self._step(problem, at)

    def _step(self, problem: _Problem, at: Tensor) -> None:
        picked = problem.pick(at)
        f = picked.f_of(self.g[at])
        g = picked.g_of(f)
        error, dual = picked.error(f, g), picked.dual(f, g)
        step = picked.newton_direction(f, g, error)
        pending = torch.isfinite(step).all(1)
        length = torch.ones_like(error)
        best_f, best_g = f.clone(), g.clone()
        for _ in range(HALVINGS):
            if not pending.any():
                break
            new_f = f + length[:, None] * torch.where(pending[:, None], step, 0.0)
            new_g = picked.g_of(new_f)
            new_error = picked.error(new_f, new_g)
            raised = picked.dual(new_f, new_g) > dual
            good = pending & torch.isfinite(new_error)
            good &= (raised & (new_error < GROWTH * error)) | (new_error < error) | raised
            best_f[good], best_g[good] = new_f[good], new_g[good]
            pending &= ~good
            length = length / 2
        self.put(at, best_f, best_g)

    def solution(self, tol: float) -> Solution:
        problem, f, g = self.problem, self.f, self.g
        f = torch.where(problem.a > 0, f, problem.f_of(g))
        g = torch.where(problem.b > 0, g, problem.g_of(f))
        f, g = centred(f, g, problem.a, problem.b, problem.rho)
        error = problem.error(f, g)
        finite = torch.isfinite(f).all(1) & torch.isfinite(g).all(1)
        return Solution(f, g, error, self.n_iter, finite & (error <= tol), self.history)


def centred(f: Tensor, g: Tensor, a: Tensor, b: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """The balanced potentials (f + t, g - t) with sum a f / sum a = sum b g / sum b."""
    balanced = torch.isinf(rho).all(1)
    shift = ((b * g).sum(1) / b.sum(1) - (a * f).sum(1) / a.sum(1)) / 2
    shift = torch.where(balanced, shift, 0.0)[:, None]
    return f + shift, g - shift


def solve(
    problem: Problem,
    f: Tensor | None = None,
    g: Tensor | None = None,
    *,
    method: str = "auto",
    max_iter: int = 10_000,
    tol: float = 1e-9,
    check_every: int = 10,
    callback: Callable[[int, Tensor], object] | None = None,
) -> Solution:
    """Solve a batch of problems, as :func:`curvkern.ot._solve.solve` does.

    ``method`` is "sinkhorn" (sweeps only), "newton" (annealed Newton steps), "auto": sweeps,
    then Newton steps where those were not enough, or "symmetric": averaged sweeps, for a
    measure and itself. Costs between points are held in memory.
    """
    a, b, cost, x, y, kind, scale, eps, rho = problem
    if cost is None:
        assert x is not None
        assert y is not None
        cost = scale * cost_matrix(x, y, kind)
    run = _Run(
        _Problem(a, b, cost.to(torch.float64), eps, rho),
        torch.zeros_like(a) if f is None else f.clone(),
        torch.zeros_like(b) if g is None else g.clone(),
        {"max_iter": max_iter, "tol": tol, "check_every": check_every, "callback": callback},
    )
    if method in ("sinkhorn", "symmetric"):
        run.sweeps(max_iter, method == "symmetric")
    else:
        run.sweeps(PLAIN_SWEEPS if method == "auto" else 2)
        run.newton(annealed=f is None and g is None)
    return run.solution(tol)
