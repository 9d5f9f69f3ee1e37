"""The Gibbs kernel of a solution and what is summed over it, in blocks of rows.

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
from ._costs import Cost

BLOCK = 1 << 22  # entries of a block, 32 MiB in float64
LARGEST_EXPONENT = 600.0  # met only between two points without mass; its powers stay finite


class Problem(NamedTuple):
    """A batch of problems."""

    a: Tensor
    b: Tensor
    x: Tensor
    y: Tensor | None
    eps: Tensor
    rho: Tensor
    kind: str
    scale: float

    @property
    def cost(self) -> Cost:
        return Cost(self.kind, self.scale)

    def blocks(self, f: Tensor, g: Tensor) -> Iterator[Block]:
        """The rows, a few at a time."""
        B, n, m = len(self.a), self.a.shape[1], self.b.shape[1]
        step = max(1, BLOCK // max(1, B * m))
        for start in range(0, n, step):
            at = slice(start, min(n, start + step))
            rows = self if step >= n else self.rows(at)
            yield Block(
                at, rows, *kernel(f[:, at], g, rows.cost.matrix(rows.x, rows.y), rows.eps)
            )

    def rows(self, at: slice) -> Problem:
        return self._replace(a=self.a[:, at], x=self.x[:, at])


class Block(NamedTuple):
    """Some rows of a problem with their part of the kernel."""

    at: slice
    problem: Problem
    cost: Tensor  # (B, rows, m), 0 where it is infinite
    exponent: Tensor  # likewise
    e: Tensor

    def plan(self) -> Tensor:
        # In this order: a_i b_j alone could underflow, b_j e_ij is at most about 1.
        return self.problem.a[:, :, None] * (self.problem.b[:, None, :] * self.e)


def kernel(f: Tensor, g: Tensor, C: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C and the exponent with zeros for infinite costs, and e, which is 0 there."""
    allowed = ~torch.isposinf(C)
    every = all_of(allowed)
    if not every:
        C = torch.where(allowed, C, 0.0)
    exponent = (f[:, :, None] + g[:, None, :] - C) / eps[:, None, None]
    e = torch.exp(exponent.clamp_max(LARGEST_EXPONENT))
    if not every:
        exponent, e = torch.where(allowed, exponent, 0.0), torch.where(allowed, e, 0.0)
    return C, exponent, e


def totals(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mass of the plan, <P, C> and <P, exponent>, each (B,)."""
    mass = linear = pairing = torch.zeros_like(problem.eps)
    for block in problem.blocks(f, g):
        P = block.plan()
        mass = mass + P.sum((1, 2))
        linear = linear + (P * block.cost).sum((1, 2))
        pairing = pairing + (P * block.exponent).sum((1, 2))
    return mass, linear, pairing


def divergence_of_plan(problem: Problem, mass: Tensor, pairing: Tensor) -> Tensor:
    """KL(P | a b') = sum P log(P / (a b')) - sum P + sum a sum b."""
    return pairing - mass + problem.a.sum(1) * problem.b.sum(1)


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
