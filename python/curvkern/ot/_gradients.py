r"""Derivatives of a solved problem by its optimality conditions.

The value needs none of the solver: by the envelope theorem its derivatives are those of the
dual function at the optimum,

    d value = sum_i (pen(f_i) - eps (r_i - sum b)) da_i + ... + sum_ij P_ij dC_ij
              + KL(P | a b') d eps + KL(P 1 | a) d rho_a + KL(P' 1 | b) d rho_b

with r_i = exp(-f_i / rho_a). The potentials follow from the implicit function theorem, applied
to

    G_i = sum_j b_j e_ij - exp(-f_i / rho_a) = 0,  H_j = sum_i a_i e_ij - exp(-g_j / rho_b) = 0

which hold at points without mass, too: one solve with the matrix of `_dual_system`. The
formulas are differentiable themselves, and refer to the potentials as results of the function
that they belong to, so that all higher derivatives follow.

References
----------
.. [1] G. Luise, A. Rudi, M. Pontil, C. Ciliberto, "Differential Properties of Sinkhorn
   Approximation for Learning with Wasserstein Distance", NeurIPS 2018.
.. [2] M. Cuturi, L. Meng-Papaxanthos, Y. Tian, C. Bunne, G. Davis, O. Teboul, "Optimal
   Transport Tools (OTT)", 2022, arXiv:2201.12324, on implicit differentiation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._sinkhorn import Problem
from . import _solving, _tiles
from ._dual_system import dual_system
from ._function import (
    FIELDS,
    Function,
    define_gate,
    register_derivatives,
    save_problem,
    saved_problem,
    zeros_for,
)
from ._kernel import LARGEST_EXPONENT, centred, marginal_divergence, penalty
from ._passes import divergence, dual_value


class _Potentials(Function):
    """The solver, with the derivatives of its potentials.

    Arguments: a problem, starts f and g, and :class:`._solving.Options`.
    """

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return torch.ops.curvkern.ot_solve(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[2:])
        # The value passes nothing on to the potentials: nothing must not become a solve for 0.
        ctx.set_materialize_grads(False)
        save_problem(ctx, Problem(*inputs[:FIELDS]), *output[:2])

    @staticmethod
    def backward(ctx: Any, gf: Tensor | None, gg: Tensor | None, *_: Any) -> Any:
        others = [None] * (2 + len(_solving.Options._fields))
        if gf is None and gg is None:
            return *[None] * FIELDS, *others
        problem, f, g = saved_problem(ctx, ctx.saved_tensors)
        p, q = dual_system(*problem, f, g, zeros_for(gf, f), zeros_for(gg, g), True)
        wanted = Problem(*ctx.needs_input_grad[:FIELDS])
        names = [name for name in ("cost", "x", "y", "eps") if getattr(wanted, name)]
        if wanted.a or wanted.b:
            names += ["row", "column"]
        given = _equations(problem, f, g)
        cotangents = -p[:, :, None], -q[:, :, None]
        found = _tiles.gradients("products", problem, given, cotangents, names)
        da = db = drho = None
        if wanted.a or wanted.b:
            da, db = found["row"][:, :, 0], found["column"][:, :, 0]
            da, db = centred(da, db, problem.a, problem.b, problem.rho)
        if wanted.rho:
            rows, columns = _slopes_in_rho(problem, f, g)
            drho = torch.stack([(p * rows).sum(1), (q * columns).sum(1)], 1)
        geometry = _tiles.geometry_gradients(problem, found)
        return da, db, *geometry, found.get("eps"), drho, *others

    @staticmethod
    def tangents(ctx: Any, saved: Any, tangents: Any) -> Any:
        problem, f, g = saved_problem(ctx, saved)
        moving = Problem(*tangents[:FIELDS])
        row, column = (None if t is None else t[:, :, None] for t in (moving.a, moving.b))
        inputs = _tiles.tangents(moving, None, None, row, column)
        du, dv = _tiles.pushed("products", problem, _equations(problem, f, g), inputs)
        u, v = -du[:, :, 0], -dv[:, :, 0]
        if moving.rho is not None:
            rows, columns = _slopes_in_rho(problem, f, g)
            u, v = u + rows * moving.rho[:, :1], v + columns * moving.rho[:, 1:]
        df, dg = dual_system(*problem, f, g, u, v, False)
        return df, dg, None, None, None


def _equations(problem: Problem, f: Tensor, g: Tensor) -> _tiles.Inputs:
    """The inputs at which the products are the sums of G and H."""
    return _tiles.inputs(problem, f, g, problem.a[:, :, None], problem.b[:, :, None])


def _slopes_in_rho(problem: Problem, f: Tensor, g: Tensor) -> list[Tensor]:
    """Derivatives of exp(-f / rho_a) and exp(-g / rho_b) in the penalties."""
    pairs = (f, problem.rho[:, :1]), (g, problem.rho[:, 1:])
    return [torch.exp(-f / rho) * f / rho**2 for f, rho in pairs]


class _Value(Function):
    """The dual function, whose derivative in the potentials is zero at the optimum.

    Arguments: a problem, f and g.
    """

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return dual_value(Problem(*arguments[:FIELDS]), *arguments[FIELDS:])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        save_problem(ctx, Problem(*inputs[:FIELDS]), *inputs[FIELDS:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        problem, f, g = saved_problem(ctx, ctx.saved_tensors)
        wanted = Problem(*ctx.needs_input_grad[:FIELDS])
        da, db, drho = (t * gradient[:, None] for t in _slopes(problem, f, g))
        names = [name for name in ("cost", "x", "y") if getattr(wanted, name)]
        cotangents = _through_mass(problem, gradient), g[:, :, None][:, :, :0]
        found = _tiles.gradients("products", problem, _mass(problem, f, g), cotangents, names)
        deps = gradient * divergence(problem, f, g) if wanted.eps else None
        geometry = _tiles.geometry_gradients(problem, found)
        return da, db, *geometry, deps, drho, None, None

    @staticmethod
    def tangents(ctx: Any, saved: Any, tangents: Any) -> Any:
        problem, f, g = saved_problem(ctx, saved)
        moving = Problem(*tangents[:FIELDS])
        slope_a, slope_b, slope_rho = _slopes(problem, f, g)
        total = (slope_a * moving.a).sum(1) + (slope_b * moving.b).sum(1)
        total = total + (slope_rho * moving.rho).sum(1)
        total = total + divergence(problem, f, g) * moving.eps
        inputs = [*_tiles.tangents(moving, None, None, None, None)[:3], *[None] * 5]
        moved = _tiles.pushed("products", problem, _mass(problem, f, g), inputs)[0]
        return total + (_through_mass(problem, torch.ones_like(f[:, 0])) * moved).sum((1, 2))


def _mass(problem: Problem, f: Tensor, g: Tensor) -> _tiles.Inputs:
    """The inputs at which the products are e b and nothing: sum P is a' e b."""
    return _tiles.inputs(problem, f, g, problem.a[:, :, None][:, :, :0], problem.b[:, :, None])


def _through_mass(problem: Problem, factor: Tensor) -> Tensor:
    """What takes a change of e b to factor <P, dC>, by <P, dC> = -eps d (sum P)."""
    return -(problem.eps * factor)[:, None, None] * problem.a[:, :, None]


def _slopes(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of the value in a, b and rho; those in a and b centred where balanced."""
    a, b, eps = problem.a, problem.b, problem.eps[:, None]
    rho_a, rho_b = problem.rho[:, :1], problem.rho[:, 1:]
    f, g = _within_reach(f, a, rho_a), _within_reach(g, b, rho_b)
    da = penalty(f, rho_a) - eps * (torch.exp(-f / rho_a) - b.sum(1, keepdim=True))
    db = penalty(g, rho_b) - eps * (torch.exp(-g / rho_b) - a.sum(1, keepdim=True))
    divergences = [
        (a * marginal_divergence(f, rho_a)).sum(1),
        (b * marginal_divergence(g, rho_b)).sum(1),
    ]
    return da, db, torch.stack(divergences, 1)


def _within_reach(f: Tensor, a: Tensor, rho: Tensor) -> Tensor:
    """f, at points without mass no lower than where exp(-f / rho) is finite."""
    return torch.where(a > 0, f, torch.maximum(f, -LARGEST_EXPONENT * rho))


potentials = define_gate(_Potentials)
register_derivatives("ot_solve", _Potentials)
value = define_gate(_Value)
