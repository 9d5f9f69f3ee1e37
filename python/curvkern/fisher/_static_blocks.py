"""The inverse of a block-diagonal Fisher matrix of a given set of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _runtime
from .._mfac_static import block_diagonal
from . import _checks
from ._base import guarded
from ._blocks import BlockQueries, Blocks
from ._static import NAME, StaticFisher, _refuse_unless

ELEMENTS = 1 << 20  # of G that are float64 at a time


class BlockStaticFisher(BlockQueries, StaticFisher):
    """What StaticFisher makes with a ``block_size``; groups of blocks, one after another."""

    def __init__(
        self, G: Any, damping: float, *, block_size: int, n: int | None = None
    ) -> None:
        size = _checks.count(NAME, "block_size", block_size)
        self._block_size = size
        super().__init__(G, damping, n=n)
        self._size = min(size, self.d)
        self._lower: list[Tensor] | None = None  # factors of all groups, at the own damping

    @property
    def block_size(self) -> int:
        """Columns of a block of F."""
        return self._block_size

    @guarded
    def set_damping(self, damping: float) -> None:
        """Change the damping."""
        self._lower = None
        super().set_damping(damping)

    @guarded
    def diag_inverse(self) -> Tensor:
        """The diagonal of ``F^-1``, (d,), float64; O(d m min(block_size, m))."""
        if self.device.type == "cpu" and _runtime.compiled(self.device):
            self._require_unwritten()
            found = block_diagonal(self._window, self._size, self._damping, self._n)
            if bool(torch.isfinite(found).all()):
                return found
        found = torch.empty(self.d, dtype=torch.float64, device=self.device)
        for columns, part in self._parts(self._damping, keep=False):
            found[columns] = part.diagonal()
        return found

    @guarded
    def element(self, i: int, j: int) -> float:
        """One element of ``F^-1``."""
        i, j = (_checks.index("element", name, k, self.d) for name, k in (("i", i), ("j", j)))
        return float(self.elements(torch.tensor(i), torch.tensor(j)))

    @guarded
    def elements(self, i: Tensor, j: Tensor) -> Tensor:
        """Elements of ``F^-1`` at integer tensors i and j, which broadcast; float64."""
        i, j = (
            _checks.indices("elements", name, k, self.d).to(self.device)
            for name, k in (("i", i), ("j", j))
        )
        shape = torch.broadcast_shapes(i.shape, j.shape)
        i, j = (k.expand(shape).flatten() for k in (i, j))
        found = torch.zeros(len(i), dtype=torch.float64, device=self.device)
        together = i // self._size == j // self._size
        for columns, part in self._parts(self._damping):
            here = together & (i >= columns.start) & (i < columns.stop)
            if here.any():
                found[here] = part.elements(i[here] - columns.start, j[here] - columns.start)
        return found.reshape(shape)

    @guarded
    def logdet(self) -> float:
        """log det F."""
        return float(sum(part.logdet() for _, part in self._parts(self._damping)))

    # Inside --------------------------------------------------------------------------------

    def _copied(self, G: Tensor) -> StaticFisher:
        return BlockStaticFisher(G, self._damping, block_size=self._block_size, n=self._n)

    def _groups(self) -> Iterator[slice]:
        """Columns of whole blocks that are worked on together."""
        blocks = max(1, ELEMENTS // (self._size * max(len(self), self._size)))
        for start in range(0, self.d, blocks * self._size):
            yield slice(start, min(start + blocks * self._size, self.d))

    def _parts(self, damping: float, keep: bool = True) -> Iterator[tuple[slice, Blocks]]:
        """Groups of blocks; if wanted their factors are kept, for the object's own damping."""
        self._require_unwritten()
        own = damping == self._damping
        known = self._lower if own else None
        made = []
        for k, columns in enumerate(self._groups()):
            G = self._window[:, columns].double()
            part = Blocks(G, self._size, self._n, damping, None if known is None else known[k])
            if own and keep:
                made.append(part.lower)
            yield columns, part
        if own and keep:
            self._lower = made

    def _solved(self, v: Tensor, damping: float) -> Tensor:
        found = torch.empty_like(v)
        for columns, part in self._parts(damping):
            found[:, columns] = part.solve(v[:, columns])
        return found

    def _traced(self, v: Tensor, damping: float) -> Tensor:
        part = Blocks(self._window.double(), self._size, self._n, damping)
        return part.solve(v).to(v.dtype)

    def _multiplied(self, x: Tensor, damping: float) -> Tensor:
        found = torch.empty_like(x)
        for columns, part in self._parts(damping):
            found[:, columns] = part.multiply(x[:, columns])
        return found

    def _gram(self) -> Tensor:
        return torch.cat([part.X @ part.X.mT for _, part in self._parts(self._damping)])

    def _prepare(self) -> None:
        _refuse_unless(
            all(_checks.storable(self._window, row) for row in self._window.split(1))
        )
