"""Convolutions with sparse and depthwise weights: values, derivatives, the compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

from curvkern import nn, sparse
from curvkern.reference import sparseconv as reference
from curvkern.sparse import _gradients
from sparseconv_truth import (
    POINTWISE,
    WINDOWS,
    arrays,
    by_nonzeros,
    by_shifts,
    error,
    random_matrix,
)
from sparseconv_truth import sparse as sparse_tensor

ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish")
BARS = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}
every_dtype = pytest.mark.parametrize("dtype", list(BARS), ids=str)

# Stored cases -------------------------------------------------------------------------------


def inputs_of(case: Any, names: tuple[str, ...], dtype: torch.dtype) -> dict[str, Any]:
    stored = arrays(case)
    return {
        name: stored[name].to(dtype).requires_grad_() if name in stored else None
        for name in names
    }


def check(case: Any, y: Tensor, inputs: dict[str, Any], dtype: torch.dtype) -> None:
    """Value and gradients; in bfloat16, whose kinks are elsewhere, values alone."""
    stored = arrays(case)
    assert y.dtype is dtype
    assert error(y, stored["y"]) < BARS[dtype]
    if dtype is torch.bfloat16:
        return
    y.backward(stored["gy"].to(dtype))
    for name, tensor in inputs.items():
        if tensor is not None:
            assert error(tensor.grad, stored[f"g{name}"]) < BARS[dtype], name


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@every_dtype
@pytest.mark.parametrize("case", POINTWISE, ids=lambda case: case["name"])
def test_stored_pointwise(case: Any, dtype: torch.dtype, index: torch.dtype) -> None:
    stored = arrays(case)
    inputs = inputs_of(case, ("x", "values", "bias", "residual"), dtype)
    x, values, bias, residual = inputs.values()
    shape = (case["N"], x.shape[1])
    weight = sparse_tensor(stored["crow"].to(index), stored["col"].to(index), values, shape)
    options = {"activation": case["act"], "residual": residual}
    y = sparse.sparse_conv1x1(x, weight, bias, **options)
    check(case, y, inputs, dtype)
    with torch.no_grad():  # activations are applied by the kernel then
        assert (
            error(sparse.sparse_conv1x1(x, weight, bias, **options), stored["y"]) < BARS[dtype]
        )
        packed = sparse.PackedWeight(weight)
        for _ in range(2):
            again = sparse.sparse_conv1x1(x, packed, bias, **options)
            assert error(again, stored["y"]) < BARS[dtype]
        assert_close(packed.to_dense(), weight.to_dense(), rtol=0, atol=0)


@every_dtype
@pytest.mark.parametrize("case", WINDOWS, ids=lambda case: case["name"])
def test_stored_windows(case: Any, dtype: torch.dtype) -> None:
    inputs = inputs_of(case, ("x", "weight", "bias"), dtype)
    options = {key: case[key] for key in ("stride", "padding")}
    if case["op"] == "depthwise":
        options["dilation"] = case["dilation"]
    function = sparse.depthwise_conv2d if case["op"] == "depthwise" else sparse.conv2d_first
    y = function(*inputs.values(), activation=case["act"], **options)
    check(case, y, inputs, dtype)
    with torch.no_grad():
        again = function(*inputs.values(), activation=case["act"], **options)
    assert error(again, arrays(case)["y"]) < BARS[dtype]


@pytest.mark.parametrize("block", [(1, 1), (2, 1), (2, 3)])
def test_references_against_other_formulas(block: tuple[int, int]) -> None:
    dense = random_matrix(4, 6, dtype=torch.float64)
    w = dense.to_sparse_csr() if block == (1, 1) else dense.to_sparse_bsr(block)
    parts = (w.crow_indices(), w.col_indices(), w.values())
    x, gy = torch.randn(2, 6, 5).double(), torch.randn(2, 4, 5).double()
    assert_close(reference.conv1x1(x, *parts, (4, 6)), by_nonzeros(x, *parts, 4))
    turned = dense.T.contiguous().to_sparse_csr()
    transposed = (turned.crow_indices(), turned.col_indices(), turned.values())
    assert_close(
        reference.conv1x1_input_grad(gy, *parts, (4, 6)), by_nonzeros(gy, *transposed, 6)
    )
    sums = sum(gy[b, :, None, p] * x[b, None, :, p] for b in range(2) for p in range(5))
    found = reference.sddmm(gy, x, *parts[:2], block)
    again = sparse_tensor(*parts[:2], found, (4, 6)).to_dense()
    stored = sparse_tensor(*parts[:2], torch.ones_like(found), (4, 6)).to_dense()
    assert_close(again, sums * stored)
    assert_close(sparse.sddmm(gy, x, w), found)
    assert_close(
        sparse.sddmm(gy[0], x[0], w), reference.sddmm(gy[:1], x[:1], *parts[:2], block)
    )


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_depthwise_against_shifts(stride: int, dilation: int) -> None:
    x, w = torch.randn(2, 3, 9, 8).double(), torch.randn(3, 1, 3, 2).double()
    padding = [2, 0, 1, 3]
    expected = by_shifts(x, w, stride, padding, dilation)
    options = {"stride": stride, "padding": tuple(padding), "dilation": dilation}
    assert_close(sparse.depthwise_conv2d(x, w, **options), expected)
    assert_close(reference.conv2d(x, w, None, stride, padding, dilation), expected)


# Derivatives --------------------------------------------------------------------------------


def pointwise(shape: tuple[int, int], block: tuple[int, int]) -> tuple[Any, Any]:
    """A function of (x, values, bias, residual), for a pattern, and arguments."""
    dense = random_matrix(*shape, dtype=torch.float64)
    w = dense.to_sparse_csr() if block == (1, 1) else dense.to_sparse_bsr(block)
    crow, col = w.crow_indices(), w.col_indices()

    def function(
        activation: str, x: Tensor, values: Tensor, bias: Any, residual: Any
    ) -> Tensor:
        return _gradients.conv1x1(x, values, bias, residual, crow, col, list(shape), activation)

    wide = {"dtype": torch.float64}
    sizes = ((1, shape[1], 3), (shape[0],), (1, shape[0], 3))
    x, bias, residual = (torch.randn(size, **wide) for size in sizes)
    return function, (x, w.values(), bias, residual)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str) -> None:
    function, arguments = pointwise((2, 3), (1, 1))
    inputs = tuple(t.clone().requires_grad_() for t in arguments)

    def call(*inputs: Tensor) -> Tensor:
        return function(activation, *inputs)

    every = {"check_batched_grad": True, "check_forward_ad": True}
    assert torch.autograd.gradcheck(call, inputs, check_batched_forward_grad=True, **every)
    assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True)


def test_gradcheck_of_blocks_and_of_sddmm() -> None:
    function, arguments = pointwise((2, 6), (2, 3))
    inputs = tuple(t.clone().requires_grad_() for t in arguments)
    assert torch.autograd.gradcheck(lambda *i: function("relu", *i), inputs)
    w = random_matrix(2, 3).to_sparse_csr()
    ab = tuple(torch.randn(n, 4).double().requires_grad_() for n in (2, 3))
    assert torch.autograd.gradcheck(
        lambda a, b: sparse.sddmm(a, b, w), ab, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(lambda a, b: sparse.sddmm(a, b, w), ab)


@pytest.mark.parametrize("activation", ["relu6", "silu"])
def test_gradcheck_of_windows(activation: str) -> None:
    x, w, b = (
        torch.randn(s).double().requires_grad_() for s in ((1, 2, 4, 3), (2, 1, 2, 2), 2)
    )
    options: Any = {"stride": 2, "padding": (0, 1, 1, 0), "activation": activation}

    def depthwise(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return sparse.depthwise_conv2d(x, w, b, **options)

    assert torch.autograd.gradcheck(
        depthwise, (x, w, b), check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(depthwise, (x, w, b), check_fwd_over_rev=True)
    first = torch.randn(2, 2, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: sparse.conv2d_first(x, w, **options), (x, first)
    )


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0), ("relu6", 0), ("silu", 0.5),
                                               ("hardswish", 0.5)])  # fmt: skip
def test_slopes_at_the_kinks(activation: str, slope: float) -> None:
    weight = torch.ones(1, 1).to_sparse_csr()
    points = [0.0, -0.0, *([6.0] if activation == "relu6" else [])]
    x = torch.tensor(points).reshape(1, 1, 1, -1).requires_grad_()
    y = sparse.sparse_conv1x1(x, weight, activation=activation)
    y.sum().backward()
    assert_close(x.grad, torch.full_like(x, slope), rtol=0, atol=0)
    with torch.no_grad():
        y = sparse.sparse_conv1x1(x, weight, activation=activation)
    assert_close(y[0, 0, 0, :2], torch.zeros(2), rtol=0, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_infinite_and_nan(activation: str) -> None:
    weight = torch.eye(2).to_sparse_csr()
    x = torch.tensor([torch.inf, 1.0, torch.nan, 100.0]).reshape(2, 1, 2)
    y = sparse.sparse_conv1x1(x, weight, activation=activation)
    assert_close(y, reference.ACTIVATIONS[activation](x), equal_nan=True)


def test_gradient_of_torch_sparse_tensors() -> None:
    """The leaf is the sparse tensor itself, or its values; a second backward pass adds."""
    dense, x = random_matrix(4, 5), torch.randn(2, 5, 3, 3)
    plain = dense.clone().requires_grad_()
    torch.nn.functional.conv2d(x, plain[..., None, None]).square().sum().backward()
    weight = dense.to_sparse_csr().requires_grad_()
    for times in (1, 2):
        sparse.sparse_conv1x1(x, weight).square().sum().backward()
        assert weight.grad.layout is torch.sparse_csr
        assert_close(weight.grad.to_dense(), times * plain.grad * (dense != 0))
    blocks = dense.to_sparse_bsr((2, 1)).requires_grad_()
    (found,) = torch.autograd.grad(sparse.sparse_conv1x1(x, blocks).square().sum(), blocks)
    kept = blocks.detach()
    ones = sparse_tensor(kept.crow_indices(), kept.col_indices(),
                         torch.ones_like(kept.values()), (4, 5)).to_dense()  # fmt: skip
    assert_close(found.to_dense(), plain.grad * ones)


def test_expanded_gradient() -> None:
    """`.sum().backward()` hands over a gradient of stride 0."""
    weight, x = random_matrix(3, 4).to_sparse_csr(), torch.randn(2, 4, 3, 3, requires_grad=True)
    sparse.sparse_conv1x1(x, weight).sum().backward()
    expected = weight.to_dense().sum(0)[:, None, None].expand(4, 3, 3)
    assert_close(x.grad, expected.expand(2, 4, 3, 3))


# Transforms and the compiler ----------------------------------------------------------------


def test_transforms() -> None:
    function, (x, v, b, r) = pointwise((2, 3), (1, 1))

    def total(x: Tensor, v: Tensor) -> Tensor:
        return function("silu", x, v, b, r).square().sum()

    both = (0, 1)
    inputs = (x.clone().requires_grad_(), v.clone().requires_grad_())
    expected = torch.autograd.grad(total(*inputs), inputs)
    assert_close(grad(total, both)(x, v), expected)
    assert_close(jacfwd(total, both)(x, v), expected)
    assert_close(jacfwd(jacrev(total, 1), 1)(x, v), jacrev(jacrev(total, 1), 1)(x, v))
    tangent = jvp(total, (x, v), (x, v))[1]
    assert_close(tangent, (expected[0] * x).sum() + (expected[1] * v).sum())
    xs, vs = torch.randn(4, *x.shape).double(), torch.randn(4, *v.shape).double()
    for dims in ((0, 0), (0, None), (None, 0)):
        found = vmap(grad(total, both), dims)(
            xs if dims[0] == 0 else x, vs if dims[1] == 0 else v
        )
        for i in range(4):
            one = grad(total, both)(xs[i] if dims[0] == 0 else x, vs[i] if dims[1] == 0 else v)
            assert_close(tuple(t[i] for t in found), one)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    conv = torch.nn.Conv2d(6, 4, 1)
    pruned = conv.weight.detach().abs() > 0.2
    model = torch.nn.Sequential(
        nn.FirstConv2d(3, 6, 3, activation="relu6"),
        nn.DepthwiseConv2d(6, padding=1, activation="silu"),
        nn.SparseWeightConv2d.from_dense(conv, pruned, activation="hardswish"),
    )
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for training in (True, False):
        model.train(training)
        for size in (8, 10):
            x = torch.randn(2, 3, size, size)
            assert_close(compiled(x), model(x), rtol=1e-6, atol=1e-6)
        parameters = list(model.parameters())
        found = torch.autograd.grad(compiled(x).square().sum(), parameters)
        assert_close(found, torch.autograd.grad(model(x).square().sum(), parameters))
    with torch.no_grad():
        assert_close(compiled(x), model(x), rtol=1e-6, atol=1e-6)


def test_compile_of_packed_weights_with_inductor() -> None:
    packed = sparse.PackedWeight(random_matrix(4, 3).to_sparse_csr())
    x = torch.randn(1, 3, 4, 4)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: 2 * sparse.sparse_conv1x1(x, packed, activation="relu"), fullgraph=True
    )
    assert_close(compiled(x), 2 * sparse.sparse_conv1x1(x, packed, activation="relu"))


def test_autocast_keeps_float32() -> None:
    """R36: and a half that autocast made upstream becomes as wide as the weights."""
    weight, x = random_matrix(4, 3).to_sparse_csr(), torch.randn(2, 3, 4, 4)
    expected = sparse.sparse_conv1x1(x, weight)
    module = nn.SparseWeightConv2d(3, 4)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sparse.sparse_conv1x1(x, weight)
        assert model(x).dtype is torch.float32
    assert found.dtype is torch.float32
    assert_close(found, expected, rtol=0, atol=0)


def test_no_graph_where_none_is_wanted_and_edits_are_noticed() -> None:
    weight = random_matrix(4, 3).to_sparse_csr()
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert not sparse.sparse_conv1x1(x, weight).requires_grad
    with torch.inference_mode():
        assert sparse.sparse_conv1x1(x, weight).is_inference()
    values = weight.values().clone().requires_grad_()
    w = sparse_tensor(weight.crow_indices(), weight.col_indices(), values, (4, 3))
    edited = x * 1
    y = sparse.sparse_conv1x1(edited, w)
    edited.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
