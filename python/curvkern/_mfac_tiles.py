"""The passes over a window of gradients as products of tiles of columns in plain torch.

What needs all columns at once is done so on CUDA: torch's products of float64 matrices run on
tensor cores on A100 and H100, at twice the rate of other float64 arithmetic. In a build without
CUDA kernels all passes on CUDA are, and under the reference backend those on the CPU. Sums are
float64; nothing as large as the window is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

TILE = 1 << 14  # columns that are float64 at a time


def columns_of(d: int) -> Iterator[slice]:
    """Tiles of columns."""
    return (slice(start, min(start + TILE, d)) for start in range(0, d, TILE))


def wide(window: Tensor, slots: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
    """Tiles of columns, and the rows ``slots`` there in float64."""
    index = None
    if list(slots) != list(range(len(window))):
        # Once, as each copy from the host waits for the device.
        index = torch.tensor(list(slots), dtype=torch.int64, device=window.device)
    for columns in columns_of(window.shape[1]):
        rows = window[:, columns]
        yield columns, (rows if index is None else rows[index]).double()


def products(window: Tensor, slots: Sequence[int], v: Tensor, out: Tensor) -> None:
    """out (k, count) = the products of v (k, d) with the rows ``slots``."""
    out.zero_()
    for columns, tile in wide(window, slots):
        out += v[:, columns].double() @ tile.T


def push(
    window: Tensor, slots: Sequence[int], into: int, gradient: Tensor, v: Tensor, out: Tensor
) -> None:
    """Write a row (1, d); out (1 + k, count) has its products, as it was rounded, first."""
    row = window[slots[into]]
    row.copy_(gradient[0])
    out.zero_()
    for columns, tile in wide(window, slots):
        out += torch.cat([row[None, columns].double(), v[:, columns].double()]) @ tile.T


def combine(
    window: Tensor,
    slots: Sequence[int],
    coefficient: Tensor,
    alpha: float,
    v: Tensor | None,
    out: Tensor,
) -> None:
    """out (k, d) = alpha v + coefficient (k, count) times the rows ``slots``."""
    for columns, tile in wide(window, slots):
        part = coefficient @ tile
        out[:, columns] = part if v is None else part + alpha * v[:, columns].double()


def gram(window: Tensor, slots: Sequence[int], out: Tensor) -> None:
    """out (count, count) = the products of the rows ``slots`` with each other."""
    out.zero_()
    for _, tile in wide(window, slots):
        out.addmm_(tile, tile.T)


def whitened_squares(window: Tensor, slots: Sequence[int], root: Tensor, out: Tensor) -> None:
    """out (d,) = the squares of the columns of root (count, count) times the rows ``slots``."""
    for columns, tile in wide(window, slots):
        out[columns] = (root @ tile).square().sum(0)
