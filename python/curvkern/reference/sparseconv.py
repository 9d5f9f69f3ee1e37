r"""Convolutions with sparse weights and their neighbours, in plain PyTorch.

.. math::
    y_{b,o,p} = \mathrm{act}\Bigl(\sum_k W_{o,k} x_{b,k,p} + \beta_o + r_{b,o,p}\Bigr)

with W given by its nonzero blocks in compressed rows. Here W is written out and multiplied
densely; bfloat16 is summed in float32 and rounded once.

E. Elsen, M. Dukhan, T. Gale, K. Simonyan, "Fast Sparse ConvNets", CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.grad
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def wide(tensor: Any) -> Any:
    """bfloat16 as float32, which sums are in; None stays."""
    if tensor is None or tensor.dtype is not torch.bfloat16:
        return tensor
    return tensor.float()


def block_rows(crow: Tensor) -> Tensor:
    """The block row of each stored block."""
    counts = crow.diff().long()
    return torch.repeat_interleave(torch.arange(len(counts), device=crow.device), counts)


def to_dense(crow: Tensor, col: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """W of shape (O, C) from values of shape (nnz,), or (nnz, r, c) by blocks."""
    r, c = values.shape[1:] if values.dim() == 3 else (1, 1)
    blocks = values.new_zeros(shape[0] // r, shape[1] // c, r, c)
    where = (block_rows(crow), col.long())
    blocks = blocks.index_put(where, values.reshape(-1, r, c))
    return blocks.transpose(1, 2).reshape(*shape)


def at_pattern(matrix: Tensor, crow: Tensor, col: Tensor, block: Sequence[int]) -> Tensor:
    """The stored blocks of a dense matrix: (nnz,), or (nnz, r, c) by blocks."""
    r, c = block
    rows, columns = matrix.shape
    blocks = matrix.reshape(rows // r, r, columns // c, c).transpose(1, 2)
    found = blocks[block_rows(crow), col.long()]
    return found.reshape(-1) if r == c == 1 else found


def conv1x1(
    x: Tensor,
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """act(W x + bias + residual) for x of shape (B, K, P)."""
    dense = wide(to_dense(crow, col, values, shape))
    z = dense @ wide(x)
    if bias is not None:
        z = z + wide(bias)[:, None]
    if residual is not None:
        z = z + wide(residual)
    return ACTIVATIONS[activation](z).to(x.dtype)


def conv1x1_input_grad(
    gy: Tensor, crow: Tensor, col: Tensor, values: Tensor, shape: Sequence[int]
) -> Tensor:
    """W^T gy for gy of shape (B, O, P)."""
    dense = wide(to_dense(crow, col, values, shape))
    return (dense.T @ wide(gy)).to(gy.dtype)


def sddmm(gy: Tensor, x: Tensor, crow: Tensor, col: Tensor, block: Sequence[int]) -> Tensor:
    """The sum over the batch of gy x^T, where the pattern has blocks."""
    product = torch.einsum("bop,bkp->ok", wide(gy), wide(x))
    return at_pattern(product, crow, col, block).to(x.dtype)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: int = 1,
    activation: str = "none",
) -> Tensor:
    """act(conv2d), padded by (left, right, top, bottom); depthwise where weight is (N, 1, ...).

    x is (B, C, H, W) and N a multiple of C.
    """
    groups = x.shape[1] // weight.shape[1] if weight.shape[1] else 1
    padded = F.pad(wide(x), tuple(padding))
    z = F.conv2d(padded, wide(weight), wide(bias), stride, 0, dilation, groups)
    return ACTIVATIONS[activation](z).to(x.dtype)


def depthwise_input_grad(
    gy: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
) -> Tensor:
    """The gradient of the depthwise convolution in an image of a size."""
    left, right, top, bottom = padding
    padded = (*gy.shape[:2], size[0] + top + bottom, size[1] + left + right)
    gx = torch.nn.grad.conv2d_input(
        padded, wide(weight), wide(gy), stride, 0, dilation, weight.shape[0]
    )
    inner = gx[..., top : top + size[0], left : left + size[1]]
    return inner.to(gy.dtype).contiguous()


def depthwise_weight_grad(
    gy: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
) -> Tensor:
    """The gradient of the depthwise convolution in its weights, (C, 1, kh, kw)."""
    shape = (x.shape[1], 1, *kernel)
    padded = F.pad(wide(x), tuple(padding))
    gw = torch.nn.grad.conv2d_weight(padded, shape, wide(gy), stride, 0, dilation, x.shape[1])
    return gw.to(x.dtype)
