"""The native solver as the public functions of :mod:`curvkern.ot` call it.

Everything here takes checked tensors with a batch dimension. The plan is
``P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)``; it is never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _sinkhorn
from ._methods import LARGEST, Callback, Run


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
        steps come last, counted from where their problems have left the sweeps.
    """

    f: Tensor
    g: Tensor
    error: Tensor
    n_iter: Tensor
    converged: Tensor
    history: list[tuple[int, float]]


class Sums(NamedTuple):
    """The plan's marginals, ``(B, n)`` and ``(B, m)``; <P, C> and KL(P | a b'), ``(B,)``."""

    row: Tensor
    col: Tensor
    linear_cost: Tensor
    kl: Tensor


def solve_dense(
    a: Tensor,
    b: Tensor,
    cost: Tensor,
    eps: Tensor,
    rho: Tensor,
    f: Tensor | None,
    g: Tensor | None,
    *,
    max_iter: int,
    tol: float,
    check_every: int,
    method: str = "auto",
    callback: Callback | None = None,
) -> Solution:
    """Solve for a cost matrix ``(B, n, m)``, float32 or float64."""
    problem = _sinkhorn.Problem(a, b, cost, None, None, "", 1.0, eps, rho)
    return _solve(problem, f, g, max_iter, tol, check_every, method, callback)


def solve_points(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    kind: str,
    eps: Tensor,
    rho: Tensor,
    f: Tensor | None,
    g: Tensor | None,
    *,
    max_iter: int,
    tol: float,
    check_every: int,
    scale: float = 1.0,
    method: str = "auto",
    callback: Callback | None = None,
) -> Solution:
    """Solve for ``scale`` times the cost between points ``(B, n, d)`` and ``(B, m, d)``.

    ``kind`` is "sqeuclidean", "half_sqeuclidean", "euclidean" or "l1". Memory is O(n + m).
    """
    problem = _sinkhorn.Problem(a, b, None, x, y, kind, scale, eps, rho)
    return _solve(problem, f, g, max_iter, tol, check_every, method, callback)


def apply_dense(
    a: Tensor,
    b: Tensor,
    cost: Tensor,
    eps: Tensor,
    f: Tensor,
    g: Tensor,
    v: Tensor,
    transpose: bool = False,
) -> Tensor:
    """``P v``, v ``(B, m)`` or ``(B, m, k)``; with ``transpose`` ``P' v``, v ``(B, n)``."""
    operation = torch.ops.curvkern.sinkhorn_dense_products
    return _apply(lambda *vu: operation(a, b, cost, eps, f, g, *vu), v, transpose)


def apply_points(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    kind: str,
    eps: Tensor,
    f: Tensor,
    g: Tensor,
    v: Tensor,
    transpose: bool = False,
    *,
    scale: float = 1.0,
) -> Tensor:
    """:func:`apply_dense` for costs between points."""
    operation = torch.ops.curvkern.sinkhorn_points_products
    return _apply(lambda *vu: operation(a, b, x, y, kind, scale, eps, f, g, *vu), v, transpose)


def marginals_dense(
    a: Tensor, b: Tensor, cost: Tensor, eps: Tensor, f: Tensor, g: Tensor
) -> Sums:
    """Marginals, cost and entropy of the plan in one pass; infinite costs count 0."""
    operation = torch.ops.curvkern.sinkhorn_dense_products
    return _sums(lambda *vu: operation(a, b, cost, eps, f, g, *vu), a, b)


def marginals_points(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    kind: str,
    eps: Tensor,
    f: Tensor,
    g: Tensor,
    *,
    scale: float = 1.0,
) -> Sums:
    """:func:`marginals_dense` for costs between points."""
    operation = torch.ops.curvkern.sinkhorn_points_products
    return _sums(lambda *vu: operation(a, b, x, y, kind, scale, eps, f, g, *vu), a, b)


def points_gradient(
    a: Tensor,
    b: Tensor,
    x: Tensor,
    y: Tensor,
    kind: str,
    eps: Tensor,
    f: Tensor,
    g: Tensor,
    u: Tensor | None = None,
    w: Tensor | None = None,
    *,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """``sum_j W_ij dC_ij/dx_i`` ``(B, n, d)`` and ``sum_i W_ij dC_ij/dy_j`` ``(B, m, d)``.

    ``W_ij = P_ij (u_i + w_j)``; both None: W = P; one None counts as 0. Memory is O(n + m).
    """
    if u is None:
        u = torch.ones_like(a) if w is None else torch.zeros_like(a)
    if w is None:
        w = torch.zeros_like(b)
    operation = torch.ops.curvkern.sinkhorn_points_gradient
    # Costs are symmetric: the other side is the same sum with the sides exchanged.
    return (
        operation(a, b, x, y, kind, scale, eps, f, g, u, w),
        operation(b, a, y, x, kind, scale, eps, g, f, w, u),
    )


def _solve(
    problem: _sinkhorn.Problem,
    f: Tensor | None,
    g: Tensor | None,
    max_iter: int,
    tol: float,
    check_every: int,
    method: str,
    callback: Callback | None,
) -> Solution:
    run = Run(problem, f, g, max_iter, tol, check_every, callback)
    if method == "sinkhorn":
        run.sweep()
    elif method == "auto":
        run.auto()
    elif run.fits:
        run.newton()
    else:
        raise ValueError(
            f"sinkhorn_points: method 'newton' holds the costs in memory, at most {LARGEST}, "
            f"got {problem.a.shape[1]} x {problem.b.shape[1]} points; use 'auto' or 'sinkhorn'"
        )
    assert run.f is not None
    assert run.g is not None
    return Solution(run.f, run.g, run.error, run.n_iter, run.converged, run.history)


def _apply(
    operation: Callable[[Tensor | None, Tensor | None], tuple[Tensor, ...]],
    v: Tensor,
    transpose: bool,
) -> Tensor:
    columns = v.unsqueeze(2) if v.ndim == 2 else v
    product = operation(None, columns)[1] if transpose else operation(columns, None)[0]
    return product.reshape(*product.shape[:2], *v.shape[2:])


def _sums(
    operation: Callable[[Tensor | None, Tensor | None], tuple[Tensor, ...]],
    a: Tensor,
    b: Tensor,
) -> Sums:
    row, col, totals = operation(torch.ones_like(b)[..., None], torch.ones_like(a)[..., None])
    row, col = row[..., 0], col[..., 0]
    kl = totals[:, 1] - row.sum(1) + a.sum(1) * b.sum(1)
    return Sums(row, col, totals[:, 0], kl)
