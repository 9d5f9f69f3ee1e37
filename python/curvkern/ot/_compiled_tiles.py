"""Those functions of :mod:`._tiles` that compiled passes compute.

They are the sums themselves and, between points, the gradients of the products in everything
but eps. A pass takes the exponential of each entry once, and stores none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._sinkhorn import Problem
from . import _solving

FLAT = 1e-4  # exponents up to which the mass of the plan is too near that of a b' to subtract
COLUMNS = 4  # of the products, up to which their gradients in the points are compiled
COST, X, Y, EPS, F, G, ROW, COLUMN = range(8)  # the inputs


def evaluated(
    function: str, kind: str, scale: float, tensors: Sequence[Any]
) -> list[Tensor] | None:
    """The outputs, or None where plain PyTorch is called for."""
    passes = _solving.native(tensors[F])
    name, *steps = function.split(":")
    if passes is None or len(steps) > 1:
        return None
    cost, x, y, eps, f, g, row, column = tensors[:8]
    hard = torch.full((len(eps), 2), torch.inf, dtype=torch.float64, device=eps.device)
    ones = Problem(torch.ones_like(f), torch.ones_like(g), cost, x, y, kind, scale, eps, hard)
    if name == "totals" and not steps:
        exponents = (f.abs().amax(1) + g.abs().amax(1)) / eps
        if bool((exponents < FLAT).any()):
            return None
        plan = ones._replace(a=row, b=column)
        pv, _, sums = passes.products(plan, f, g, torch.ones_like(g)[:, :, None], None)
        excess = pv.sum((1, 2)) - row.sum(1) * column.sum(1)
        return [excess, sums[:, 0].clone(), sums[:, 1].clone()]
    if name == "totals":
        return None
    if not steps:
        return [*_products(passes, ones, f, g, column, row)]
    places = [int(k) for k in steps[0].split(",")]
    through_points = X in places or Y in places
    if COST in places or EPS in places:
        return None
    if through_points and row.shape[2] + column.shape[2] > COLUMNS:
        return None
    in_ev, in_eu = tensors[8:]
    found = _gradients(passes, ones, f, g, column, row, in_ev, in_eu, places)
    return [found[k] for k in places]


def _products(
    passes: Any, ones: Problem, f: Tensor, g: Tensor, v: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """e v and e' u."""
    if v.shape[2] == u.shape[2]:
        ev, eu, _ = passes.products(ones, f, g, v, u)
    else:
        ev = passes.products(ones, f, g, v if v.shape[2] else None, None)[0]
        eu = passes.products(ones, f, g, None, u if u.shape[2] else None)[1]
    return ev, eu


def _gradients(
    passes: Any,
    ones: Problem,
    f: Tensor,
    g: Tensor,
    v: Tensor,
    u: Tensor,
    in_ev: Tensor,
    in_eu: Tensor,
    places: list[int],
) -> dict[int, Tensor]:
    """Of sum in_ev (e v) + sum in_eu (e' u): all at the places, and some more."""
    found = {}
    eps = ones.eps[:, None]
    if any(k in places for k in (F, G, ROW, COLUMN)):
        k, l = v.shape[2], u.shape[2]
        rows, columns = torch.cat([u, in_ev], 2), torch.cat([v, in_eu], 2)
        times, turned = _products(passes, ones, f, g, columns, rows)
        found[ROW], found[COLUMN] = times[:, :, k:], turned[:, :, l:]
        found[F] = ((in_ev * times[:, :, :k]).sum(2) + (u * found[ROW]).sum(2)) / eps
        found[G] = ((in_eu * turned[:, :, :l]).sum(2) + (v * found[COLUMN]).sum(2)) / eps
    if X in places or Y in places:
        pairs = [*zip(in_ev.unbind(2), v.unbind(2), strict=True)]
        pairs += zip(u.unbind(2), in_eu.unbind(2), strict=True)
        parts = [_of_product(passes, ones, f, g, row / -eps, column) for row, column in pairs]
        found[X], found[Y] = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
    return {k: t.contiguous() for k, t in found.items()}


def _of_product(
    passes: Any, ones: Problem, f: Tensor, g: Tensor, row: Tensor, column: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of sum_ij row_i column_j e_ij C_ij through the costs, in x and y.

    The passes take weights >= 0. So one side is split into its positive and its negative part,
    which is often empty, and the signs of the other go into the factors.
    """
    split_rows = bool((row >= 0).all()) or bool((row <= 0).all())
    split, other = (row, column) if split_rows else (column, row)
    assert ones.x is not None
    assert ones.y is not None
    dx, dy = torch.zeros_like(ones.x), torch.zeros_like(ones.y)
    whole = torch.where(other != 0, other.abs(), 1.0)
    for sign in (1.0, -1.0):
        part = (sign * split).clamp_min(0.0)
        live = part.sum(1, keepdim=True) > 0
        if not bool(live.any()):
            continue
        factors = torch.where(live, sign * other.sign(), 0.0), torch.zeros_like(part)
        weights = whole, torch.where(live, part, 1.0)
        if split_rows:
            factors, weights = factors[::-1], weights[::-1]
        plan = ones._replace(a=weights[0], b=weights[1])
        in_x, in_y = passes.points_gradient(plan, f, g, *factors)
        dx, dy = dx + in_x, dy + in_y
    return dx, dy
