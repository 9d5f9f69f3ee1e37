"""Solution of the system of :mod:`._dual_system`, with a matrix or with passes over the points.

Where a and b are positive, diag(a, b) M is symmetric and positive semidefinite; points without
mass are solved after the others in M and before them in M'. So both are solved through

    [ I   A ] (p, q) = (s, t),    A_ij = a_i K_ij b_j / sqrt(a_i d_i b_j h_j)
    [ A'  I ]

and its Schur complement I - A A'. For two hard marginals it has a null vector, one more for
each part that +inf costs cut off: of all solutions the one of least norm is taken, and what is
made of it does not depend on the choice.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .._sinkhorn import Problem
from ._tiles import evaluated, inputs

DIRECT = 512  # points on the smaller side up to which the Schur complement is decomposed,
QUICK = 100  # where so many conjugate gradients, a tenth of its time, have not been enough
PRECISION = 1e-14  # of conjugate gradients, relative
STAGNATION = 50  # steps without progress after which they stop


class Matrix(Protocol):
    """K, by its products with vectors (B, m)."""

    def times(self, v: Tensor) -> Tensor: ...

    def transposed(self) -> Matrix: ...

    def dense(self) -> Tensor | None:
        """K itself where it is held."""


class Held:
    """A matrix in memory, (B, n, m)."""

    def __init__(self, K: Tensor) -> None:
        self.K = K

    def times(self, v: Tensor) -> Tensor:
        return (self.K @ v[:, :, None])[:, :, 0]

    def transposed(self) -> Held:
        return Held(self.K.mT)

    def dense(self) -> Tensor | None:
        return self.K


class Passes:
    """e_ij of a problem, which each product makes anew."""

    def __init__(self, problem: Problem, f: Tensor, g: Tensor, flipped: bool = False) -> None:
        self.problem, self.f, self.g, self.flipped = problem, f, g, flipped

    def times(self, v: Tensor) -> Tensor:
        column, none = v[:, :, None], v[:, :0, None]
        n, m = self.f.shape[1], self.g.shape[1]
        nothing = none.new_empty(len(v), m if self.flipped else n, 0)
        rows, columns = (column, nothing) if self.flipped else (nothing, column)
        given = inputs(self.problem, self.f, self.g, rows, columns)
        both = evaluated("products", self.problem.kind, self.problem.scale, *given)
        return both[int(self.flipped)][:, :, 0]

    def transposed(self) -> Passes:
        return Passes(self.problem, self.f, self.g, not self.flipped)

    def dense(self) -> Tensor | None:
        return None


class _Scaled:
    """diag(left) K diag(right)."""

    def __init__(self, matrix: Matrix, left: Tensor, right: Tensor) -> None:
        self.matrix, self.left, self.right = matrix, left, right

    def times(self, v: Tensor) -> Tensor:
        return self.left * self.matrix.times(self.right * v)

    def transposed(self) -> _Scaled:
        return _Scaled(self.matrix.transposed(), self.right, self.left)

    def dense(self) -> Tensor | None:
        K = self.matrix.dense()
        return None if K is None else self.left[:, :, None] * (K * self.right[:, None, :])


def solved(
    K: Matrix,
    a: Tensor,
    b: Tensor,
    d: Tensor,
    h: Tensor,
    u: Tensor,
    v: Tensor,
    transposed: bool,
) -> tuple[Tensor, Tensor]:
    """(p, q) with M (p, q) = (u, v), or M' (p, q) = (u, v)."""
    turned = K.transposed()
    ad, bh = a * d, b * h
    row = torch.where(ad > 0, ad.rsqrt(), 0.0)
    column = torch.where(bh > 0, bh.rsqrt(), 0.0)
    A: Matrix = _Scaled(K, a * row, b * column)
    dense = A.dense()
    if dense is not None:
        A = Held(dense)
    if transposed:
        p0 = torch.where(a > 0, 0.0, _quotient(u, d))
        q0 = torch.where(b > 0, 0.0, _quotient(v, h))
        u = u - a * K.times(q0)
        v = v - b * turned.times(p0)
        p, q = _symmetric(A, row * u, column * v)
        return p0 + a * row * p, q0 + b * column * q
    p, q = _symmetric(A, row * a * u, column * b * v)
    p, q = row * p, column * q
    return (
        torch.where(a > 0, p, _quotient(u - K.times(b * q), d)),
        torch.where(b > 0, q, _quotient(v - turned.times(a * p), h)),
    )


def _quotient(u: Tensor, d: Tensor) -> Tensor:
    """u / d, and 0 for a point without mass that nothing can reach: its potential is fixed."""
    return torch.where(d > 0, u / torch.where(d > 0, d, 1.0), 0.0)


def _symmetric(A: Matrix, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """p + A q = s, A' p + q = t."""
    if s.shape[1] > t.shape[1]:
        q, p = _symmetric(A.transposed(), t, s)
        return p, q
    rhs = s - A.times(t)
    held = A.dense() if s.shape[1] <= DIRECT else None
    p, is_solved = _iterated(A, rhs, 10 * rhs.shape[1] if held is None else QUICK)
    if held is not None and not is_solved:
        p = _decomposed(held, rhs)
    return p, t - A.transposed().times(p)


def _decomposed(A: Tensor, rhs: Tensor) -> Tensor:
    """(I - A A')^+ rhs from the eigenvalues."""
    n = A.shape[1]
    S = torch.eye(n, dtype=A.dtype, device=A.device) - A @ A.mT
    if not bool(torch.isfinite(S).all()):
        return torch.full_like(rhs, torch.nan)
    values, vectors = torch.linalg.eigh(S)
    inverse = torch.where(values > 4 * n * torch.finfo(A.dtype).eps, 1 / values, 0.0)
    basis = Held(vectors)
    return basis.times(inverse * basis.transposed().times(rhs))


def _iterated(A: Matrix, rhs: Tensor, most: int) -> tuple[Tensor, bool]:
    """The same by conjugate gradients, and whether at most so many were enough.

    They are not preconditioned: the diagonal of I - A A' is near 1 already.
    """
    turned = A.transposed()
    p, r = torch.zeros_like(rhs), rhs
    direction, squared = r, (r * r).sum(1, keepdim=True)
    goal = PRECISION**2 * squared
    best, best_p, since = squared, p, 0
    is_solved = bool((squared <= goal).all())
    for _ in range(most):
        if since > STAGNATION or is_solved:
            break
        image = direction - A.times(turned.times(direction))
        curvature = (direction * image).sum(1, keepdim=True)
        step = torch.where(curvature > 0, squared / curvature, 0.0)
        p, r = p + step * direction, r - step * image
        previous, squared = squared, (r * r).sum(1, keepdim=True)
        direction = r + torch.where(previous > 0, squared / previous, 0.0) * direction
        better = squared < best
        since = 0 if bool(better.any()) else since + 1
        best, best_p = torch.where(better, squared, best), torch.where(better, p, best_p)
        is_solved = bool((squared <= goal).all())
    return best_p, is_solved
