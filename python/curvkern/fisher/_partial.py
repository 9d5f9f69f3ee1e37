"""Pushing a gradient whose products with the window are known, part by part.

What is computed while backward still runs: the columns of a parameter meet its gradient as soon
as that is there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _sharding
from ._window import SlidingWindowFisher

TILE = 1 << 14  # columns that are float64 at a time


def partial_products(fisher: SlidingWindowFisher, start: int, part: Tensor) -> Tensor:
    """Products of columns from ``start`` on with a part of a row, (count,), oldest first."""
    order = fisher._order
    held = range(len(order))
    # Mostly the first rows of the window, of which no copy is made.
    rows = fisher._window[: len(order)] if sorted(order) == list(held) else None
    total = torch.zeros(len(order), dtype=torch.float64, device=part.device)
    for first in range(0, len(part), TILE):
        piece = part[first : first + TILE].double()
        columns = slice(start + first, start + first + len(piece))
        if rows is None:
            total += fisher._window[order, columns].double() @ piece
        else:
            total += rows[:, columns].double() @ piece
    return total if rows is None else total[order]


def push_known(fisher: SlidingWindowFisher, row: Tensor, products: Tensor) -> Tensor:
    """Push a finite row, as it is stored, and return F^-1 row, like ``push_ihvp(row)``.

    ``products`` are this rank's, with the rows held before; oldest first.
    """
    with fisher._lock:
        own = row.double().square().sum()[None]
        found = _sharding.summed(torch.cat([products, own]), fisher._group)
        return fisher._push_known(row, found.cpu())
