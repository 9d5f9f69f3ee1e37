"""Block-diagonal Fisher matrices: each block of consecutive columns on its own, in batches.

A block of B columns has B x B elements or, where fewer rows than columns, its inverse by the
rows' Gram matrix, whichever is smaller. Nothing is kept between calls.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._base import Fisher, guarded
from ._factor import by_eigenvectors
from ._window import SlidingWindowFisher


class Blocks:
    """F^-1 for rows G (c, d) in float64, by blocks of columns; the last is filled up."""

    def __init__(
        self,
        G: Tensor,
        block_size: int,
        norm: int,
        damping: float,
        lower: Tensor | None = None,  # what was found before
    ) -> None:
        self.rows, self.d = G.shape
        self.size, self.norm, self.damping = block_size, norm, damping
        self.count = -(-self.d // block_size)
        self.X = self._split(G)  # (blocks, c, B)
        self.is_small = block_size <= self.rows
        if lower is not None:
            self.lower = lower
            return
        if self.is_small:
            gram, shift = self.X.mT @ self.X / norm, damping
        else:
            gram, shift = self.X @ self.X.mT, norm * damping
        system = gram.clone()
        system.diagonal(dim1=1, dim2=2).add_(shift)
        if torch.compiler.is_compiling():  # no choice by data in a graph
            self.lower = torch.linalg.cholesky(system)
            return
        self.lower, failed = torch.linalg.cholesky_ex(system)
        if bool(failed.any()):
            self.lower = by_eigenvectors(gram, shift).mT

    def _split(self, v: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(v, (0, self.count * self.size - self.d))
        return padded.view(len(v), self.count, self.size).transpose(0, 1)

    def _join(self, v: Tensor) -> Tensor:
        return v.transpose(0, 1).flatten(1)[:, : self.d]

    def solve(self, v: Tensor) -> Tensor:
        """F^-1 v for v of shape (k, d)."""
        parts = self._split(v.double())  # (blocks, k, B)
        if self.is_small:
            return self._join(torch.cholesky_solve(parts.mT, self.lower).mT)
        c = torch.cholesky_solve(self.X @ parts.mT, self.lower)
        return self._join((parts - c.mT @ self.X) / self.damping)

    def multiply(self, v: Tensor) -> Tensor:
        """F v."""
        parts = self._split(v.double())
        return self._join(self.damping * parts + parts @ self.X.mT @ self.X / self.norm)

    def inverse(self) -> Tensor:
        """All blocks of F^-1, (blocks, B, B)."""
        if self.is_small:
            return torch.cholesky_inverse(self.lower)
        W = torch.linalg.solve_triangular(self.lower, self.X, upper=False)
        eye = torch.eye(self.size, dtype=torch.float64, device=W.device)
        return (eye - W.mT @ W) / self.damping

    def diagonal(self) -> Tensor:
        """The diagonal of F^-1, (d,)."""
        if self.is_small:
            found = self.inverse().diagonal(dim1=1, dim2=2)
        else:
            W = torch.linalg.solve_triangular(self.lower, self.X, upper=False)
            found = (1 - W.square().sum(1)) / self.damping
        return found.reshape(-1)[: self.d]

    def elements(self, i: Tensor, j: Tensor) -> Tensor:
        """Elements of F^-1, zero between blocks."""
        i, j = torch.broadcast_tensors(i, j)
        inverse = self.inverse()
        found = inverse[i // self.size, i % self.size, j % self.size]
        return torch.where(i // self.size == j // self.size, found, 0.0)

    def logdet(self) -> float:
        """log det F."""
        log_pivots = float(2 * self.lower.diagonal(dim1=1, dim2=2).log().sum())
        columns = self.count * self.size
        if self.is_small:
            return log_pivots - (columns - self.d) * math.log(self.damping)
        c = self.rows * self.count
        return log_pivots + (self.d - c) * math.log(self.damping) - c * math.log(self.norm)


class BlockQueries(Fisher):
    """What every block-diagonal matrix answers by products with its inverse or elements."""

    def _quadratic(self, v: Tensor) -> Tensor:
        v = v.double()
        return (self._solved(v, self._damping) * v).sum(1)

    @guarded
    def inverse_block(self, index: Tensor) -> Tensor:
        """``F^-1`` of k rows and columns, (k, k), float64."""
        index = _checks.indices("inverse_block", "index", index, self.d, 1)
        return self.elements(index[:, None], index[None, :])


class BlockWindowFisher(BlockQueries, SlidingWindowFisher):
    """What SlidingWindowFisher makes with a ``block_size``."""

    def __init__(self, d: int, m: int, damping: float, **options: Any) -> None:
        size = _checks.count("SlidingWindowFisher", "block_size", options["block_size"])
        if options.get("process_group") is not None:
            raise ValueError(
                "SlidingWindowFisher: block_size and process_group do not go together; give "
                "each rank blocks of its own"
            )
        super().__init__(d, m, damping, **options)
        self._size = min(size, d)

    def _at(self, damping: float | None = None) -> Blocks:
        G = self._window[self._order].double()
        return Blocks(
            G, self._size, self._norm(), self._damping if damping is None else damping
        )

    def _store(self, order: list[int], into: int, row: Tensor, v: Tensor) -> Tensor:
        self._unfinished = order, into, row
        self._window[order[into]].copy_(row[0])
        self._order = order
        self._version += 1
        self._factor.forget()
        return row.new_zeros(1 + len(v), len(order), dtype=torch.float64)

    @guarded
    def push_ihvp(self, grad: Any, v: Any = None) -> Tensor:
        """Push a gradient and return F^-1 v, or without v that of the gradient as stored."""
        if v is not None:
            v = _checks.vector("push_ihvp", "v", v, self.d, self.device).detach()
        given, _ = self._push("push_ihvp", grad, None)
        if v is not None:
            result: Tensor = self.ihvp(v)
            return result
        newest = self._window[self._order[-1]].double()
        return self._at().solve(newest[None])[0].to(given.dtype)

    def _solved(self, v: Tensor, damping: float) -> Tensor:
        return self._at(damping).solve(v).to(v.dtype) if len(self) else v / damping

    def _traced(self, v: Tensor, damping: float) -> Tensor:
        return self._solved(v, damping)

    def _multiplied(self, x: Tensor, damping: float) -> Tensor:
        return self._at(damping).multiply(x) if len(self) else damping * x

    @guarded
    def diag_inverse(self) -> Tensor:
        """The diagonal of ``F^-1``, (d,), float64."""
        return self._at().diagonal() if len(self) else super().diag_inverse()

    @guarded
    def elements(self, i: Tensor, j: Tensor) -> Tensor:
        """Elements of ``F^-1`` at integer tensors i and j, which broadcast; float64."""
        if not len(self):
            return super().elements(i, j)
        i, j = (
            _checks.indices("elements", name, k, self.d).to(self.device)
            for name, k in (("i", i), ("j", j))
        )
        return self._at().elements(i, j)

    @guarded
    def logdet(self) -> float:
        """log det F."""
        return self._at().logdet() if len(self) else self.d * math.log(self._damping)

    def _gram(self) -> Tensor:
        X = Blocks(self._window[self._order].double(), self._size, 1, 1.0).X
        return X @ X.mT
