"""Operations on all columns of a window at once: ``torch.ops.curvkern.mfac_gram`` and
``mfac_whitened_squares``.

Both read the window once and work in float64 on tiles of columns: nothing as large as the
window is made. The sums are those of csrc/mfac/columns.hpp; the root is lower triangular.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _mfac_tiles, _operands, _runtime
from ._mfac import _check
from ._ops import _contiguous, define


def _define_gram() -> None:
    op = "mfac_gram"

    def allocate(window: Tensor, slots: Sequence[int]) -> Tensor:
        _check(op, window, slots)
        return window.new_zeros(len(slots), len(slots), dtype=torch.float64)

    def tiled(window: Tensor, slots: Sequence[int]) -> Tensor:
        out = allocate(window, slots)
        _mfac_tiles.gram(window, slots, out)
        return out

    def cpu(window: Tensor, slots: Sequence[int]) -> Tensor:
        if not _runtime.compiled(window.device):
            return tiled(window, slots)
        torch.get_num_threads()  # hands the setting to a new thread
        out = allocate(window, slots)
        _runtime.cpu_module().mfac_gram(_contiguous(window), slots, out)
        return out

    schema = f"{op}(Tensor window, int[] slots) -> Tensor"
    define(schema, cpu=cpu, cuda=tiled, fake=allocate)


def _define_whitened_squares() -> None:
    op = "mfac_whitened_squares"

    def allocate(window: Tensor, slots: Sequence[int], root: Tensor) -> Tensor:
        _check(op, window, slots)
        _operands.float64(op, "root", root)
        if tuple(root.shape) != (len(slots), len(slots)):
            raise ValueError(f"{op}: root must have shape ({len(slots)}, {len(slots)})")
        return window.new_empty(window.shape[1], dtype=torch.float64)

    def tiled(window: Tensor, slots: Sequence[int], root: Tensor) -> Tensor:
        out = allocate(window, slots, root)
        _mfac_tiles.whitened_squares(window, slots, root, out)
        return out

    def cpu(window: Tensor, slots: Sequence[int], root: Tensor) -> Tensor:
        if not _runtime.compiled(window.device):
            return tiled(window, slots, root)
        torch.get_num_threads()
        out = allocate(window, slots, root)
        _runtime.cpu_module().mfac_whitened_squares(
            _contiguous(window), slots, _contiguous(root), out
        )
        return out

    schema = f"{op}(Tensor window, int[] slots, Tensor root) -> Tensor"
    define(schema, cpu=cpu, cuda=tiled, fake=allocate)


def block_diagonal(window: Tensor, block: int, damping: float, norm: int) -> Tensor:
    """The diagonal of the inverse of a block-diagonal Fisher matrix of all rows, on the CPU."""
    torch.get_num_threads()
    out = window.new_empty(window.shape[1], dtype=torch.float64)
    slots = list(range(len(window)))
    _runtime.cpu_module().mfac_block_diagonal(window, slots, block, damping, norm, out)
    return out


_define_gram()
_define_whitened_squares()
