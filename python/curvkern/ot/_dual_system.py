"""The linear system behind implicit derivatives, as a differentiable operation.

The optimality conditions of an entropic transport problem, one equation a point, have the
derivative

    M = [ diag(d)     K diag(b) ]      d p + K (b q) = u
        [ K' diag(a)  diag(e)   ]      K' (a p) + e q = v

in the potentials, with K = e_ij / eps. Where a and b are positive, diag(a, b) M is symmetric
and positive semidefinite; points without mass are solved after the others in M and before them
in M'. So both are solved here through

    [ I   A ] (p, q) = (s, t),    A_ij = a_i K_ij b_j / sqrt(a_i d_i b_j e_j)
    [ A'  I ]

and its Schur complement I - A A'. For two hard marginals it has a null vector, one more for
each part that +inf costs cut off: of all solutions the one of least norm is taken, and what is
made of it does not depend on the choice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _operands
from .._ops import library
from ._function import Function, define_gate

DIRECT = 512  # points on the smaller side up to which the Schur complement is decomposed
PRECISION = 1e-14  # of conjugate gradients, relative
STAGNATION = 50  # steps without progress after which they stop


def _solve(
    K: Tensor,
    a: Tensor,
    b: Tensor,
    d: Tensor,
    e: Tensor,
    u: Tensor,
    v: Tensor,
    transposed: bool,
) -> tuple[Tensor, Tensor]:
    """(p, q) with M (p, q) = (u, v), or M' (p, q) = (u, v)."""
    _check(K, a, b, d, e, u, v)
    ad, be = a * d, b * e
    row = torch.where(ad > 0, ad.rsqrt(), 0.0)
    column = torch.where(be > 0, be.rsqrt(), 0.0)
    A = (a * row)[:, :, None] * (K * (b * column)[:, None, :])
    if transposed:
        p0 = torch.where(a > 0, 0.0, _quotient(u, d))
        q0 = torch.where(b > 0, 0.0, _quotient(v, e))
        u = u - a * _times(K, q0)
        v = v - b * _times(K.mT, p0)
        p, q = _symmetric(A, row * u, column * v)
        return p0 + a * row * p, q0 + b * column * q
    p, q = _symmetric(A, row * a * u, column * b * v)
    p, q = row * p, column * q
    return (
        torch.where(a > 0, p, _quotient(u - _times(K, b * q), d)),
        torch.where(b > 0, q, _quotient(v - _times(K.mT, a * p), e)),
    )


def _check(K: Tensor, a: Tensor, b: Tensor, d: Tensor, e: Tensor, u: Tensor, v: Tensor) -> None:
    op = "ot_dual_system"
    _operands.dimensions(op, "K", K, 3)
    _operands.float64(op, "K", K)
    batch, n, m = K.shape
    for name, vector in (("a", a), ("d", d), ("u", u)):
        _operands.shaped(op, name, vector, (batch, n))
    for name, vector in (("b", b), ("e", e), ("v", v)):
        _operands.shaped(op, name, vector, (batch, m))


def _quotient(u: Tensor, d: Tensor) -> Tensor:
    """u / d, and 0 for a point without mass that nothing can reach: its potential is fixed."""
    return torch.where(d > 0, u / torch.where(d > 0, d, 1.0), 0.0)


def _symmetric(A: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """p + A q = s, A' p + q = t."""
    if A.shape[1] > A.shape[2]:
        q, p = _symmetric(A.mT, t, s)
        return p, q
    rhs = s - _times(A, t)
    p = _decomposed(A, rhs) if A.shape[1] <= DIRECT else _iterated(A, rhs)
    return p, t - _times(A.mT, p)


def _decomposed(A: Tensor, rhs: Tensor) -> Tensor:
    """(I - A A')^+ rhs from the eigenvalues."""
    n = A.shape[1]
    S = torch.eye(n, dtype=A.dtype, device=A.device) - A @ A.mT
    if not bool(torch.isfinite(S).all()):
        return torch.full_like(rhs, torch.nan)
    values, vectors = torch.linalg.eigh(S)
    inverse = torch.where(values > 4 * n * torch.finfo(A.dtype).eps, 1 / values, 0.0)
    return _times(vectors, inverse * _times(vectors.mT, rhs))


def _iterated(A: Tensor, rhs: Tensor) -> Tensor:
    """The same by conjugate gradients; the diagonal of I - A A' is near 1 already."""
    p, r = torch.zeros_like(rhs), rhs
    direction, squared = r, (r * r).sum(1, keepdim=True)
    goal = PRECISION**2 * squared
    best, best_p, since = squared, p, 0
    for _ in range(10 * A.shape[1]):
        if since > STAGNATION or bool((squared <= goal).all()):
            break
        image = direction - _times(A, _times(A.mT, direction))
        curvature = (direction * image).sum(1, keepdim=True)
        step = torch.where(curvature > 0, squared / curvature, 0.0)
        p, r = p + step * direction, r - step * image
        previous, squared = squared, (r * r).sum(1, keepdim=True)
        direction = r + torch.where(previous > 0, squared / previous, 0.0) * direction
        better = squared < best
        since = 0 if bool(better.any()) else since + 1
        best, best_p = torch.where(better, squared, best), torch.where(better, p, best_p)
    return best_p


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[:, :, None])[:, :, 0]


library.define(
    "ot_dual_system(Tensor K, Tensor a, Tensor b, Tensor d, Tensor e, Tensor u, Tensor v, "
    "bool transposed) -> (Tensor p, Tensor q)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.impl("ot_dual_system", _solve, "CPU")
library.impl("ot_dual_system", _solve, "CUDA")


@torch.library.register_fake("curvkern::ot_dual_system", lib=library)
def _fake(
    K: Tensor,
    a: Tensor,
    b: Tensor,
    d: Tensor,
    e: Tensor,
    u: Tensor,
    v: Tensor,
    transposed: bool,
) -> tuple[Tensor, Tensor]:
    _check(K, a, b, d, e, u, v)
    return torch.empty_like(u), torch.empty_like(v)


class _DualSystem(Function):
    """d (p, q) = M^{-1} (d (u, v) - dM (p, q)), for either orientation."""

    @staticmethod
    def forward(
        K: Tensor,
        a: Tensor,
        b: Tensor,
        d: Tensor,
        e: Tensor,
        u: Tensor,
        v: Tensor,
        transposed: bool,
    ) -> tuple[Tensor, Tensor]:
        p, q = torch.ops.curvkern.ot_dual_system(K, a, b, d, e, u, v, transposed)
        return p, q

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        K, a, b, d, e, _, _, ctx.transposed = inputs
        ctx.save_for_backward(K, a, b, d, e, *output)
        ctx.save_for_forward(K, a, b, d, e, *output)

    @staticmethod
    def backward(ctx: Any, gp: Tensor, gq: Tensor) -> Any:
        K, a, b, d, e, p, q = ctx.saved_tensors
        y, z = dual_system(K, a, b, d, e, gp, gq, not ctx.transposed)
        if ctx.transposed:
            da, db = -y * _times(K, q), -z * _times(K.mT, p)
            dK = -_outer(a * y, q) - _outer(p, b * z)
        else:
            da, db = -p * _times(K, z), -q * _times(K.mT, y)
            dK = -_outer(y, b * q) - _outer(a * p, z)
        return dK, da, db, -y * p, -z * q, y, z, None

    @staticmethod
    def tangents(ctx: Any, saved: Any, tangents: Any) -> Any:
        K, a, b, d, e, p, q = saved
        dK, da, db, dd, de, du, dv, _ = tangents
        u = du - dd * p
        v = dv - de * q
        if ctx.transposed:
            u = u - da * _times(K, q) - a * _times(dK, q)
            v = v - db * _times(K.mT, p) - b * _times(dK.mT, p)
        else:
            u = u - _times(dK, b * q) - _times(K, db * q)
            v = v - _times(dK.mT, a * p) - _times(K.mT, da * p)
        return dual_system(K, a, b, d, e, u, v, ctx.transposed)


def _outer(u: Tensor, v: Tensor) -> Tensor:
    return u[:, :, None] * v[:, None, :]


dual_system = define_gate(_DualSystem)
