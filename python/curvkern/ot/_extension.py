"""The potentials and the barycentric map of a solution between points, at any points.

    f(x) = -eps log( sum_j b_j exp((g_j - c(x, y_j)) / eps) ) / (1 + eps / rho_a)
    T(x) = sum_j b_j e_j(x) y_j / sum_j b_j e_j(x),    e_j(x) = exp((g_j - c(x, y_j)) / eps)

At a point of the solution f(x) is its potential, T(x) the mean of where its mass goes. The sums
are those of :mod:`._tiles`, with derivatives of every order and no costs in memory.

References
----------
.. [1] A. Pooladian, J. Niles-Weed, "Entropic estimation of optimal transport maps", 2021,
   arXiv:2109.12004.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._sinkhorn import Problem
from . import _tiles
from ._kernel import costs, row_blocks


def flipped(problem: Problem) -> Problem:
    """The same transport from the second side to the first."""
    return problem._replace(
        a=problem.b, b=problem.a, x=problem.y, y=problem.x, rho=problem.rho.flip(1)
    )


def potential(problem: Problem, g: Tensor, x: Tensor) -> Tensor:
    """f at x (B, k, d), (B, k)."""
    eps = problem.eps[:, None]
    start = _start(problem, g, x)
    total = _sums(problem, start, g, x, problem.b[:, :, None])[:, :, 0]
    return (start - eps * total.log()) / (1 + eps / problem.rho[:, :1])


def barycentric(problem: Problem, g: Tensor, x: Tensor) -> Tensor:
    """T at x (B, k, d), (B, k, d)."""
    assert problem.y is not None
    b = problem.b[:, :, None]
    start = _start(problem, g, x)
    sums = _sums(problem, start, g, x, torch.cat([b * problem.y, b], 2))
    means = sums[..., :-1] / sums[..., -1:]
    # The sums know no NaN: they are numbers from points beyond the range of the costs, too.
    return torch.where(torch.isfinite(start)[..., None], means, torch.nan)


def _sums(problem: Problem, start: Tensor, g: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """exp(start / eps) sum_j e_j v_j, whose derivatives hold for any start."""
    moved = problem._replace(a=torch.ones_like(start), x=x)
    return _tiles.products(moved, start, g, v, start[:, :, None][:, :, :0])[0]


@torch.no_grad()
def _start(problem: Problem, g: Tensor, x: Tensor) -> Tensor:
    """-eps log sum_j b_j e_j, with which the sums are near 1 wherever x is."""
    assert problem.y is not None
    eps, x, y = problem.eps[:, None], x.detach(), problem.y.detach()
    exponent = problem.b.detach().log() + g.detach() / eps
    parts = []
    for at in row_blocks(len(x), x.shape[1], y.shape[1]):
        C = costs(None, x[:, at], y, problem.kind, problem.scale)
        parts.append(torch.logsumexp(exponent[:, None, :] - C / eps[:, :, None], 2))
    return -eps.detach() * torch.cat(parts, 1)
