"""Sparse and depthwise convolutions of contiguous tensors, without derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .reference import sparseconv as reference


VARIANTS = ("plain",)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where a matrix of shape (O, C) has blocks of r x c entries, in compressed rows."""

    crow: Tensor
    col: Tensor
    block: tuple[int, int]
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        """How many blocks are stored."""
        return len(self.col)

    @classmethod
    def validated(
        cls, crow: Tensor, col: Tensor, block: Sequence[int], shape: Sequence[int]
    ) -> Pattern:
        """Refuse what is no matrix in compressed rows."""
        r, c = block
        rows, columns = shape[0] // r, shape[1] // c
        start, index = crow.cpu().numpy(), col.cpu().numpy()
        if len(start) != rows + 1:
            raise ValueError(
                f"sparse_conv1x1: crow must have length {rows + 1}, got {len(start)}"
            )
        if start[0] != 0:
            raise ValueError(f"sparse_conv1x1: crow must begin with 0, got {start[0]}")
        if (np.diff(start) < 0).any():
            raise ValueError("sparse_conv1x1: crow must not decrease")
        if start[-1] != len(index):
            raise ValueError(
                f"sparse_conv1x1: crow must end with the length of col, {len(index)}, "
                f"got {start[-1]}"
            )
        if len(index) and (index.min() < 0 or index.max() >= columns):
            raise ValueError(
                f"sparse_conv1x1: col must be in [0, {columns}), "
                f"got values from {index.min()} to {index.max()}"
            )
        row = np.repeat(np.arange(rows), np.diff(start))
        if ((np.diff(index) <= 0) & (np.diff(row) == 0)).any():
            raise ValueError("sparse_conv1x1: col must increase within each row")
        return cls(crow, col, (r, c), (shape[0], shape[1]))


def conv1x1(
    x: Tensor,
    pattern: Pattern,
    values: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    *,
    variant: str = "auto",
) -> Tensor:
    p = pattern
    return reference.conv1x1(x, p.crow, p.col, values, p.shape, bias, residual, activation)


def conv1x1_input_grad(
    gy: Tensor, pattern: Pattern, values: Tensor, *, variant: str = "auto"
) -> Tensor:
    return reference.conv1x1_input_grad(gy, pattern.crow, pattern.col, values, pattern.shape)


def sddmm(gy: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    return reference.sddmm(gy, x, pattern.crow, pattern.col, pattern.block)


def variants(
    pattern: Pattern, dtype: torch.dtype, B: int, P: int, threads: int
) -> list[str]:
    return ["plain"]


def pack(pattern: Pattern, values: Tensor, variant: str) -> Any:
    return pattern, values.detach().clone()


def conv1x1_packed(
    x: Tensor,
    packed: Any,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    return conv1x1(x, *packed, bias, residual, activation)


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    activation: str,
) -> Tensor:
    return reference.conv2d(x, weight, bias, stride, padding, dilation, activation)


depthwise_input_grad = reference.depthwise_input_grad
depthwise_weight_grad = reference.depthwise_weight_grad


def first_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: str,
) -> Tensor:
    return reference.conv2d(x, weight, bias, stride, padding, 1, activation)
