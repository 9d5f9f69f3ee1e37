"""Stored cases of convolutions with sparse weights, and formulas of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_STORED = np.load(Path(__file__).parent / "data" / "sparseconv.npz")
CASES: list[dict[str, Any]] = json.loads(str(_STORED["index"]))
POINTWISE = [case for case in CASES if case["op"] == "pointwise"]
WINDOWS = [case for case in CASES if case["op"] in ("depthwise", "first")]
(NET,) = (case for case in CASES if case["op"] == "net")


def arrays(case: dict[str, Any]) -> dict[str, Tensor]:
    start = case["name"] + "."
    return {
        key.removeprefix(start): torch.from_numpy(_STORED[key])
        for key in _STORED.files
        if key.startswith(start)
    }


def error(found: Tensor, truth: Tensor) -> float:
    """The largest difference, relative to the largest entry; where all are zero, itself."""
    assert found.shape == truth.shape
    if truth.numel() == 0:
        return 0.0
    scale = truth.abs().max()
    off = (found.detach().double() - truth).abs().max()
    return float(off / scale) if scale > 0 else float(off)


def sparse(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """torch's own tensor of these parts."""
    make = torch.sparse_csr_tensor if values.dim() == 1 else torch.sparse_bsr_tensor
    return make(crow, col, values, shape, check_invariants=False)


def by_nonzeros(x: Tensor, crow: Tensor, col: Tensor, values: Tensor, rows: int) -> Tensor:
    """W x of (B, K, P), one stored weight after the other."""
    y = x.new_zeros(x.shape[0], rows, x.shape[2])
    blocks = values.reshape(len(col), *(values.shape[1:] or (1, 1)))
    _, r, c = blocks.shape
    for row in range(rows // r):
        for i in range(int(crow[row]), int(crow[row + 1])):
            for a in range(r):
                for b in range(c):
                    y[:, row * r + a] += blocks[i, a, b] * x[:, int(col[i]) * c + b]
    return y


def by_shifts(
    x: Tensor, weight: Tensor, stride: int, padding: list[int], dilation: int
) -> Tensor:
    """A depthwise convolution as the sum of shifted images, one for each tap."""
    left, right, top, bottom = padding
    B, C, H, W = x.shape
    padded = x.new_zeros(B, C, H + top + bottom, W + left + right)
    padded[:, :, top : top + H, left : left + W] = x
    kh, kw = weight.shape[2:]
    rows = (padded.shape[2] - dilation * (kh - 1) - 1) // stride + 1
    columns = (padded.shape[3] - dilation * (kw - 1) - 1) // stride + 1
    y = x.new_zeros(B, C, rows, columns)
    for i in range(kh):
        for j in range(kw):
            down, across = i * dilation, j * dilation
            seen = padded[
                :,
                :,
                down : down + stride * (rows - 1) + 1 : stride,
                across : across + stride * (columns - 1) + 1 : stride,
            ]
            y += seen * weight[:, 0, i, j, None, None]
    return y


def random_matrix(
    rows: int, columns: int, sparsity: float = 0.5, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Dense, with exact zeros."""
    kept = torch.rand(rows, columns) >= sparsity
    return torch.randn(rows, columns, dtype=dtype) * kept
