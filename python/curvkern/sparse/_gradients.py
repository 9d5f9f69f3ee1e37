r"""Derivatives of sparse 1 x 1 convolutions, to any order.

The three operations are the partial derivatives of one trilinear form,

.. math:: T(x, v, g) = \sum_{b,p} g_{b,:,p}^\top W(v) x_{b,:,p}, \\
    \partial_g T = W x, \quad \partial_x T = W^\top g,
    \quad \partial_v T = (g x^\top)_{\text{pattern}},

so that the derivatives of each are the other two.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn import functional as F

from .. import _autograd, _ops, _runtime
from ..reference import sparseconv as reference
from . import _operations

#: Activations that a kernel applies where derivatives are wanted: that of the rest is of what
#: they take, so that, as in torch, their values may be written into.
FUSED = ("none", "relu")
AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def wanted(*tensors: Tensor | None) -> bool:
    """Whether derivatives in any of these are to be recorded."""
    return _autograd.derivative_wanted(*(t for t in tensors if t is not None))


def direct(*tensors: Tensor | None) -> bool:
    """Whether all are plain tensors of the CPU that no mode listens to.

    An implementation is then called as it is: the way through torch's dispatcher takes longer
    than a small layer. The name of the stack of modes is private: where it is missing, no.
    """
    try:
        if (
            torch._C._len_torch_dispatch_stack()
            or torch._C._len_torch_function_stack()
            or torch._C._is_tracing()
        ):
            return False
        torch._C._functorch.is_legacy_batchedtensor  # noqa: B018
    except AttributeError:
        return False
    for t in tensors:
        if t is not None and (
            type(t) not in (Tensor, Parameter)
            or t.device.type != "cpu"
            or t.is_neg()
            or torch._C._functorch.is_legacy_batchedtensor(t)
        ):
            return False
    return True


def activated(activation: str, z: Tensor) -> Tensor:
    """act(z), for all."""
    result: Tensor = reference.ACTIVATIONS[activation](z)
    return result


def times_slope(activation: str, grad: Tensor, z: Tensor) -> Tensor:
    """grad times act'(z), where z may be act(z) for those of FUSED."""
    aten = torch.ops.aten
    if activation == "none":
        return grad
    if activation == "relu":
        result: Tensor = aten.threshold_backward(grad, z, 0)
    elif activation == "relu6":
        result = aten.hardtanh_backward(grad, z, 0.0, 6.0)
    elif activation == "silu":
        result = aten.silu_backward(grad, z)
    else:
        result = aten.hardswish_backward(grad, z)
    return result


def conv1x1(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    crow: Tensor,
    col: Tensor,
    shape: list[int],
    activation: str,
    variant: str = "auto",
    frozen: bool = False,
) -> Tensor:
    """act(W x + bias + residual) for x of shape (B, K, P), with derivatives."""
    if _runtime.backend() == "reference":
        return reference.conv1x1(x, crow, col, values, shape, bias, residual, activation)
    if torch.compiler.is_dynamo_compiling():
        from .. import _compile  # noqa: F401
    return _conv1x1(x, values, bias, residual, crow, col, shape, activation, variant, frozen)


def _conv1x1(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    crow: Tensor,
    col: Tensor,
    shape: list[int],
    activation: str,
    variant: str,
    frozen: bool,
) -> Any:
    if not wanted(x, values, bias, residual):
        arguments = (x, values, bias, residual, crow, col, shape, activation, variant, frozen)
        if direct(*arguments[:6]):
            return _operations.conv1x1(*arguments)
        return torch.ops.curvkern.sparse_conv1x1(
            x, values, bias, residual, crow, col, shape, activation, variant, frozen
        )
    fused = activation if activation in FUSED else "none"
    y = _Conv.apply(x, values, bias, residual, crow, col, shape, fused)
    return y if fused == activation else AFTER[activation](y)


def _linear(x: Tensor, values: Tensor, crow: Tensor, col: Tensor, shape: list[int]) -> Any:
    return _conv1x1(x, values, None, None, crow, col, shape, "none", "auto", False)


def _input_grad(gy: Tensor, values: Tensor, crow: Tensor, col: Tensor, shape: list[int]) -> Any:
    if wanted(gy, values):
        return _InputGrad.apply(gy, values, crow, col, shape)
    return torch.ops.curvkern.sparse_conv1x1_input_grad(gy, values, crow, col, shape)


def _sddmm(
    gy: Tensor, x: Tensor, crow: Tensor, col: Tensor, shape: list[int], block: list[int]
) -> Any:
    if wanted(gy, x):
        return _Sddmm.apply(gy, x, crow, col, shape, block)
    return torch.ops.curvkern.sparse_conv1x1_sddmm(gy, x, crow, col, shape, block, col.shape[0])


def sddmm(
    gy: Tensor, x: Tensor, crow: Tensor, col: Tensor, shape: list[int], block: list[int]
) -> Tensor:
    """The sum over the batch of gy x^T at the pattern, with derivatives."""
    if _runtime.backend() == "reference":
        return reference.sddmm(gy, x, crow, col, block)
    if torch.compiler.is_dynamo_compiling():
        from .. import _compile  # noqa: F401
    result: Tensor = _sddmm(gy, x, crow, col, shape, block)
    return result


def block_of(values: Tensor) -> list[int]:
    """The block that values of a matrix have."""
    return list(values.shape[1:]) or [1, 1]


def added(*terms: Tensor | None) -> Tensor | None:
    """The sum of those that are there."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def primals(ctx: Any) -> Any:
    """What a jvp works with: inputs stripped of the tangents of its own level only."""
    return tuple(
        None if t is None else forward_ad.unpack_dual(t, level=0).primal
        for t in ctx.saved_tensors
    )


def one_by_one(call: Callable[..., Tensor], info: Any, in_dims: Any, *inputs: Any) -> Any:
    """The vmap rule of a call that cannot be made for many sets of weights at once."""

    def element(value: Any, dim: Any, i: int) -> Any:  # lists have a list of dimensions
        return value.select(dim, i) if isinstance(dim, int) else value

    results = [
        call(*(element(v, d, i) for v, d in zip(inputs, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    return torch.stack(results), 0


def folded(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension made part of the batch."""
    if dim is None:
        return tensor.expand(size, *tensor.shape).flatten(0, 1)
    return tensor.movedim(dim, 0).flatten(0, 1)


def unfolded(result: Tensor, size: int) -> Any:
    return result.unflatten(0, (size, result.shape[0] // size)), 0


class _Conv(torch.autograd.Function):
    """y = act(W(v) x + bias + residual), of an activation in FUSED."""

    @staticmethod
    def forward(
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        crow: Tensor,
        col: Tensor,
        shape: list[int],
        activation: str,
    ) -> Any:
        return torch.ops.curvkern.sparse_conv1x1(
            x, values, bias, residual, crow, col, shape, activation, "auto", False
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, values, _, _, crow, col, ctx.shape, ctx.activation = inputs
        y = None if ctx.activation == "none" else output
        ctx.save_for_backward(x, values, crow, col, y)
        ctx.save_for_forward(x, values, crow, col, y)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        found: list[Tensor | None] = [None] * 4
        if grad is None:
            return (*found, *[None] * 4)
        x, values, crow, col, y = ctx.saved_tensors
        wants = ctx.needs_input_grad
        grad = grad if y is None else times_slope(ctx.activation, grad, y)
        if wants[0]:
            found[0] = _input_grad(grad, values, crow, col, ctx.shape)
        if wants[1]:
            found[1] = _sddmm(grad, x, crow, col, ctx.shape, block_of(values))
        if wants[2]:
            found[2] = grad.sum((0, 2))
        if wants[3]:
            found[3] = grad
        return (*found, *[None] * 4)

    @staticmethod
    def jvp(
        ctx: Any,
        dx: Tensor | None,
        dvalues: Tensor | None,
        dbias: Tensor | None,
        dresidual: Tensor | None,
        *_: None,
    ) -> Any:
        with _autograd._forward_mode():
            x, values, crow, col, y = primals(ctx)
            tangent = added(
                None if dx is None else _linear(dx, values, crow, col, ctx.shape),
                None if dvalues is None else _linear(x, dvalues, crow, col, ctx.shape),
                dresidual,
            )
            if dbias is not None:
                column = dbias[:, None]
                tangent = (
                    column.expand(x.shape[0], len(dbias), x.shape[2])
                    if tangent is None
                    else tangent + column
                )
            if tangent is None or y is None:
                return tangent
            return times_slope(ctx.activation, tangent, y)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        x, values, bias, residual, crow, col, shape, activation = inputs
        if in_dims[1] is not None or in_dims[2] is not None or in_dims[4:6] != (None, None):

            def call(*inputs: Any) -> Tensor:
                gate: Any = _conv1x1
                result: Tensor = gate(*inputs, "auto", False)
                return result

            return one_by_one(call, info, in_dims, *inputs)
        x = folded(x, in_dims[0], info.batch_size)
        if residual is not None:
            residual = folded(residual, in_dims[3], info.batch_size)
        y = _conv1x1(x, values, bias, residual, crow, col, shape, activation, "auto", False)
        return unfolded(y, info.batch_size)


class _InputGrad(torch.autograd.Function):
    """W(v)^T g."""

    @staticmethod
    def forward(gy: Tensor, values: Tensor, crow: Tensor, col: Tensor, shape: list[int]) -> Any:
        return torch.ops.curvkern.sparse_conv1x1_input_grad(gy, values, crow, col, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.shape = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gy, values, crow, col = ctx.saved_tensors
        return (
            _linear(grad, values, crow, col, ctx.shape) if ctx.needs_input_grad[0] else None,
            _sddmm(gy, grad, crow, col, ctx.shape, block_of(values))
            if ctx.needs_input_grad[1]
            else None,
            *[None] * 3,
        )

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor | None, dvalues: Tensor | None, *_: None) -> Any:
        with _autograd._forward_mode():
            gy, values, crow, col = primals(ctx)
            return added(
                None if dgy is None else _input_grad(dgy, values, crow, col, ctx.shape),
                None if dvalues is None else _input_grad(gy, dvalues, crow, col, ctx.shape),
            )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        if in_dims[1] is not None or in_dims[2:4] != (None, None):
            return one_by_one(_input_grad, info, in_dims, *inputs)
        gy = folded(inputs[0], in_dims[0], info.batch_size)
        return unfolded(_input_grad(gy, *inputs[1:]), info.batch_size)


class _Sddmm(torch.autograd.Function):
    """(g x^T) at the pattern."""

    @staticmethod
    def forward(
        gy: Tensor, x: Tensor, crow: Tensor, col: Tensor, shape: list[int], block: list[int]
    ) -> Any:
        return torch.ops.curvkern.sparse_conv1x1_sddmm(
            gy, x, crow, col, shape, block, col.shape[0]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.shape, ctx.block = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gy, x, crow, col = ctx.saved_tensors
        return (
            _linear(x, grad, crow, col, ctx.shape) if ctx.needs_input_grad[0] else None,
            _input_grad(gy, grad, crow, col, ctx.shape) if ctx.needs_input_grad[1] else None,
            *[None] * 4,
        )

    @staticmethod
    def jvp(ctx: Any, dgy: Tensor | None, dx: Tensor | None, *_: None) -> Any:
        with _autograd._forward_mode():
            gy, x, crow, col = primals(ctx)
            rest = (crow, col, ctx.shape, ctx.block)
            return added(
                None if dgy is None else _sddmm(dgy, x, *rest),
                None if dx is None else _sddmm(gy, dx, *rest),
            )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return one_by_one(_sddmm, info, in_dims, *inputs)


def prepare(function: Any) -> None:
    """apply() asks for the signature at every call, see _autograd."""
    forward: Any = function.forward
    forward.__signature__ = signature(forward)


for _function in (_Conv, _InputGrad, _Sddmm):
    prepare(_function)


# An exported graph calls the bare operations, which would drop gradients without a word.
def _setup_conv(ctx: Any, inputs: Any, output: Any) -> None:
    x, values, bias, residual, crow, col, ctx.shape, ctx.activation = inputs[:8]
    ctx.save_for_backward(x, values, bias, residual, crow, col)


def _backward_conv(ctx: Any, grad: Tensor) -> Any:
    x, values, bias, residual, crow, col = ctx.saved_tensors
    if ctx.activation != "none":
        z = _conv1x1(x, values, bias, residual, crow, col, ctx.shape, "none", "auto", False)
        grad = times_slope(ctx.activation, grad, z)
    return (
        _input_grad(grad, values, crow, col, ctx.shape),
        _sddmm(grad, x, crow, col, ctx.shape, block_of(values)),
        None if bias is None else grad.sum((0, 2)),
        None if residual is None else grad,
        *[None] * 6,
    )


def _setup_sddmm(ctx: Any, inputs: Any, output: Any) -> None:
    _Sddmm.setup_context(ctx, inputs[:-1], output)


def _backward_sddmm(ctx: Any, grad: Tensor) -> Any:
    return (*_Sddmm.backward(ctx, grad), None)


for _name, _backward, _setup in (
    ("", _backward_conv, _setup_conv),
    ("_input_grad", _InputGrad.backward, _InputGrad.setup_context),
    ("_sddmm", _backward_sddmm, _setup_sddmm),
):
    torch.library.register_autograd(
        f"curvkern::sparse_conv1x1{_name}", _backward, setup_context=_setup, lib=_ops.library
    )

#: What torch.compile puts into its graphs unopened.
GATES = (_conv1x1, _input_grad, _sddmm)
