"""The native solver as the public functions of :mod:`curvkern.ot` call it.

Everything here takes checked tensors with a batch dimension. The plan is
``P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)``; it is never stored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _sinkhorn
from ._methods import Callback, Run


class Solution(NamedTuple):
    """What a solver returns for a batch of B problems of n by m points.

    Attributes
    ----------
    f, g
        Potentials, ``(B, n)`` and ``(B, m)``, float64. In balanced problems
        ``sum a f / sum a = sum b g / sum b``. At points without mass they are the soft
        c-transform; 0 where no point with mass is at a finite cost.
    error
        ``(B,)``: the L1 error of both marginals, recomputed in float64 from f and g, over the
        larger of the total masses; with a penalty rho that of ``P1 - a exp(-f / rho)``.
    n_iter
        ``(B,)``, int64: full iterations, whether sweeps or Newton steps.
    converged
        ``(B,)``, bool: the error is finite and at most the tolerance.
    history
        (iteration, largest error) at each check; every second, fourth, ... of very many. Newton
        steps, and sweeps after them, come last, counted from where their problems have left
        the first sweeps.
    """

    f: Tensor
    g: Tensor
    error: Tensor
    n_iter: Tensor
    converged: Tensor
    history: list[tuple[int, float]]


def solve(
    problem: _sinkhorn.Problem,
    f: Tensor | None,
    g: Tensor | None,
    *,
    max_iter: int,
    tol: float,
    check_every: int,
    method: str = "auto",
    callback: Callback | None = None,
) -> Solution:
    """Solve a batch of problems, from the potentials f and g if there are any.

    Between points memory is O(n + m) for sweeps; Newton steps on the CPU hold the costs. For
    a measure and itself, method "symmetric" halves the error in each sweep between points, at
    any eps.
    """
    run = Run(problem, f, g, max_iter, tol, check_every, callback)
    if method == "sinkhorn":
        run.sweep()
    elif method == "symmetric":
        run.sweep(symmetric=True)
    elif method == "auto":
        run.auto()
    else:
        run.newton()
    assert run.f is not None
    assert run.g is not None
    return Solution(run.f, run.g, run.error, run.n_iter, run.converged, run.history)


def products(
    problem: _sinkhorn.Problem, f: Tensor, g: Tensor, v: Tensor | None, u: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``P v`` and ``P' u``; <P, C> and the sum of P log(P / (a b')), ``(B, 2)``.

    v is ``(B, m, k)`` and u ``(B, n, k)``; for None the product has no columns. Infinite costs
    count 0. It is one pass, without the costs between points in memory.
    """
    dense = problem.cost is not None
    operations = torch.ops.curvkern
    operation = (
        operations.sinkhorn_dense_products if dense else operations.sinkhorn_points_products
    )
    a, b, cost, x, y, kind, scale, eps, _ = problem
    where = (cost,) if dense else (x, y, kind, scale)
    pv, pu, sums = operation(a, b, *where, eps, f, g, v, u)
    return pv, pu, sums


def points_gradient(
    problem: _sinkhorn.Problem, f: Tensor, g: Tensor, u: Tensor, w: Tensor
) -> tuple[Tensor, Tensor]:
    """``sum_j W_ij dC_ij/dx_i`` ``(B, n, d)`` and ``sum_i W_ij dC_ij/dy_j`` ``(B, m, d)``.

    ``W_ij = P_ij (u_i + w_j)``. Memory is O(n + m).
    """
    a, b, _, x, y, kind, scale, eps, _ = problem
    operation = torch.ops.curvkern.sinkhorn_points_gradient
    # Costs are symmetric: the other side is the same sum with the sides exchanged.
    return (
        operation(a, b, x, y, kind, scale, eps, f, g, u, w),
        operation(b, a, y, x, kind, scale, eps, g, f, w, u),
    )
