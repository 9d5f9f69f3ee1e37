"""Sparse and depthwise convolutions as users call them, on each device, with derivatives.

On a GPU they are its kernels: what those compute on the host is in test_sparseconv_device.py.
Truth: dense convolutions of torch, in float64.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from curvkern import nn, sparse

devices = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def compare(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        limit = 2e-2 if a.dtype is torch.bfloat16 else 1e-5
        assert_close(
            a.detach().cpu().double(), b.detach(), rtol=0, atol=limit * float(b.abs().max())
        )


def leaf(tensor: Tensor, device: str = "cpu") -> Tensor:
    return tensor.detach().to(device, copy=True).requires_grad_()


def wide(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in tensors]


def dense_of(crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
    r, c = values.shape[1:] if values.dim() == 3 else (1, 1)
    W = torch.zeros(24, 16, dtype=values.dtype)
    for i in range(len(crow) - 1):
        for k in range(int(crow[i]), int(crow[i + 1])):
            at = (slice(i * r, (i + 1) * r), slice(int(col[k]) * c, (int(col[k]) + 1) * c))
            W[at] = W[at] + values[k]
    return W


@devices
@dtypes
@pytest.mark.parametrize("block", [(1, 1), (4, 1)], ids=str)
def test_sparse_conv1x1(block: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    mask = (torch.rand(24 // block[0], 16) < 0.3).repeat_interleave(block[0], 0)
    dense = torch.where(mask, torch.randn(24, 16), 0.0)
    matrix = dense.to_sparse_csr() if block == (1, 1) else dense.to_sparse_bsr(block)
    x, bias = torch.randn(2, 16, 7, 7).to(dtype), torch.randn(24).to(dtype)
    values = matrix.values().to(dtype)
    residual, gy = torch.randn(2, 24, 7, 7).to(dtype), torch.randn(2, 24, 7, 7).to(dtype)
    inputs = [leaf(t, device) for t in (x, values, bias, residual)]
    build = torch.sparse_csr_tensor if block == (1, 1) else torch.sparse_bsr_tensor
    indices = matrix.crow_indices(), matrix.col_indices()
    weight = build(*(t.to(device) for t in indices), inputs[1], (24, 16))
    y = sparse.sparse_conv1x1(
        inputs[0], weight, inputs[2], activation="silu", residual=inputs[3]
    )
    assert y.device.type == device
    gradients = torch.autograd.grad(y, inputs, gy.to(device))
    X, V, b, r = wide(x, values, bias, residual)
    W = dense_of(indices[0], indices[1], V)
    Y = F.silu(F.conv2d(X, W[:, :, None, None], b) + r)
    compare([y, *gradients], [Y, *torch.autograd.grad(Y, (X, V, b, r), gy.double())])


@devices
@dtypes
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(stride: int, dtype: torch.dtype, device: str) -> None:
    x, weight = torch.randn(2, 5, 9, 8).to(dtype), torch.randn(5, 1, 3, 3).to(dtype)
    bias, padding = torch.randn(5).to(dtype), (0, 1, 2, 1)
    inputs = [leaf(t, device) for t in (x, weight, bias)]
    y = sparse.depthwise_conv2d(*inputs, stride=stride, padding=padding, activation="silu")
    assert y.device.type == device
    gy = torch.randn(y.shape).to(dtype)
    X, W, b = wide(x, weight, bias)
    Y = F.silu(F.conv2d(F.pad(X, padding), W, b, stride, groups=5))
    gradients = torch.autograd.grad(y, inputs, gy.to(device))
    compare([y, *gradients], [Y, *torch.autograd.grad(Y, (X, W, b), gy.double())])


@devices
@dtypes
def test_first_and_sddmm(dtype: torch.dtype, device: str) -> None:
    x, weight = torch.randn(2, 3, 12, 11).to(dtype), torch.randn(20, 3, 3, 3).to(dtype)
    y = sparse.conv2d_first(x.to(device), weight.to(device), activation="relu6")
    compare([y], [F.relu6(F.conv2d(x.double(), weight.double(), None, 2, 1))])
    a, b = torch.randn(2, 6, 50).to(dtype), torch.randn(2, 9, 50).to(dtype)
    pattern = (torch.rand(6, 9) < 0.5).float().to_sparse_csr().to(device)
    found = sparse.sddmm(a.to(device), b.to(device), pattern)
    product = torch.einsum("bop,bkp->ok", a.double(), b.double())
    compare([found], [product[pattern.cpu().to_dense() != 0]])


@devices
def test_a_layer_that_was_used_before_it_moved(device: str) -> None:
    """What was made for the CPU is not taken for the GPU, nor the other way round."""
    conv = torch.nn.Conv2d(16, 12, 1)
    mask = (torch.rand(12, 16, 1, 1) < 0.4).float()
    layer = nn.SparseWeightConv2d.from_dense(conv, mask)
    x = torch.randn(1, 16, 6, 6)
    wanted = F.conv2d(x.double(), (conv.weight * mask).double(), conv.bias.double())
    compare([layer(x)], [wanted])
    layer = layer.to(device)
    with torch.no_grad():
        compare([layer(x.to(device))], [wanted])
    compare([layer.to("cpu")(x)], [wanted])
