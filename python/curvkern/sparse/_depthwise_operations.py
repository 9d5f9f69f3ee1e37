"""``torch.ops.curvkern`` of depthwise convolutions, their derivatives, and first convolutions.

Filters are (C, 1, kh, kw) for images (B, C, H, W); padding is (left, right, top, bottom).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference import sparseconv as reference
from . import _execution, _operands
from ._operations import compiled, contiguous, define

FIRST = "first_conv2d"
DEPTHWISE = "depthwise_conv2d"


def _check(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    activation: str,
) -> Tensor:
    """An empty result of the shape that comes out."""
    _operands.ranked(op, "x", x, 4)
    _operands.ranked(op, "weight", weight, 4)
    _operands.same_dtype(op, "weight", weight, "x", x)
    _operands.same_device(op, "weight", weight, "x", x)
    count = weight.shape[0]
    taken = (count, 1) if op == DEPTHWISE else (weight.shape[1], x.shape[1])
    if x.shape[1] != taken[0] or weight.shape[1] != taken[1]:
        raise ValueError(
            f"{op}: weight must have shape ({x.shape[1] if op == DEPTHWISE else 'N'}, "
            f"{taken[1]}, kh, kw) for {x.shape[1]} channels, got {tuple(weight.shape)}"
        )
    _operands.beside(op, "bias", bias, (count,), "x", x)
    _operands.window(op, stride, padding, dilation, activation)
    size = _operands.output_size(op, x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return x.new_empty(x.shape[0], count, *size)


def _depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    activation: str,
) -> Tensor:
    y = _check(DEPTHWISE, x, weight, bias, stride, padding, dilation, activation)
    x, weight, bias = contiguous(x, weight, bias)
    if y.numel() == 0:
        return y
    settings = (stride, tuple(padding), dilation, activation)
    if compiled(x):
        return _execution.kernels(x).depthwise(x, weight, bias, *settings)
    return reference.conv2d(x, weight, bias, *settings)


def check_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    activation: str,
) -> Tensor:
    return _check(DEPTHWISE, x, weight, bias, stride, padding, dilation, activation)


def _first(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: str,
) -> Tensor:
    y = check_first(x, weight, bias, stride, padding, activation)
    x, weight, bias = contiguous(x, weight, bias)
    if compiled(x) and y.numel() and x.numel():
        return _execution.kernels(x).first_conv(
            x, weight, bias, stride, tuple(padding), activation
        )
    return reference.conv2d(x, weight, bias, stride, padding, 1, activation)


def check_first(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: str,
) -> Tensor:
    return _check(FIRST, x, weight, bias, stride, padding, 1, activation)


def _check_input_grad(
    gy: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
) -> Tensor:
    op = f"{DEPTHWISE}_input_grad"
    _operands.ranked(op, "gy", gy, 4)
    _operands.beside(op, "weight", weight, (gy.shape[1], 1, *weight.shape[2:4]), "gy", gy)
    _operands.window(op, stride, padding, dilation)
    if len(size) != 2:
        raise ValueError(f"{op}: size must have 2 entries, got {len(size)}")
    expected = _operands.output_size(op, size, weight.shape[2:], stride, padding, dilation)
    _operands.has_shape(op, "gy", gy, (*gy.shape[:2], *expected))
    return gy.new_empty(*gy.shape[:2], *size)


def _input_grad(
    gy: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
) -> Tensor:
    gx = _check_input_grad(gy, weight, size, stride, padding, dilation)
    gy, weight = contiguous(gy, weight)
    if gx.numel() == 0:
        return gx
    settings = (tuple(size), stride, tuple(padding), dilation)
    if compiled(gy):
        return _execution.kernels(gy).depthwise_input_grad(gy, weight, *settings)
    return reference.depthwise_input_grad(gy, weight, *settings)


def _check_weight_grad(
    gy: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
) -> Tensor:
    op = f"{DEPTHWISE}_weight_grad"
    _operands.ranked(op, "gy", gy, 4)
    _operands.ranked(op, "x", x, 4)
    _operands.window(op, stride, padding, dilation)
    if len(kernel) != 2:
        raise ValueError(f"{op}: kernel must have 2 entries, got {len(kernel)}")
    expected = _operands.output_size(op, x.shape[2:], kernel, stride, padding, dilation)
    _operands.beside(op, "gy", gy, (*x.shape[:2], *expected), "x", x)
    return gy.new_empty(gy.shape[1], 1, *kernel)


def _weight_grad(
    gy: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
) -> Tensor:
    gw = _check_weight_grad(gy, x, kernel, stride, padding, dilation)
    gy, x = contiguous(gy, x)
    if gw.numel() == 0 or gy.numel() == 0 or x.numel() == 0:
        return gw.zero_()
    settings = (tuple(kernel), stride, tuple(padding), dilation)
    if compiled(x):
        return _execution.kernels(x).depthwise_weight_grad(gy, x, *settings)
    return reference.depthwise_weight_grad(gy, x, *settings)


depthwise = define(
    f"{DEPTHWISE}(Tensor x, Tensor weight, Tensor? bias, int stride, int[] padding, "
    "int dilation, str activation) -> Tensor",
    _depthwise,
    check_depthwise,
)
first = define(
    f"{FIRST}(Tensor x, Tensor weight, Tensor? bias, int stride, int[] padding, "
    "str activation) -> Tensor",
    _first,
    check_first,
)
define(
    f"{DEPTHWISE}_input_grad(Tensor gy, Tensor weight, int[] size, int stride, int[] padding, "
    "int dilation) -> Tensor",
    _input_grad,
    _check_input_grad,
)
define(
    f"{DEPTHWISE}_weight_grad(Tensor gy, Tensor x, int[] kernel, int stride, int[] padding, "
    "int dilation) -> Tensor",
    _weight_grad,
    _check_weight_grad,
)
