"""The factor of a window's Gram matrix in plain PyTorch, as the compiled functions make it.

U'U = A in the first ``count`` rows and columns of a matrix. No pivot falls below the square
root of ``least``. A slide factors anew, where the compiled function updates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mfac_factorize(factor: Tensor, count: int, least: float, root: Tensor | None) -> None:
    """A, of which the upper triangle counts, becomes U; ``root`` U'^-1."""
    A = factor[:count, :count]
    for k in range(count):
        A[k, k] = A[k, k].clamp(min=least).sqrt()
        A[k, k + 1 :] /= A[k, k].clone()
        A[k + 1 :, k + 1 :].addr_(A[k, k + 1 :], A[k, k + 1 :], alpha=-1)
    A.triu_()
    if root is not None:
        eye = torch.eye(count, dtype=A.dtype)
        root.copy_(torch.linalg.solve_triangular(A.T, eye, upper=False))


def mfac_drop_first(factor: Tensor, count: int) -> None:
    """Without the first row and column of A."""
    row, rest = factor[0, 1:count], factor[1:count, 1:count]
    A = rest.T @ rest + torch.outer(row, row)
    factor[: count - 1, : count - 1] = A
    mfac_factorize(factor, count - 1, torch.finfo(A.dtype).tiny, None)


def mfac_append(
    factor: Tensor, count: int, column: Tensor, diagonal: float, least: float
) -> None:
    """With a row and column of A more."""
    y = column[None].clone()
    mfac_solve(factor, count, y, True)
    factor[:count, count] = y[0]
    factor[count, :count] = 0
    factor[count, count] = max(diagonal - float(y[0] @ y[0]), least) ** 0.5


def mfac_solve(factor: Tensor, count: int, b: Tensor, only_first: bool) -> None:
    """Rows b of (k, count) <- U'^-1 b, and then, unless only that is wanted, U^-1 of it."""
    U = factor[:count, :count]
    x = torch.linalg.solve_triangular(U.T, b.T, upper=False)
    b.copy_((x if only_first else torch.linalg.solve_triangular(U, x, upper=True)).T)
