"""Pushing a gradient whose products with the window are known, part by part.

What is computed while backward still runs: the columns of a parameter meet its gradient as soon
as that is there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, _sharding
from ._window import SlidingWindowFisher


def partial_products(fisher: SlidingWindowFisher, start: int, part: Tensor) -> Tensor:
    """Products of columns from ``start`` on with a part of a row, (count,), oldest first."""
    columns = fisher._window[:, start : start + len(part)]
    return _products(columns, fisher._order, part)


def push_known(fisher: SlidingWindowFisher, row: Tensor, products: Tensor) -> Tensor:
    """Push a finite row, as it is stored, and return F^-1 row, like ``push_ihvp(row)``.

    ``products`` are this rank's, with the rows held before; oldest first.
    """
    with fisher._lock:
        own = _products(row[None], [0], row)
        found = _sharding.summed(torch.cat([products, own]), fisher._group)
        return fisher._push_known(row, found.cpu())


def _products(window: Tensor, slots: list[int], v: Tensor) -> Tensor:
    found: Tensor = torch.ops.curvkern.mfac_products(window, slots, _checks.wide(v)[None])
    return found[0]
