"""Sums over the plan: by compiled kernels, or in plain PyTorch where a derivative is wanted.

The kernels take one pass over the costs and store nothing of their size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autograd import derivative_wanted
from . import _kernel, _plan, _solving
from ._kernel import Problem


def _compiled(problem: Problem, *tensors: Tensor) -> Any:
    """The module of the compiled passes, or None where plain PyTorch is called for."""
    arguments = (*problem[:6], *tensors)
    if derivative_wanted(*(t for t in arguments if t is not None)):
        return None
    return _solving.native(problem.a)


def totals(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mass of the plan, <P, C> and KL(P | a b'), each (B,)."""
    module = _compiled(problem, f, g)
    if module is None:
        mass, linear, pairing = _kernel.totals(problem, f, g)
        return mass, linear, _kernel.divergence_of_plan(problem, mass, pairing)
    a, b, x, y, eps, _, kind, scale = problem
    if y is None:
        sums = module.marginals_dense(a, b, x, eps, f, g)
    else:
        sums = module.marginals_points(a, b, x, y, kind, eps, f, g, scale=scale)
    return sums.row.sum(1), sums.linear_cost, sums.kl


def applied(problem: Problem, f: Tensor, g: Tensor, v: Tensor, transpose: bool) -> Tensor:
    """P v for v (B, m, k), or P' v for v (B, n, k)."""
    module = _compiled(problem, f, g, v)
    if module is None:
        product = _plan.applied_transposed if transpose else _plan.applied
        return product(problem, f, g, v)
    a, b, x, y, eps, _, kind, scale = problem
    moved: Tensor
    if y is None:
        moved = module.apply_dense(a, b, x, eps, f, g, v, transpose)
    else:
        moved = module.apply_points(a, b, x, y, kind, eps, f, g, v, transpose, scale=scale)
    return moved


def pulled(
    problem: Problem, f: Tensor, g: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of sum weight <P, C> in x and y at a fixed plan, for weights (B,)."""
    module = _compiled(problem, f, g, weight)
    a, b, x, y, eps, _, kind, scale = problem
    if module is not None and y is not None:
        rows = weight[:, None].expand_as(a).contiguous()
        dx, dy = module.points_gradient(a, b, x, y, kind, eps, f, g, rows, scale=scale)
        return dx.to(x.dtype), dy.to(y.dtype)
    parts, total = [], None
    for block in problem.blocks(f, g):
        G = block.plan() * weight[:, None, None]
        dx, dy = problem.cost.pull(block.problem.x, y, G)
        parts.append(dx)
        total = dy if total is None or dy is None else total + dy
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1), total


def dual_value(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """D = sum a pen(f) + sum b pen(g) - eps (sum P - sum a sum b), (B,)."""
    a, b, rho = problem.a, problem.b, problem.rho
    mass = totals(problem, f, g)[0]
    rows = _kernel.weighted(a, _kernel.penalty(f, rho[:, :1])).sum(1)
    columns = _kernel.weighted(b, _kernel.penalty(g, rho[:, 1:])).sum(1)
    return rows + columns - problem.eps * (mass - a.sum(1) * b.sum(1))
