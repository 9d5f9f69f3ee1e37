"""Semismooth Newton method for quadratically regularised transport, and pruning to k nonzeros.

With g_j(f) fixed by the mass of column j, the semi-dual of

    min <P, C> + gamma/2 |P|^2   over plans P with marginals a and b                    (1)

is D(f) = a.f + b.g(f) - gamma/2 |P(f)|^2, where P_ij = max(f_i + g_j - C_ij, 0) / gamma: column
j is a projection onto a simplex. D is concave with gradient a - P1, and quadratic where no
column changes its support, so Newton's method ends at the exact solution after finitely many
steps. Far from it, gamma is larger and shrinks by a factor from level to level, each of which
begins with sweeps of exact block ascent.

At most k nonzeros in each column: the dual with columns projected onto the k-sparse simplex
bounds the value from below [2]_, but where its columns have ties at the k-th entry no choice
among them need meet the row marginals. So the plan comes from (1): the smallest entries of
columns beyond k are barred, the rest is solved again to full accuracy, and so on, at a smaller
gamma where this fails, whose plans are sparser. The last solve is at gamma itself.

References
----------
.. [1] M. Blondel, V. Seguy, A. Rolet, "Smooth and Sparse Optimal Transport", AISTATS 2018.
.. [2] T. Liu, J. Puigcerver, M. Blondel, "Sparsity-Constrained Optimal Transport", ICLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _runtime
from ._sparsemax import UNLIMITED

LEVEL_FACTOR = 4.0  # from one gamma to the next
LEVEL_ERROR = 0.05  # of the marginals, where a level that is not the last may end
SWEEPS = 3  # of block ascent at the start of a level
MOST_CG = 2000
LEAST_DAMPING, MOST_DAMPING = 1e-9, 10.0  # relative to the error
KEPT = 0.8  # of the entries of a column, in one round of pruning
ROUND_STEPS = (
    40  # Newton steps in a round of pruning; an infeasible one would need infinitely many
)
SPARSER = (1.0, 8.0, 64.0, 512.0, 4096.0)  # gamma over the gamma at which plans are pruned

Callback = Callable[[int, Tensor], Any] | None


@dataclass
class Columns:
    """All columns of the plan at potentials f, in units of gamma: their sums are gamma b."""

    f: Tensor  # (n,)
    g: Tensor  # (m,)
    rows: Tensor  # (n,) sums of the rows
    graph: Any  # the nonzeros, see csrc/sinkhorn/support_graph.hpp
    dual: float

    def sizes(self) -> Tensor:
        """The number of nonzeros of each column."""
        return torch.from_numpy(self.graph.start()).diff()


class Steps:
    """Counts Newton steps against their limit, and reports them."""

    def __init__(self, most: int, callback: Callback) -> None:
        self.most, self.callback = most, callback
        self.done = 0
        self.history: list[tuple[int, float]] = []

    def left(self) -> bool:
        """Whether another step may be taken."""
        return self.done < self.most

    def count(self, error: float) -> None:
        """One step was taken, and led to this error."""
        self.done += 1
        self.history.append((self.done, error))
        if self.callback is not None:
            self.callback(self.done, torch.tensor(error, dtype=torch.float64))


@dataclass
class Problem:
    """Positive masses of sum 1, and costs whose finite entries lie in [0, 1]."""

    a: Tensor  # (n,)
    b: Tensor  # (m,)
    cost: Tensor  # (n, m)
    transposed: Tensor  # (m, n)

    def columns(self, f: Tensor, gamma: float, k: int = UNLIMITED) -> Columns:
        """The pass over the costs that everything else is made of."""
        rows, tau, square, graph = _pass(self.transposed, f, gamma * self.b, k)
        dual = self.a @ f - self.b @ tau - square.sum() / (2 * gamma)
        return Columns(f, -tau, rows, graph, dual.item())

    def error(self, at: Columns, gamma: float) -> float:
        """L1 error of the row marginals; those of the columns are exact."""
        return (self.a - at.rows / gamma).abs().sum().item()

    def ceiling(self, gamma: float) -> float:
        """No plan has a larger value: a dual value above it shows that there is no plan."""
        return 1 + gamma / 2 * self.b.max().item() + 1e-6

    def ascend(self, f: Tensor, gamma: float) -> Tensor:
        """Exact maximisation over g, then over f: one sweep."""
        tau = _pass(self.transposed, f, gamma * self.b, UNLIMITED)[1]
        return -_pass(self.cost, -tau, gamma * self.a, UNLIMITED)[1]


def _pass(cost: Tensor, f: Tensor, mass: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Any]:
    """For all rows of `cost`: sums over them, thresholds, sums of squares, nonzeros."""
    if _runtime.backend() == "reference":
        from ..reference import sparsemax as reference

        return reference.plan_columns(cost, f, mass, k)
    torch.get_num_threads()  # hands the setting of torch.set_num_threads to a new thread
    rows, tau, square = torch.empty_like(f), torch.empty_like(mass), torch.empty_like(mass)
    graph = _runtime.cpu_module().plan_columns(cost, f, mass, k, rows, tau, square)
    return rows, tau, square, graph


def solve(problem: Problem, gamma: float, tol: float, steps: Steps) -> Columns:
    """The solution of (1), from nothing."""
    largest = max(problem.a.max().item(), problem.b.max().item())
    dense = 0.1 / largest  # from here on about every entry of the plan is positive
    levels = max(0, math.ceil(math.log(dense / gamma, LEVEL_FACTOR))) if gamma < dense else 0
    f = torch.zeros_like(problem.a)
    for level in range(levels, -1, -1):
        softer = gamma * LEVEL_FACTOR**level
        if level > 0 and not steps.left():
            continue
        for _ in range(SWEEPS):
            f = problem.ascend(f, softer)
        at = newton(problem, f, softer, LEVEL_ERROR if level else tol, steps)
        f = at.f
    return at


def newton(
    problem: Problem,
    f: Tensor,
    gamma: float,
    tol: float,
    steps: Steps,
    *,
    k: int = UNLIMITED,
    most: int = UNLIMITED,
) -> Columns:
    """Damped Newton steps with a backtracking line search, until the error is below tol."""
    at, damping = problem.columns(f, gamma, k), 1e-3
    error, last, ceiling = problem.error(at, gamma), steps.done + most, problem.ceiling(gamma)
    while error > tol and steps.left() and steps.done < last and at.dual <= ceiling:
        residual = gamma * problem.a - at.rows
        step = torch.empty_like(f)
        relative = max(damping * min(1.0, error), 1e-12)
        accuracy = max(min(1e-2, error), 1e-10)
        at.graph.solve(residual, relative, accuracy, MOST_CG, step)
        found, length = _line_search(problem, at, step, gamma, k)
        if found is None:
            break
        at, damping = found, damping * (0.3 if length == 1 else 3.0)
        damping = min(max(damping, LEAST_DAMPING), MOST_DAMPING)
        error = problem.error(at, gamma)
        steps.count(error)
    return at


def _line_search(
    problem: Problem, at: Columns, step: Tensor, gamma: float, k: int
) -> tuple[Columns | None, float]:
    """The first of shrinking steps that gains what its slope promises.

    Where rounding hides the gain, a smaller slope does; None where nothing is left.
    """
    slope = ((gamma * problem.a - at.rows) @ step).item() / gamma
    length = 1.0
    while length > 1e-8:
        ahead = problem.columns(at.f + length * step, gamma, k)
        slope_ahead = ((gamma * problem.a - ahead.rows) @ step).item() / gamma
        if ahead.dual >= at.dual + 1e-4 * length * slope:
            return ahead, length
        even = ahead.dual >= at.dual - 1e-14 * (abs(at.dual) + gamma)
        if even and abs(slope_ahead) <= 0.9 * abs(slope):
            return ahead, length
        length *= 0.5 if length == 1 else 0.3
    return None, length


def prune(
    problem: Problem, dense: Columns, gamma: float, k: int, tol: float, steps: Steps
) -> tuple[Columns, float]:
    """A plan with k nonzeros a column that meets the marginals, and a bound on all such plans.

    `dense` is the solution without the limit. Where no such plan is found, the k-sparse columns
    of the best dual potentials: the marginals of their rows are off.
    """
    relaxed = newton(problem, dense.f, gamma, tol, steps, k=k, most=ROUND_STEPS)
    bound = max(relaxed.dual, dense.dual)
    if problem.error(relaxed, gamma) <= tol:
        return relaxed, bound
    for sharper in SPARSER:
        start = dense if sharper == 1 else solve(problem, gamma / sharper, tol, steps)
        pruned = _prune_at(problem, start, gamma, sharper, k, tol, steps)
        if pruned is not None:
            return pruned, bound
    return relaxed, bound


def _prune_at(
    problem: Problem,
    at: Columns,
    gamma: float,
    sharper: float,
    k: int,
    tol: float,
    steps: Steps,
) -> Columns | None:
    """Pruning from the solution at gamma / sharper, then the solution at gamma; or None."""
    barred = Problem(problem.a, problem.b, problem.cost, problem.transposed.clone())
    while barred.error(at, gamma / sharper) <= tol:
        sizes = at.sizes()
        if bool((sizes <= k).all()):
            if sharper == 1:
                return at
            _keep(barred.transposed, at, sizes)
            sharper = 1.0
        else:
            fewer = (sizes * KEPT).long().clamp_max(sizes - 1).clamp_min(k)
            _keep(barred.transposed, at, torch.where(sizes > k, fewer, -1))
        at = newton(barred, at.f, gamma / sharper, tol, steps, most=ROUND_STEPS)
    return None


def _keep(transposed: Tensor, at: Columns, most: Tensor) -> None:
    """Bars all but the `most` largest entries of each column; at -1 all stay open."""
    row, value = torch.from_numpy(at.graph.row()), torch.from_numpy(at.graph.value())
    start = torch.from_numpy(at.graph.start())
    column = torch.arange(len(most)).repeat_interleave(start.diff())
    order = value.argsort(descending=True, stable=True)
    order = order[column[order].argsort(stable=True)]
    rank = torch.arange(len(order)) - start[column[order]]
    kept = order[rank < most[column[order]]]
    prices = transposed[column[kept], row[kept]]
    transposed[most >= 0] = torch.inf
    transposed[column[kept], row[kept]] = prices
