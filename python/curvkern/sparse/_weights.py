"""Matrices of weights in compressed rows: from dense ones, from torch's, and packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reference import sparseconv as reference
from . import _patterns
from ._arguments import integer
from ._operands import floating

LAYOUTS = (torch.sparse_csr, torch.sparse_bsr)


@dataclass(frozen=True, eq=False)
class Parts:
    """A matrix of this shape by its indices and values."""

    crow: Tensor
    col: Tensor
    values: Tensor
    shape: tuple[int, int]

    @property
    def block(self) -> tuple[int, int]:
        r, c = self.values.shape[1:] or (1, 1)
        return r, c


def block_pair(function: str, block: Any) -> tuple[int, int]:
    """(r, c), of r output and c input channels."""
    if not isinstance(block, (tuple, list)) or len(block) != 2:
        raise TypeError(f"{function}: block must be a pair of integers, got {block!r}")
    r, c = (integer(function, "block", edge, 1) for edge in block)
    return r, c


def of_sparse(function: str, weight: Tensor) -> Parts:
    """The parts of a tensor of torch's; values take part in autograd."""
    if weight.dim() != 2:
        raise ValueError(f"{function}: weight must have 2 dimensions, got {weight.dim()}")
    values: Tensor = weight.values()
    rows, columns = weight.shape
    if values.dim() == 3 and values.shape[1:] == (1, 1):
        values = values.reshape(-1)
    return Parts(weight.crow_indices(), weight.col_indices(), values, (rows, columns))


def kept_blocks(function: str, mask: Tensor, block: Sequence[int]) -> Tensor:
    """Which blocks hold an entry of a mask (O, C)."""
    (rows, columns), (r, c) = mask.shape, block
    if rows % r or columns % c:
        raise ValueError(
            f"{function}: block must divide the channels ({rows}, {columns}), got ({r}, {c})"
        )
    return mask.reshape(rows // r, r, columns // c, c).transpose(1, 2).any(-1).any(-1)


def of_dense(function: str, dense: Tensor, mask: Tensor | None, block: Sequence[int]) -> Parts:
    """The blocks of a dense (O, C) in which the mask, or else the matrix, has a nonzero."""
    nonzero = (dense != 0) if mask is None else (mask != 0)
    if mask is not None:
        dense = dense * nonzero
    kept = kept_blocks(function, nonzero, block)
    crow = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    col = kept.nonzero()[:, 1].clone()  # else saved with the rows
    values = reference.at_pattern(dense, crow, col, block)
    rows, columns = dense.shape
    return Parts(crow, col, values, (rows, columns))


class PackedWeight:
    """A sparse matrix (O, C) of weights that do not change, laid out for the kernels once.

    Parameters
    ----------
    weight
        A two-dimensional ``torch.sparse_csr`` or ``torch.sparse_bsr`` tensor. Its numbers are
        copied; gradients reach inputs and biases, not the copy.

    Attributes
    ----------
    crow_indices, col_indices, values : Tensor
        The parts of the matrix.
    shape, block : tuple of int
        (O, C), and the (r, c) of a stored block.

    Raises
    ------
    TypeError
        ``weight`` is no such tensor, or of another dtype than float32, bfloat16 and float64.
    ValueError
        Its indices are not those of a matrix in compressed rows.

    Examples
    --------
    >>> import torch
    >>> from curvkern import sparse
    >>> packed = sparse.PackedWeight(torch.tensor([[0.0, 2.0], [0.0, 0.0]]).to_sparse_csr())
    >>> packed
    PackedWeight(shape=(2, 2), block=(1, 1), stored=1)
    >>> sparse.sparse_conv1x1(torch.ones(1, 2, 1, 1), packed).flatten()
    tensor([2., 0.])
    """

    def __init__(self, weight: Tensor) -> None:
        if not isinstance(weight, Tensor) or weight.layout not in LAYOUTS:
            got = weight.layout if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(f"PackedWeight: weight must be sparse_csr or sparse_bsr, got {got}")
        self._take(of_sparse("PackedWeight", weight))

    def _take(self, parts: Parts) -> None:
        floating("PackedWeight", "weight", parts.values)
        _patterns.lookup(parts.crow, parts.col, parts.block, parts.shape)
        with torch.inference_mode(False), torch.no_grad():  # these have version counters
            self.crow_indices = parts.crow.detach().clone()
            self.col_indices = parts.col.detach().clone()
            self.values = parts.values.detach().clone()
        self.shape = parts.shape
        self.block = parts.block

    @classmethod
    def from_dense(
        cls, weight: Tensor, mask: Tensor | None = None, *, block: tuple[int, int] = (1, 1)
    ) -> PackedWeight:
        """The nonzeros of a matrix (O, C), or the entries that a mask keeps, by blocks."""
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise ValueError("PackedWeight: weight must be a tensor of 2 dimensions")
        if mask is not None and mask.shape != weight.shape:
            raise ValueError(
                f"PackedWeight: mask must have shape {tuple(weight.shape)}, "
                f"got {tuple(mask.shape)}"
            )
        pair = block_pair("PackedWeight", block)
        packed = cls.__new__(cls)
        packed._take(of_dense("PackedWeight", weight.detach(), mask, pair))
        return packed

    def parts(self) -> Parts:
        return Parts(self.crow_indices, self.col_indices, self.values, self.shape)

    def to_dense(self) -> Tensor:
        """The matrix, (O, C)."""
        return reference.to_dense(self.crow_indices, self.col_indices, self.values, self.shape)

    def __repr__(self) -> str:
        return (
            f"PackedWeight(shape={self.shape}, block={self.block}, "
            f"stored={len(self.col_indices)})"
        )
