"""Parts of an inverse Fisher matrix, from what any such object can answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 64  # right-hand sides of a call


def size(function: str, fisher: Any, *, diagonal: bool = True) -> int:
    """Dimension of a Fisher object; TypeError for what is none."""
    d = getattr(fisher, "d", None)
    for name in ("ihvp", "diag_inverse") if diagonal or d is None else ("ihvp",):
        if not callable(getattr(fisher, name, None)):
            raise TypeError(
                f"{function}: fisher must have a method {name}, got {type(fisher).__name__}"
            )
    return int(d) if d is not None else len(fisher.diag_inverse())


def columns(fisher: Any, index: Tensor) -> Tensor:
    """Columns of F^-1 as rows, (k, d)."""
    d = size("columns", fisher)
    parts = []
    for some in index.split(CHUNK):
        unit = torch.zeros(len(some), d, dtype=torch.float64, device=index.device)
        unit[torch.arange(len(some), device=index.device), some] = 1
        parts.append(fisher.ihvp(unit).double())
    return torch.cat(parts) if parts else torch.zeros(0, d, dtype=torch.float64)


def inverse_block(fisher: Any, index: Tensor) -> Tensor:
    """F^-1 of some rows and columns, (k, k), symmetric.

    An object that has such a method answers in O(k^2 m); columns take O(k d m).
    """
    if hasattr(fisher, "inverse_block"):
        block = fisher.inverse_block(index).double()
    else:
        parts = [columns(fisher, some)[:, index] for some in index.split(CHUNK)]
        block = torch.cat(parts) if parts else torch.zeros(0, 0, dtype=torch.float64)
    return (block + block.T) / 2


def diagonal_blocks(fisher: Any, b: int) -> Tensor:
    """F^-1 of each b consecutive rows and columns, (d / b, b, b)."""
    if b == 1:
        return fisher.diag_inverse().double()[:, None, None]
    d = size("diagonal_blocks", fisher)
    if hasattr(fisher, "elements"):
        parts = torch.arange(d).view(-1, b).split(4 * CHUNK)
        return torch.cat(
            [fisher.elements(i[:, :, None], i[:, None, :]).double() for i in parts]
        )
    blocks = []
    step = max(1, CHUNK // b)
    for groups in torch.arange(d).view(-1, b).split(step):
        found = columns(fisher, groups.flatten()).view(len(groups), b, d)
        blocks.append(torch.stack([f[:, g] for f, g in zip(found, groups, strict=True)]))
    return torch.cat(blocks)
