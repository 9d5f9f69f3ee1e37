"""The Cholesky factor of ``shift I + K``, K the Gram matrix of a window's rows.

It lies on the CPU in float64, upper triangular: m = 1024 takes 8 MB. A window that slides
updates it in O(m^2): the first row and column go by a rank-1 update, never a downdate, and
the last come by one solve. Pivots cannot fall below the square root of the shift but by
rounding, so there they are held.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _mfac


class Factor:
    """U with U'U = shift I + K for the rows of a window, oldest first."""

    def __init__(self, capacity: int) -> None:
        self.matrix = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.count = 0
        self.shift: float | None = None  # None: does not belong to the present rows

    def start(self, shift: float) -> None:
        """No rows as yet."""
        self.count, self.shift = 0, shift

    def forget(self) -> None:
        """The rows or the shift have changed otherwise than by sliding."""
        self.shift = None

    def slide(self, column: Tensor, shift: float, full: bool) -> None:
        """Append the newest row's products with all rows; drop the oldest if full."""
        is_current = self.shift == shift
        self.forget()  # until it belongs to all rows again, whatever comes between
        if not is_current:
            return
        if full:
            _mfac.factors().mfac_drop_first(self.matrix, self.count)
            self.count -= 1
        head = column[:-1].contiguous()
        diagonal = float(column[-1]) + shift
        _mfac.factors().mfac_append(self.matrix, self.count, head, diagonal, shift)
        self.count += 1
        if _sound(self.matrix[: self.count, self.count - 1 : self.count], column[-1:], shift):
            self.shift = shift

    def build(self, gram: Tensor, shift: float) -> None:
        """From all of K."""
        self.forget()
        count = len(gram)
        system = self.matrix[:count, :count]
        system.copy_(gram).diagonal().add_(shift)
        _mfac.factors().mfac_factorize(self.matrix, count, shift, None)
        if not _sound(system, gram.diagonal(), shift):
            system.copy_(by_eigenvectors(gram, shift))
        self.count, self.shift = count, shift

    def solve(self, b: Tensor, *, half: bool = False) -> Tensor:
        """(shift I + K)^-1 for each row of b, or U'^-1 alone."""
        x = b.to("cpu", copy=True)
        _mfac.factors().mfac_solve(self.matrix, self.count, x, half)
        return x.to(b.device)

    def half_logdet(self) -> float:
        """sum log U_kk."""
        return float(self.matrix.diagonal()[: self.count].log().sum())


def inverse_root(gram: Tensor, shift: float) -> Tensor:
    """U'^-1, lower triangular, without U."""
    system, root = gram.clone(), torch.empty_like(gram)
    system.diagonal().add_(shift)
    _mfac.factors().mfac_factorize(system, len(gram), shift, root)
    if not _sound(system, gram.diagonal(), shift):
        eye = torch.eye(len(gram), dtype=torch.float64)
        root = torch.linalg.solve_triangular(
            by_eigenvectors(gram, shift).T, eye, upper=False
        ).contiguous()
    return root


def _sound(columns: Tensor, diagonal: Tensor, shift: float) -> bool:
    """Whether columns of U are as long as they are in exact algebra.

    Below the rounding of K a pivot is noise, and so is its row, which may grow from pivot to
    pivot without end.
    """
    return bool((columns.square().sum(0) <= 2 * (diagonal + shift)).all())


def by_eigenvectors(gram: Tensor, shift: float) -> Tensor:
    """U, also of batches, where rounding spoils pivots: no eigenvalue falls below the shift."""
    values, vectors = torch.linalg.eigh(gram)
    half = (values.clamp(min=0) + shift).sqrt()[..., None] * vectors.mT
    U = torch.linalg.qr(half, mode="r").R
    signs = torch.where(U.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(U)
    return U * signs[..., None]
