"""What is summed over the plan: products, cost, entropy, and the dual function.

All of it differentiable, without the plan in memory.
"""

from __future__ import annotations

from torch import Tensor

from .._sinkhorn import Problem
from . import _kernel, _tiles


def linear_cost(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """<P, C>, (B,)."""
    return _tiles.totals(problem, f, g)[1]


def divergence(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """KL(P | a b') = sum P log(P / (a b')) - sum P + sum a sum b, (B,)."""
    excess, _, pairing = _tiles.totals(problem, f, g)
    return pairing - excess


def applied(problem: Problem, f: Tensor, g: Tensor, v: Tensor, transpose: bool) -> Tensor:
    """P v for v (B, m, k), or P' v for v (B, n, k)."""
    a, b = problem.a[:, :, None], problem.b[:, :, None]
    if transpose:
        return b * _tiles.products(problem, f, g, b[:, :, :0], a * v)[1]
    return a * _tiles.products(problem, f, g, b * v, a[:, :, :0])[0]


def dual_value(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """D = sum a pen(f) + sum b pen(g) - eps (sum P - sum a sum b), (B,)."""
    a, b, rho = problem.a, problem.b, problem.rho
    excess = _tiles.totals(problem, f, g)[0]
    rows = _kernel.weighted(a, _kernel.penalty(f, rho[:, :1])).sum(1)
    columns = _kernel.weighted(b, _kernel.penalty(g, rho[:, 1:])).sum(1)
    return rows + columns - problem.eps * excess
