"""The primal objective at a plan that is feasible: what makes the gap a certificate.

References
----------
.. [1] J. Altschuler, J. Weed, P. Rigollet, "Near-linear time approximation algorithms for
   optimal transport via Sinkhorn iteration", NeurIPS 2017, algorithm 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._sinkhorn import Problem
from . import _passes
from ._kernel import blocks, costs, is_balanced, kernel
from ._linear import Held, solved

ROUNDING = 8  # mass that may be missing, in eps of the mass, for each point and exponent


class _Change(NamedTuple):
    """P_ij (row_i column_j + p_i + q_j) + fill_i rest_j, which meets the hard marginals."""

    row: Tensor
    column: Tensor
    p: Tensor
    q: Tensor
    fill: Tensor
    rest: Tensor


def gap(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """Primal minus dual objective, (B,): no less than the error of the value, but for rounding.

    Infinite where no feasible plan was found.
    """
    plain = problem.cost is None or not bool(torch.isposinf(problem.cost).any())
    change = _rounded(problem, f, g) if plain else _corrected(problem, f, g)
    a, b, rho = problem.a, problem.b, problem.rho
    linear = divergence = torch.zeros_like(problem.eps)
    lowest = torch.full_like(problem.eps, torch.inf)
    rows, columns = torch.zeros_like(a), torch.zeros_like(b)
    share_a, share_b = change.fill / _or_one(a), change.rest / _or_one(b)
    for at, part, f_part in blocks(problem, f):
        row, p, fill = (t[:, at, None] for t in (change.row, change.p, share_a))
        cost, _, e = kernel(costs(*part[2:7]), f_part, g, part.eps)
        ratio = e * (row * change.column[:, None, :] + p + change.q[:, None, :])
        ratio = ratio + fill * share_b[:, None, :]
        P = part.a[:, :, None] * (b[:, None, :] * ratio)
        lowest = torch.minimum(lowest, P.amin((1, 2)))
        linear = linear + (P * cost).sum((1, 2))
        terms = part.a[:, :, None] * (b[:, None, :] * _entropy(ratio))
        divergence = divergence + terms.sum((1, 2))
        rows[:, at] = P.sum(2)
        columns += P.sum(1)
    primal = linear + problem.eps * divergence
    primal = primal + _penalty(rows, a, rho[:, :1]) + _penalty(columns, b, rho[:, 1:])
    off = _off(rows, a, rho[:, :1]) + _off(columns, b, rho[:, 1:])
    feasible = (off <= _rounding(problem, f, g) * a.sum(1)) & (lowest >= 0)
    value = _passes.dual_value(problem, f, g)
    return torch.where(feasible, (primal - value).clamp_min(0.0), torch.inf)


def _rounded(problem: Problem, f: Tensor, g: Tensor) -> _Change:
    """One hard marginal met by scaling; two by scaling down and filling up [1]."""
    a, b, rho = problem.a, problem.b, problem.rho
    hard_a, hard_b = torch.isinf(rho[:, :1]), torch.isinf(rho[:, 1:])
    balanced = is_balanced(rho)[:, None]

    def times(v: Tensor, transpose: bool) -> Tensor:
        return _passes.applied(problem, f, g, v[:, :, None], transpose)[:, :, 0]

    r = times(torch.ones_like(b), False)
    scale = torch.where(r > 0, a / r, 0.0)
    row = torch.where(balanced, scale.clamp_max(1.0), torch.where(hard_a, scale, 1.0))
    s = times(row, True)
    scale = torch.where(s > 0, b / s, 0.0)
    column = torch.where(balanced, scale.clamp_max(1.0), torch.where(hard_b, scale, 1.0))
    fill = torch.where(balanced, (a - row * times(column, False)).clamp_min(0.0), 0.0)
    rest = torch.where(balanced, (b - column * s).clamp_min(0.0), 0.0)
    missing = fill.sum(1, keepdim=True)
    fill = torch.where(missing > 0, fill / torch.where(missing > 0, missing, 1.0), 0.0)
    return _Change(row, column, torch.zeros_like(a), torch.zeros_like(b), fill, rest)


def _corrected(problem: Problem, f: Tensor, g: Tensor) -> _Change:
    """P_ij (1 + p_i + q_j), which keeps forbidden pairs empty, for hard marginals."""
    a, b, rho = problem.a, problem.b, problem.rho
    K = Held(kernel(costs(*problem[2:7]), f, g, problem.eps).e)
    r, s = K.times(b), K.transposed().times(a)
    hard_a, hard_b = torch.isinf(rho[:, :1]), torch.isinf(rho[:, 1:])
    # A soft marginal may stay as it is: a large diagonal pins its side to 0.
    d = torch.where(hard_a, r, torch.inf)
    h = torch.where(hard_b, s, torch.inf)
    u, v = torch.where(hard_a, 1 - r, 0.0), torch.where(hard_b, 1 - s, 0.0)
    p, q = solved(K, a, b, d, h, u, v, False)
    p, q = torch.where(a > 0, p, 0.0), torch.where(b > 0, q, 0.0)
    ones, nothing = (torch.ones_like(a), torch.ones_like(b)), torch.zeros_like(a)
    return _Change(*ones, p, q, nothing, torch.zeros_like(b))


def _or_one(a: Tensor) -> Tensor:
    return torch.where(a > 0, a, 1.0)


def _entropy(ratio: Tensor) -> Tensor:
    """r log r - r + 1, without its cancellation near r = 1, which a large eps would show."""
    off = ratio - 1
    log = torch.where(off > -0.5, torch.log1p(off), ratio.log())
    return torch.where(ratio > 0, ratio * log, 0.0) - off


def _rounding(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """What the marginals of a plan may be off, relative to its mass, (B,).

    An entry is as inexact as its exponent, the difference of numbers as large as f / eps.
    """
    points = problem.a.shape[1] + problem.b.shape[1]
    exponents = (f.abs().amax(1) + g.abs().amax(1)) / problem.eps
    return ROUNDING * (points + exponents) * torch.finfo(torch.float64).eps


def _off(p: Tensor, a: Tensor, rho: Tensor) -> Tensor:
    """By how much a hard marginal is missed."""
    return torch.where(torch.isinf(rho), (p - a).abs(), 0.0).sum(1)


def _penalty(p: Tensor, a: Tensor, rho: Tensor) -> Tensor:
    """rho KL(p | a), or 0 for a hard marginal, which is met."""
    soft = ~torch.isinf(rho)
    ratio = torch.where((a > 0) & (p > 0), p / a, 1.0)
    terms = torch.where(p > 0, p * ratio.log(), 0.0) - p + a
    return torch.where(soft, torch.where(soft, rho, 1.0) * terms, 0.0).sum(1)
