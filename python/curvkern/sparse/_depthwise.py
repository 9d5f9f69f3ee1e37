"""Derivatives of depthwise convolutions, to any order, as in :mod:`._gradients`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.grad
from torch import Tensor

from .. import _autograd, _ops, _runtime
from ..reference import sparseconv as reference
from . import _depthwise_operations
from ._gradients import (
    AFTER,
    FUSED,
    added,
    direct,
    folded,
    one_by_one,
    prepare,
    primals,
    times_slope,
    unfolded,
    wanted,
)


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: list[int],
    dilation: int,
    activation: str,
) -> Tensor:
    """act(depthwise convolution + bias) for x (B, C, H, W), with derivatives."""
    if _runtime.backend() == "reference":
        return reference.conv2d(x, weight, bias, stride, padding, dilation, activation)
    if torch.compiler.is_dynamo_compiling():
        from .. import _compile  # noqa: F401
    result: Tensor = _depthwise(x, weight, bias, stride, padding, dilation, activation)
    return result


def first(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: list[int],
    activation: str,
) -> Tensor:
    """act(conv2d + bias); its derivatives are those of torch's convolution."""
    if _runtime.backend() == "reference":
        return reference.conv2d(x, weight, bias, stride, padding, 1, activation)
    if torch.compiler.is_dynamo_compiling():
        from .. import _compile  # noqa: F401
    result: Tensor = _first(x, weight, bias, stride, padding, activation)
    return result


def _first(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: list[int],
    activation: str,
) -> Any:
    if wanted(x, weight, bias):
        return reference.conv2d(x, weight, bias, stride, padding, 1, activation)
    if direct(x, weight, bias):
        return _depthwise_operations.first(x, weight, bias, stride, padding, activation)
    return torch.ops.curvkern.first_conv2d(x, weight, bias, stride, padding, activation)


def _depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: list[int],
    dilation: int,
    activation: str,
) -> Any:
    settings = (stride, padding, dilation)
    if not wanted(x, weight, bias):
        if direct(x, weight, bias):
            return _depthwise_operations.depthwise(x, weight, bias, *settings, activation)
        return torch.ops.curvkern.depthwise_conv2d(x, weight, bias, *settings, activation)
    fused = activation if activation in FUSED else "none"
    y = _Depthwise.apply(x, weight, bias, *settings, fused)
    return y if fused == activation else AFTER[activation](y)


def _linear(x: Tensor, weight: Tensor, *settings: Any) -> Any:
    gate: Any = _depthwise
    return gate(x, weight, None, *settings, "none")


def _input_grad(gy: Tensor, weight: Tensor, size: list[int], *settings: Any) -> Any:
    if wanted(gy, weight):
        return _InputGrad.apply(gy, weight, size, *settings)
    return torch.ops.curvkern.depthwise_conv2d_input_grad(gy, weight, size, *settings)


def _weight_grad(gy: Tensor, x: Tensor, kernel: list[int], *settings: Any) -> Any:
    if wanted(gy, x):
        return _WeightGrad.apply(gy, x, kernel, *settings)
    return torch.ops.curvkern.depthwise_conv2d_weight_grad(gy, x, kernel, *settings)


class _Depthwise(torch.autograd.Function):
    """y = act(w * x + bias), of an activation in FUSED."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: list[int],
        dilation: int,
        activation: str,
    ) -> Any:
        return torch.ops.curvkern.depthwise_conv2d(
            x, weight, bias, stride, padding, dilation, activation
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, *ctx.settings, ctx.activation = inputs
        y = None if ctx.activation == "none" else output
        ctx.save_for_backward(x, weight, y)
        ctx.save_for_forward(x, weight, y)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return (None,) * 7
        x, weight, y = ctx.saved_tensors
        wants = ctx.needs_input_grad
        grad = grad if y is None else times_slope(ctx.activation, grad, y)
        return (
            _input_grad(grad, weight, list(x.shape[2:]), *ctx.settings) if wants[0] else None,
            _weight_grad(grad, x, list(weight.shape[2:]), *ctx.settings) if wants[1] else None,
            grad.sum((0, 2, 3)) if wants[2] else None,
            *[None] * 4,
        )

    @staticmethod
    def jvp(
        ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: None
    ) -> Any:
        with _autograd._forward_mode():
            x, weight, y = primals(ctx)
            tangent = added(
                None if dx is None else _linear(dx, weight, *ctx.settings),
                None if dweight is None else _linear(x, dweight, *ctx.settings),
            )
            if dbias is not None:
                if tangent is None:
                    tangent = _linear(x, torch.zeros_like(weight), *ctx.settings)
                tangent = tangent + dbias[:, None, None]
            if tangent is None or y is None:
                return tangent
            return times_slope(ctx.activation, tangent, y)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *rest: Any) -> Any:
        if in_dims[1] is not None or in_dims[2] is not None:
            return one_by_one(_depthwise, info, in_dims, x, *rest)
        x = folded(x, in_dims[0], info.batch_size)
        return unfolded(_depthwise(x, *rest), info.batch_size)


class _Gradient(torch.autograd.Function):
    """What both gradients share: linear in gy and in the other operand, whose own gradient is
    the other of the two.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        gy, other, *ctx.rest = inputs  # its sizes, and the settings of the convolution
        ctx.save_for_backward(gy, other)
        ctx.save_for_forward(gy, other)

    @staticmethod
    def _tangent(ctx: Any, gate: Any, dgy: Tensor | None, dother: Tensor | None) -> Any:
        with _autograd._forward_mode():
            gy, other = primals(ctx)
            return added(
                None if dgy is None else gate(dgy, other, *ctx.rest),
                None if dother is None else gate(gy, dother, *ctx.rest),
            )


class _InputGrad(_Gradient):
    """The gradient in x, from gy and the weights."""

    @staticmethod
    def forward(
        gy: Tensor,
        weight: Tensor,
        size: list[int],
        stride: int,
        padding: list[int],
        dilation: int,
    ) -> Any:
        return torch.ops.curvkern.depthwise_conv2d_input_grad(
            gy, weight, size, stride, padding, dilation
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (gy, weight), settings = ctx.saved_tensors, ctx.rest[1:]
        kernel, wants = list(weight.shape[2:]), ctx.needs_input_grad
        return (
            _linear(grad, weight, *settings) if wants[0] else None,
            _weight_grad(gy, grad, kernel, *settings) if wants[1] else None,
            *[None] * 4,
        )

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor | None, dweight: Tensor | None, *_: None) -> Any:
        return _Gradient._tangent(ctx, _input_grad, dgy, dweight)

    @staticmethod
    def vmap(info: Any, in_dims: Any, gy: Tensor, *rest: Any) -> Any:
        if in_dims[1] is not None:
            return one_by_one(_input_grad, info, in_dims, gy, *rest)
        gy = folded(gy, in_dims[0], info.batch_size)
        return unfolded(_input_grad(gy, *rest), info.batch_size)


class _WeightGrad(_Gradient):
    """The gradient in the weights, from gy and x."""

    @staticmethod
    def forward(
        gy: Tensor,
        x: Tensor,
        kernel: list[int],
        stride: int,
        padding: list[int],
        dilation: int,
    ) -> Any:
        return torch.ops.curvkern.depthwise_conv2d_weight_grad(
            gy, x, kernel, stride, padding, dilation
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (gy, x), settings = ctx.saved_tensors, ctx.rest[1:]
        size, wants = list(x.shape[2:]), ctx.needs_input_grad
        return (
            _linear(x, grad, *settings) if wants[0] else None,
            _input_grad(gy, grad, size, *settings) if wants[1] else None,
            *[None] * 4,
        )

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor | None, dx: Tensor | None, *_: None) -> Any:
        return _Gradient._tangent(ctx, _weight_grad, dgy, dx)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return one_by_one(_weight_grad, info, in_dims, *inputs)


for _function in (_Depthwise, _InputGrad, _WeightGrad):
    prepare(_function)


# An exported graph calls the bare operations, which would drop gradients without a word.
def _setup_exported(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, *ctx.settings, ctx.activation = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward_depthwise(ctx: Any, grad: Tensor) -> Any:
    x, weight, bias = ctx.saved_tensors
    if ctx.activation != "none":
        gate: Any = _depthwise
        z = gate(x, weight, bias, *ctx.settings, "none")
        grad = times_slope(ctx.activation, grad, z)
    return (
        _input_grad(grad, weight, list(x.shape[2:]), *ctx.settings),
        _weight_grad(grad, x, list(weight.shape[2:]), *ctx.settings),
        None if bias is None else grad.sum((0, 2, 3)),
        *[None] * 4,
    )


def _backward_first(ctx: Any, grad: Tensor) -> Any:
    x, weight, bias = ctx.saved_tensors
    stride, (left, right, top, bottom) = ctx.settings
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    if ctx.activation != "none":
        z = reference.conv2d(x, weight, bias, stride, (left, right, top, bottom))
        grad = times_slope(ctx.activation, grad, z)
    gx = torch.nn.grad.conv2d_input(padded.shape, weight, grad, stride)
    gw = torch.nn.grad.conv2d_weight(padded, weight.shape, grad, stride)
    return (
        gx[..., top : top + x.shape[2], left : left + x.shape[3]],
        gw,
        None if bias is None else grad.sum((0, 2, 3)),
        *[None] * 3,
    )


for _name, _backward, _setup in (
    ("depthwise_conv2d", _backward_depthwise, _setup_exported),
    ("first_conv2d", _backward_first, _setup_exported),
    ("depthwise_conv2d_input_grad", _InputGrad.backward, _InputGrad.setup_context),
    ("depthwise_conv2d_weight_grad", _WeightGrad.backward, _WeightGrad.setup_context),
):
    torch.library.register_autograd(
        f"curvkern::{_name}", _backward, setup_context=_setup, lib=_ops.library
    )

#: What torch.compile puts into its graphs unopened.
GATES = (_depthwise, _input_grad, _weight_grad, _first)
