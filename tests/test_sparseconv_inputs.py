"""What convolutions with sparse weights do with whatever is passed to them.

The reliability cases are R20 to R31 and R41.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from curvkern import nn, sparse
from sparseconv_truth import random_matrix
from sparseconv_truth import sparse as sparse_tensor

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "between NaN": lambda t: F.pad(t, (1, 1), value=torch.nan)[..., 1:-1],
    "negative bit": lambda t: torch.imag(torch.complex(t, -t).conj()),
    "stride 0": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wanted", [False, True])
def test_layout(layout: str, wanted: bool) -> None:
    """R23, R29"""
    x, matrix = torch.randn(2, 4, 5, 6), random_matrix(3, 4).to_sparse_csr()
    filters, first = torch.randn(4, 1, 3, 3), torch.randn(5, 4, 3, 3)
    moved = LAYOUTS[layout](x)
    plain = moved.clone(memory_format=torch.contiguous_format)
    for function in (
        lambda x: sparse.sparse_conv1x1(x, matrix, activation="silu"),
        lambda x: sparse.depthwise_conv2d(x, filters, padding=1),
        lambda x: sparse.conv2d_first(x, first),
    ):
        one = moved.detach().requires_grad_(wanted)
        other = plain.detach().requires_grad_(wanted)
        assert_close(function(one), function(other), rtol=1e-6, atol=1e-6)
        if wanted:
            function(one).square().sum().backward()
            function(other).square().sum().backward()
            assert_close(one.grad, other.grad)


def test_without_a_batch() -> None:
    x, w, r = torch.randn(4, 5, 6), random_matrix(3, 4).to_sparse_csr(), torch.randn(3, 5, 6)
    y = sparse.sparse_conv1x1(x, w, residual=r)
    assert_close(y, sparse.sparse_conv1x1(x[None], w, residual=r[None])[0])
    filters = torch.randn(4, 1, 3, 3)
    assert_close(
        sparse.depthwise_conv2d(x, filters), sparse.depthwise_conv2d(x[None], filters)[0]
    )


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 4, 0, 6)])
def test_empty(shape: tuple[int, ...]) -> None:
    """R20"""
    x = torch.ones(shape, requires_grad=True)
    w = random_matrix(3, 4).to_sparse_csr()
    y = sparse.sparse_conv1x1(x, w, torch.ones(3))
    assert y.shape == (shape[0], 3, *shape[2:])
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape
    with torch.no_grad():
        assert sparse.sparse_conv1x1(x, w).shape == y.shape


def test_all_zero_and_dense_weights() -> None:
    """R21"""
    x, bias = torch.randn(2, 4, 5, 6), torch.randn(3)
    for dense in (torch.zeros(3, 4), torch.randn(3, 4)):
        expected = F.conv2d(x, dense[..., None, None], bias)
        assert_close(sparse.sparse_conv1x1(x, dense.to_sparse_csr(), bias), expected)


CSR = ([0, 2, 2, 3], [0, 3, 1])
CORRUPT = {
    "begins late": ([1, 2, 2, 3], CSR[1], "crow"),
    "decreases": ([0, 2, 1, 3], CSR[1], "crow"),
    "ends early": ([0, 2, 2, 2], CSR[1], "crow"),
    "ends late": ([0, 2, 2, 2**40], CSR[1], "crow"),
    "negative column": (CSR[0], [0, -1, 1], "col"),
    "column beyond": (CSR[0], [0, 4, 1], "col"),
    "duplicate": (CSR[0], [3, 3, 1], "col"),
    "unsorted": (CSR[0], [3, 0, 1], "col"),
}


@pytest.mark.parametrize("fault", CORRUPT)
def test_corrupt_indices(fault: str) -> None:
    """R41: refused before anything is read; also where a valid tensor was edited afterwards."""
    crow, col, name = CORRUPT[fault]
    x, values = torch.ones(1, 4, 2, 2), torch.ones(3)
    w = sparse_tensor(torch.tensor(crow), torch.tensor(col), values, (3, 4))
    good = sparse_tensor(*map(torch.tensor, CSR), values, (3, 4))
    module = nn.SparseWeightConv2d(4, 3)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    for call in (
        lambda: sparse.sparse_conv1x1(x, w),
        lambda: sparse.sddmm(torch.ones(3, 2), torch.ones(4, 2), w),
        lambda: sparse.PackedWeight(w),
        lambda: module.load_state_dict(
            {"values": values, "bias": torch.ones(3), "crow_indices": w.crow_indices(),
             "col_indices": w.col_indices()}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            call()
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert sparse.sparse_conv1x1(x, good).shape == (1, 3, 2, 2)
    good.crow_indices().copy_(torch.tensor(crow))
    good.col_indices().copy_(torch.tensor(col))
    with pytest.raises(ValueError, match=name):
        sparse.sparse_conv1x1(x, good)


X, W = torch.ones(2, 4, 5, 6), torch.ones(3, 4).to_sparse_csr()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((X[:, :3], W), {}, ValueError, r"3 channels .*\(3, 4\)"),
        ((X[0, 0], W), {}, ValueError, "x must have 3 or 4 dimensions, got 2"),
        ((X, W, torch.ones(4)), {}, ValueError, r"bias must have shape \(3,\), got \(4,\)"),
        ((X, W), {"residual": X}, ValueError, "residual must have shape"),
        ((X, W), {"activation": "gelu"}, ValueError, "activation must be one of none, relu"),
        ((X, W), {"activation": None}, TypeError, "activation must be a string, got NoneType"),
        ((X, W), {"activaton": "relu"}, TypeError, "activaton"),
        ((X.double(), W), {}, TypeError, "weight has dtype float32 but x has dtype float64"),
        ((X.half(), W), {}, TypeError, "x must be float32, bfloat16 or float64, got float16"),
        ((X.int(), W), {}, TypeError, "got int32"),
        ((X.bool(), W), {}, TypeError, "got bool"),
        ((X.to(torch.complex64), W), {}, TypeError, "got complex64"),
        ((X, torch.ones(3, 4)), {}, TypeError, "weight has layout torch.strided"),
        ((X, torch.ones(3, 4).to_sparse()), {}, TypeError, "layout torch.sparse_coo"),
        ((X.to_sparse(), W), {}, TypeError, "x has layout torch.sparse_coo"),
        ((X, None), {}, TypeError, "weight must be a sparse tensor .*, got NoneType"),
        (("x", W), {}, TypeError, "x must be a tensor, got str"),
        ((X, W, 1.0), {}, TypeError, "bias must be a tensor, got float"),
        ((X.to("meta"), W), {}, ValueError, "device of x, meta, got cpu"),
    ],
)  # fmt: skip
def test_refusals(arguments: Any, options: Any, error: type, words: str) -> None:
    """R22, R25, R26, R28, R30"""
    with pytest.raises(error, match=words):
        sparse.sparse_conv1x1(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": (1, 2)}, ValueError, "stride must be an integer or two equal"),
        ({"stride": 1.5}, TypeError, "stride must be an integer, got float"),
        ({"padding": -1}, ValueError, "padding must be at least 0"),
        ({"padding": (1, 2, 3)}, ValueError, "got 3 numbers"),
        ({"padding": "same"}, TypeError, "padding must be an integer, got str"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1"),
        ({"dilation": 9}, ValueError, "kernel .*fits"),
    ],
)
def test_refused_windows(options: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        sparse.depthwise_conv2d(X, torch.ones(4, 1, 3, 3), **options)


def test_too_large() -> None:
    """R31: and it works afterwards."""
    w = torch.ones(1024, 1).to_sparse_csr()
    with pytest.raises(MemoryError, match="too large"):
        sparse.sparse_conv1x1(torch.ones(1, 1, 1, 1).expand(1, 1, 10**7, 10**6), w)
    assert sparse.sparse_conv1x1(torch.ones(1, 1, 1, 1), w).sum() == 1024


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("number", [2**31, 2**62, 2**80])
def test_window_too_large(name: str, number: int) -> None:
    """R31: sizes in which a few of such numbers overflow; one ended the process."""
    x, calls = torch.ones(1, 4, 5, 5), [sparse.depthwise_conv2d, nn.DepthwiseConv2d]
    if name != "dilation":
        calls.append(sparse.conv2d_first)
    for call in calls:
        weight = torch.ones(4, 4 if call is sparse.conv2d_first else 1, 3, 3)
        arguments: Any = (4,) if call is nn.DepthwiseConv2d else (x, weight)
        with pytest.raises(ValueError, match=f"{name} is too large"):
            call(*arguments, **{name: number})
    assert sparse.depthwise_conv2d(x, torch.ones(4, 1, 3, 3), stride=9).sum() == 36


def test_meta_and_subclass() -> None:
    """R27, R28"""
    packed = sparse.PackedWeight(W)
    parts = [t.to("meta") for t in (packed.values, packed.crow_indices, packed.col_indices)]
    x = X.to("meta").flatten(2)
    y = torch.ops.curvkern.sparse_conv1x1(
        x, parts[0], None, None, *parts[1:], [3, 4], "relu", "auto", False
    )
    assert y.shape == (2, 3, 30)
    assert y.device.type == "meta"

    class Subclass(torch.Tensor):
        """Changes nothing."""

    y = sparse.sparse_conv1x1(X.as_subclass(Subclass), packed)
    assert type(y) is Subclass
    assert_close(y.as_subclass(Tensor), sparse.sparse_conv1x1(X, packed))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (nn.FirstConv2d, {"dilation": 2}, "groups and dilation must be 1, got 1 and 2"),
        (nn.FirstConv2d, {"groups": 3}, "groups and dilation must be 1, got 3 and 1"),
        (
            nn.FirstConv2d,
            {"kernel_size": (3, 0)},
            r"kernel_size must be at least 1, got \(3, 0\)",
        ),
        (nn.DepthwiseConv2d, {"kernel_size": 0}, "kernel_size must be at least 1, got 0"),
    ],
)
def test_layers_that_are_not_made(kind: Any, options: dict[str, Any], message: str) -> None:
    sizes = {"in_channels": 3, "out_channels": 6, "kernel_size": 3} | options
    with pytest.raises(ValueError, match=f"{kind.__name__}: {message}"):
        kind(**sizes)
