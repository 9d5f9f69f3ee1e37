"""The Gibbs kernel of a solution, and the rows of its plan, a few at a time.

    e_ij = exp((f_i + g_j - C_ij) / eps),    P_ij = a_i b_j e_ij

Shapes: f, a (B, n); g, b (B, m); eps (B,); rho (B, 2). All but the costs are float64. Plain
PyTorch, differentiable in everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .._masks import all_of
from .._sinkhorn import KINDS as KINDS
from .._sinkhorn import Problem
from ..reference.costs import cost_matrix

BLOCK = 1 << 16  # entries of a block, 512 KiB in float64: it stays in a cache
LARGEST_EXPONENT = 600.0  # met only between two points without mass; its powers stay finite


class Kernel(NamedTuple):
    """Costs and exponents with zeros where a cost is infinite, and e, which is 0 there.

    Each (B, n, m).
    """

    cost: Tensor
    exponent: Tensor
    e: Tensor


def costs(
    cost: Tensor | None, x: Tensor | None, y: Tensor | None, kind: str, scale: float
) -> Tensor:
    """C (B, n, m) in float64."""
    if cost is not None:
        return cost.to(torch.float64)
    assert x is not None
    assert y is not None
    return scale * cost_matrix(x, y, kind)


def kernel(C: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Kernel:
    allowed = ~torch.isposinf(C)
    every = all_of(allowed)
    if not every:
        C = torch.where(allowed, C, 0.0)
    exponent = (f[:, :, None] + g[:, None, :] - C) / eps[:, None, None]
    e = torch.exp(exponent.clamp_max(LARGEST_EXPONENT))
    if not every:
        exponent, e = torch.where(allowed, exponent, 0.0), torch.where(allowed, e, 0.0)
    return Kernel(C, exponent, e)


def plan(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """P, (B, n, m)."""
    e = kernel(costs(*problem[2:7]), f, g, problem.eps).e
    # In this order: a_i b_j alone could underflow, b_j e_ij is at most about 1.
    return problem.a[:, :, None] * (problem.b[:, None, :] * e)


def row_blocks(batch: int, n: int, m: int) -> Iterator[slice]:
    """The rows in parts of about `BLOCK` entries."""
    step = max(1, BLOCK // max(1, batch * m))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def blocks(problem: Problem, f: Tensor) -> Iterator[tuple[slice, Problem, Tensor]]:
    """Where some rows are, their problem and their f."""
    batch, n = problem.a.shape
    for at in row_blocks(batch, n, problem.b.shape[1]):
        cost, x = (None if t is None else t[:, at] for t in (problem.cost, problem.x))
        yield at, problem._replace(a=problem.a[:, at], cost=cost, x=x), f[:, at]


def weighted(a: Tensor, term: Tensor) -> Tensor:
    """a term, with no term where there is no mass."""
    return a * torch.where(a > 0, term, 0.0)


def penalty(f: Tensor, rho: Tensor) -> Tensor:
    """What a unit of mass adds to the dual: f, or rho (1 - exp(-f / rho)) if rho is finite."""
    hard = torch.isinf(rho)
    finite = torch.where(hard, 1.0, rho)
    return torch.where(hard, f, -finite * torch.expm1(-f / finite))


def marginal_divergence(f: Tensor, rho: Tensor) -> Tensor:
    """What a unit of mass adds to KL(P 1 | a), where P 1 = a exp(-f / rho)."""
    t = f / rho
    return -t * torch.exp(-t) - torch.expm1(-t)


def is_balanced(rho: Tensor) -> Tensor:
    """Which problems have two hard marginals, (B,)."""
    return torch.isinf(rho).all(1)


def centred(u: Tensor, v: Tensor, a: Tensor, b: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """(u + t, v - t) with sum a u / sum a = sum b v / sum b, for balanced problems."""
    shift = ((b * v).sum(1) / b.sum(1) - (a * u).sum(1) / a.sum(1)) / 2
    shift = torch.where(is_balanced(rho), shift, 0.0)[:, None]
    return u + shift, v - shift


def gauged(f: Tensor, g: Tensor, a: Tensor, b: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a solver's potentials, which are centred to rounding, or balance nothing.

    They stay as they are, and get the derivatives: a shift would round the marginals once more.
    """
    moved_f, moved_g = centred(f, g, a, b, rho)
    return f.detach() + (moved_f - moved_f.detach()), g.detach() + (moved_g - moved_g.detach())
