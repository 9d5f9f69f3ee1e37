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

from . import _solving  # noqa: F401  (defines torch.ops.curvkern.ot_solve)
from ._costs import Cost
from ._dual_system import dual_system
from ._function import Function, define_gate, zeros_for
from ._kernel import (
    Problem,
    centred,
    kernel,
    marginal_divergence,
    penalty,
)
from ._passes import dual_value, pulled, totals


class _Potentials(Function):
    """The solver, with the derivatives of its potentials."""

    @staticmethod
    def forward(
        a: Tensor,
        b: Tensor,
        x: Tensor,
        y: Tensor | None,
        eps: Tensor,
        rho: Tensor,
        f: Tensor | None,
        g: Tensor | None,
        function: str,
        kind: str,
        scale: float,
        method: str,
        max_iter: int,
        tol: float,
        check_every: int,
        mass_tol: float,
    ) -> Any:
        options = (function, kind, scale, method, max_iter, tol, check_every, mass_tol)
        return torch.ops.curvkern.ot_solve(a, b, x, y, eps, rho, f, g, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, b, x, y, eps, rho = inputs[:6]
        ctx.cost = Cost(inputs[9], inputs[10])
        f, g = output[:2]
        ctx.mark_non_differentiable(*output[2:])
        # The value passes nothing on to the potentials: nothing must not become a solve for 0.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a, b, x, y, eps, rho, f, g)
        ctx.save_for_forward(a, b, x, y, eps, rho, f, g)

    @staticmethod
    def backward(ctx: Any, gf: Tensor | None, gg: Tensor | None, *_: Any) -> Any:
        if gf is None and gg is None:
            return (None,) * 16
        a, b, x, y, eps, rho, f, g = ctx.saved_tensors
        gf, gg = zeros_for(gf, f), zeros_for(gg, g)
        exponent, e = kernel(f, g, ctx.cost.matrix(x, y), eps)[1:]
        p, q = dual_system(*_derivative(e, a, b, f, g, eps, rho), gf, gg, True)
        wanted: Any = ctx.needs_input_grad

        T = (p[:, :, None] * b[:, None, :] + a[:, :, None] * q[:, None, :]) * e
        T = T / eps[:, None, None]
        da = -(e @ q[:, :, None])[:, :, 0] if wanted[0] or wanted[1] else None
        db = -(e.mT @ p[:, :, None])[:, :, 0] if wanted[0] or wanted[1] else None
        if da is not None and db is not None:
            da, db = centred(da, db, a, b, rho)
        dx, dy = ctx.cost.pull(x, y, T) if wanted[2] or wanted[3] else (None, None)
        deps = (T * exponent).sum((1, 2)) if wanted[4] else None
        drho = None
        if wanted[5]:
            rows, columns = _slope_in_rho(f, rho[:, :1]), _slope_in_rho(g, rho[:, 1:])
            drho = torch.stack([(p * rows).sum(1), (q * columns).sum(1)], 1)
        return da, db, dx, dy, deps, drho, *[None] * 10

    @staticmethod
    def tangents(ctx: Any, saved: Any, tangents: Any) -> Any:
        a, b, x, y, eps, rho, f, g = saved
        dx, dy = tangents[2:4]
        da, db, deps, drho = (
            zeros_for(tangents[k], t) for k, t in ((0, a), (1, b), (4, eps), (5, rho))
        )
        exponent, e = kernel(f, g, ctx.cost.matrix(x, y), eps)[1:]
        change = exponent * deps[:, None, None]
        dC = ctx.cost.push(x, y, dx, dy)
        if dC is not None:
            change = change + dC
        change = e * change / eps[:, None, None]
        u = (change @ b[:, :, None] - e @ db[:, :, None])[:, :, 0]
        v = (change.mT @ a[:, :, None] - e.mT @ da[:, :, None])[:, :, 0]
        u = u + _slope_in_rho(f, rho[:, :1]) * drho[:, :1]
        v = v + _slope_in_rho(g, rho[:, 1:]) * drho[:, 1:]
        df, dg = dual_system(*_derivative(e, a, b, f, g, eps, rho), u, v, False)
        return df, dg, None, None, None


def _derivative(
    e: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor, rho: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The matrix of `dual_system` at a solution."""
    K = e / eps[:, None, None]
    d = (K @ b[:, :, None])[:, :, 0] + torch.exp(-f / rho[:, :1]) / rho[:, :1]
    h = (K.mT @ a[:, :, None])[:, :, 0] + torch.exp(-g / rho[:, 1:]) / rho[:, 1:]
    return K, a, b, d, h


def _slope_in_rho(f: Tensor, rho: Tensor) -> Tensor:
    """Derivative of exp(-f / rho) in rho."""
    return torch.exp(-f / rho) * f / rho**2


class _Value(Function):
    """The dual function, whose derivative in the potentials is zero at the optimum."""

    @staticmethod
    def forward(
        a: Tensor,
        b: Tensor,
        x: Tensor,
        y: Tensor | None,
        eps: Tensor,
        rho: Tensor,
        f: Tensor,
        g: Tensor,
        kind: str,
        scale: float,
    ) -> Tensor:
        return dual_value(Problem(a, b, x, y, eps, rho, kind, scale), f, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.kind, ctx.scale = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        problem, f, g = _saved(ctx, ctx.saved_tensors)
        wanted: Any = ctx.needs_input_grad
        da, db, drho = (t * gradient[:, None] for t in _slopes(problem, f, g))
        dx = dy = deps = None
        if wanted[2] or wanted[3]:
            dx, dy = pulled(problem, f, g, gradient)
        if wanted[4]:
            deps = gradient * totals(problem, f, g)[2]
        return da, db, dx, dy, deps, drho, *[None] * 4

    @staticmethod
    def tangents(ctx: Any, saved: Any, tangents: Any) -> Any:
        problem, f, g = _saved(ctx, saved)
        da, db, dx, dy, deps, drho = tangents[:6]
        slope_a, slope_b, slope_rho = _slopes(problem, f, g)
        total = (slope_a * da).sum(1) + (slope_b * db).sum(1) + (slope_rho * drho).sum(1)
        total = total + totals(problem, f, g)[2] * deps
        for block in problem.blocks(f, g):
            dC = problem.cost.push(
                block.problem.x, problem.y, None if dx is None else dx[:, block.at], dy
            )
            if dC is not None:
                total = total + (block.plan() * dC).sum((1, 2))
        return total


def _saved(ctx: Any, tensors: Any) -> tuple[Problem, Tensor, Tensor]:
    a, b, x, y, eps, rho, f, g = tensors
    return Problem(a, b, x, y, eps, rho, ctx.kind, ctx.scale), f, g


def _slopes(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of the value in a, b and rho; those in a and b centred where balanced."""
    a, b, _, _, eps, rho = problem[:6]
    eps = eps[:, None]
    rho_a, rho_b = rho[:, :1], rho[:, 1:]
    da = penalty(f, rho_a) - eps * (torch.exp(-f / rho_a) - b.sum(1, keepdim=True))
    db = penalty(g, rho_b) - eps * (torch.exp(-g / rho_b) - a.sum(1, keepdim=True))
    divergences = [
        (a * marginal_divergence(f, rho_a)).sum(1),
        (b * marginal_divergence(g, rho_b)).sum(1),
    ]
    return da, db, torch.stack(divergences, 1)


potentials = define_gate(_Potentials)
value = define_gate(_Value)
