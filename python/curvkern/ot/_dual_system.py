"""The linear system behind implicit derivatives, as a differentiable operation.

The optimality conditions of an entropic transport problem, one equation a point, have the
derivative

    M = [ diag(d)     K diag(b) ]      d p + K (b q) = u
        [ K' diag(a)  diag(h)   ]      K' (a p) + h q = v

in the potentials, with K = e_ij / eps, d = K b + exp(-f / rho_a) / rho_a and
h = K' a + exp(-g / rho_b) / rho_b. M' is the same with a and b on the other side of K.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _operands
from .._ops import library
from .._sinkhorn import Problem
from . import _tiles
from ._function import (
    FIELDS,
    Function,
    define_gate,
    register_derivatives,
    save_problem,
    saved_problem,
    zeros_for,
)
from ._kernel import costs, kernel
from ._linear import Held, Matrix, Passes, solved

HELD = 1 << 22  # entries of K up to which it is held in memory between points: 32 MiB


def _solve(*arguments: Any) -> tuple[Tensor, Tensor]:
    """(p, q) with M (p, q) = (u, v), or M' (p, q) = (u, v)."""
    problem, (f, g, u, v, transposed) = Problem(*arguments[:FIELDS]), arguments[FIELDS:]
    _check(problem, f, g, u, v)
    a, b, eps, rho = problem.a, problem.b, problem.eps[:, None], problem.rho
    matrix: Matrix
    if problem.cost is not None or a.numel() * b.shape[1] <= HELD:
        matrix = Held(kernel(costs(*problem[2:7]), f, g, problem.eps).e)
    else:
        matrix = Passes(problem, f, g)
    d = matrix.times(b) / eps + torch.exp(-f / rho[:, :1]) / rho[:, :1]
    h = matrix.transposed().times(a) / eps + torch.exp(-g / rho[:, 1:]) / rho[:, 1:]
    # All of it times eps: no matrix is needed beside e.
    return solved(matrix, a, b, eps * d, eps * h, eps * u, eps * v, transposed)


def _check(problem: Problem, f: Tensor, g: Tensor, u: Tensor, v: Tensor) -> None:
    op = "ot_dual_system"
    batch, n, m = problem.check(op)
    for name, vector, size in (("f", f, n), ("g", g, m), ("u", u, n), ("v", v, m)):
        _operands.shaped(op, name, vector, (batch, size))


library.define(
    "ot_dual_system(Tensor a, Tensor b, Tensor? cost, Tensor? x, Tensor? y, str kind, "
    "float scale, Tensor eps, Tensor rho, Tensor f, Tensor g, Tensor u, Tensor v, "
    "bool transposed) -> (Tensor p, Tensor q)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.impl("ot_dual_system", _solve, "CPU")
library.impl("ot_dual_system", _solve, "CUDA")


@torch.library.register_fake("curvkern::ot_dual_system", lib=library)
def _fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    f, g, u, v = arguments[FIELDS : FIELDS + 4]
    _check(Problem(*arguments[:FIELDS]), f, g, u, v)
    return torch.empty_like(u), torch.empty_like(v)


class _DualSystem(Function):
    """d (p, q) = M^{-1} (d (u, v) - dM (p, q)), for either orientation."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        p, q = torch.ops.curvkern.ot_dual_system(*arguments)
        return p, q

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *problem, f, g, _, _, ctx.transposed = inputs
        save_problem(ctx, Problem(*problem), f, g, *output)

    @staticmethod
    def backward(ctx: Any, gp: Tensor | None, gq: Tensor | None) -> Any:
        problem, f, g, p, q = saved_problem(ctx, ctx.saved_tensors)
        y, z = dual_system(
            *problem, f, g, zeros_for(gp, p), zeros_for(gq, q), not ctx.transposed
        )
        # Slopes of left' M right, at the two vectors between which M stands.
        left, right = ((p, q), (y, z)) if ctx.transposed else ((y, z), (p, q))
        slopes = _slopes(problem, f, g, left, right, ctx.needs_input_grad)
        return *(None if s is None else -s for s in slopes), y, z, None

    @staticmethod
    def tangents(ctx: Any, saved: Any, tangents: Any) -> Any:
        problem, f, g, p, q = saved_problem(ctx, saved)
        u, v = _moved(problem, f, g, (p, q), tangents, ctx.transposed)
        du, dv = zeros_for(tangents[-3], p), zeros_for(tangents[-2], q)
        return dual_system(*problem, f, g, du - u, dv - v, ctx.transposed)


dual_system = define_gate(_DualSystem)
register_derivatives("ot_dual_system", _DualSystem)


def _slopes(
    problem: Problem,
    f: Tensor,
    g: Tensor,
    left: tuple[Tensor, Tensor],
    right: tuple[Tensor, Tensor],
    needed: Any,
) -> list[Tensor | None]:
    """Gradients of left' M right in the problem, f and g."""
    a, b, eps, rho = problem.a, problem.b, problem.eps, problem.rho
    (y, z), (p, q) = left, right
    yp, zq = y * p, z * q
    rows, columns = torch.stack([yp, y], 2), torch.stack([zq, z], 2)
    cotangents = rows / eps[:, None, None], columns / eps[:, None, None]
    given = _tiles.inputs(problem, f, g, torch.stack([a, a * p], 2), torch.stack([b, b * q], 2))
    wanted = Problem(*needed[:FIELDS])
    names = [name for name in ("cost", "x", "y", "eps") if getattr(wanted, name)]
    names += ["f", "g", "row", "column"]
    found = _tiles.gradients("products", problem, given, cotangents, names)
    da, db = found["row"], found["column"]
    deps = drho = None
    if wanted.eps:
        explicit = (given.row * da).sum((1, 2)) + (given.column * db).sum((1, 2))
        deps = found["eps"] - explicit / eps
    f_slope, rho_slope = _decay_slopes(f, rho[:, :1])
    g_slope, other_slope = _decay_slopes(g, rho[:, 1:])
    if wanted.rho:
        drho = torch.stack([(yp * rho_slope).sum(1), (zq * other_slope).sum(1)], 1)
    return [
        da[..., 0] + da[..., 1] * p,
        db[..., 0] + db[..., 1] * q,
        *_tiles.geometry_gradients(problem, found),
        deps,
        drho,
        found["f"] + yp * f_slope,
        found["g"] + zq * g_slope,
    ]


def _moved(
    problem: Problem,
    f: Tensor,
    g: Tensor,
    at: tuple[Tensor, Tensor],
    tangents: Any,
    transposed: bool,
) -> tuple[Tensor, Tensor]:
    """dM (p, q), or dM' (p, q), along the tangents."""
    a, b, eps, rho = problem.a, problem.b, problem.eps[:, None], problem.rho
    p, q = at
    moving, (df, dg) = Problem(*tangents[:FIELDS]), tangents[FIELDS : FIELDS + 2]
    da, db = zeros_for(moving.a, a), zeros_for(moving.b, b)
    nothing_p, nothing_q = torch.zeros_like(p), torch.zeros_like(q)
    # K stands between b and q in M, but between q and a in M'.
    columns = torch.stack([b, q if transposed else b * q], 2)
    rows = torch.stack([a, p if transposed else a * p], 2)
    column_tangents = torch.stack([db, nothing_q if transposed else db * q], 2)
    row_tangents = torch.stack([da, nothing_p if transposed else da * p], 2)
    given = _tiles.inputs(problem, f, g, rows, columns)
    ev, eu = _tiles.products(problem, f, g, columns, rows)
    moving_inputs = _tiles.tangents(moving, df, dg, row_tangents, column_tangents)
    dev, deu = _tiles.pushed("products", problem, given, moving_inputs)
    deps = zeros_for(moving.eps, problem.eps)[:, None] / eps
    drho = zeros_for(moving.rho, rho)

    def side(
        p: Tensor, ev: Tensor, dev: Tensor, a: Tensor, da: Tensor, f: Tensor, df: Any, k: int
    ) -> Tensor:
        change = dev - ev * deps[:, :, None]
        outer = a * change[..., 1] + da * ev[..., 1] if transposed else change[..., 1]
        in_f, in_rho = _decay_slopes(f, rho[:, k : k + 1])
        decay = in_f * zeros_for(df, f) + in_rho * drho[:, k : k + 1]
        return (p * change[..., 0] + outer) / eps + p * decay

    return side(p, ev, dev, a, da, f, df, 0), side(q, eu, deu, b, db, g, dg, 1)


def _decay_slopes(f: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of exp(-f / rho) / rho in f and rho."""
    decay = torch.exp(-f / rho) / rho**2
    return -decay, decay * (f / rho - 1)
