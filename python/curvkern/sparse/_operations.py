"""``torch.ops.curvkern`` of sparse 1 x 1 convolutions and of their two derivatives.

An image is a matrix of channels by pixels here, x of shape (B, K, P). A matrix is given by the
parts of a compressed tensor: values of shape (nnz,), or (nnz, r, c) by blocks, and two indices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ops, _runtime
from .._arguments import memory_error
from ..reference import sparseconv as reference
from . import _execution, _operands
from ._patterns import lookup


def contiguous(*tensors: Tensor | None) -> Any:
    """Contiguous tensors; None stays."""
    _runtime.spare_forked_child()
    return tuple(None if t is None else _ops._contiguous(t) for t in tensors)


def compiled(tensor: Tensor) -> bool:
    """Whether kernels are to be used."""
    return _runtime.compiled(tensor.device)


def define(
    schema: str, native: Callable[..., Tensor], fake: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """An operation whose implementation chooses by device, and reports a lack of memory."""
    name = schema.partition("(")[0]

    def implementation(*arguments: Any) -> Tensor:
        try:
            if torch.is_autocast_enabled(arguments[0].device.type):
                with torch.autocast(arguments[0].device.type, enabled=False):
                    return native(*arguments)
            return native(*arguments)
        except RuntimeError as error:
            raise memory_error(name, arguments[0].shape, error, "the result for x") from None

    _ops.define(schema, cpu=implementation, cuda=implementation, fake=fake)
    return implementation


def _conv1x1(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    crow: Tensor,
    col: Tensor,
    shape: Sequence[int],
    activation: str,
    variant: str,
    frozen: bool,
) -> Tensor:
    _operands.conv1x1("sparse_conv1x1", x, values, bias, residual, crow, col, shape, activation)
    entry = lookup(crow, col, values.shape[1:] or (1, 1), shape)
    x, values, bias, residual = contiguous(x, values, bias, residual)
    if not (compiled(x) and x.numel() and values.numel() and shape[0]):
        crow, col = crow.to(x.device), col.to(x.device)
        return reference.conv1x1(x, crow, col, values, shape, bias, residual, activation)
    operands = (x, bias, residual, activation)
    return _execution.run(entry, values, operands, variant, frozen)


def _conv1x1_fake(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    crow: Tensor,
    col: Tensor,
    shape: Sequence[int],
    activation: str,
    variant: str,
    frozen: bool,
) -> Tensor:
    _operands.conv1x1("sparse_conv1x1", x, values, bias, residual, crow, col, shape, activation)
    return x.new_empty(x.shape[0], shape[0], x.shape[2])


conv1x1 = define(
    "sparse_conv1x1(Tensor x, Tensor values, Tensor? bias, Tensor? residual, Tensor crow, "
    "Tensor col, int[] shape, str activation, str variant, bool frozen) -> Tensor",
    _conv1x1,
    _conv1x1_fake,
)


def _check_input_grad(
    gy: Tensor, values: Tensor, crow: Tensor, col: Tensor, shape: Sequence[int]
) -> None:
    op = "sparse_conv1x1_input_grad"
    _operands.ranked(op, "gy", gy, 3)
    _operands.matrix(op, values, crow, col, shape)
    _operands.same_dtype(op, "values", values, "gy", gy)
    _operands.same_device(op, "values", values, "gy", gy)
    _operands.channels(op, "gy", gy, shape[0])


def _input_grad(
    gy: Tensor, values: Tensor, crow: Tensor, col: Tensor, shape: Sequence[int]
) -> Tensor:
    _check_input_grad(gy, values, crow, col, shape)
    entry = lookup(crow, col, values.shape[1:] or (1, 1), shape)
    gy, values = contiguous(gy, values)
    if not (compiled(gy) and gy.numel() and values.numel() and shape[1]):
        return reference.conv1x1_input_grad(gy, crow, col, values, shape)
    return _execution.kernels(gy).conv1x1_input_grad(gy, entry.pattern, values)


def _input_grad_fake(
    gy: Tensor, values: Tensor, crow: Tensor, col: Tensor, shape: Sequence[int]
) -> Tensor:
    _check_input_grad(gy, values, crow, col, shape)
    return gy.new_empty(gy.shape[0], shape[1], gy.shape[2])


define(
    "sparse_conv1x1_input_grad(Tensor gy, Tensor values, Tensor crow, Tensor col, int[] shape)"
    " -> Tensor",
    _input_grad,
    _input_grad_fake,
)


def _check_sddmm(
    gy: Tensor,
    x: Tensor,
    crow: Tensor,
    col: Tensor,
    shape: Sequence[int],
    block: Sequence[int],
    nnz: int,
) -> Tensor:
    """Empty values of the shape that comes out."""
    op = "sparse_conv1x1_sddmm"
    _operands.ranked(op, "gy", gy, 3)
    _operands.ranked(op, "x", x, 3)
    _operands.same_dtype(op, "x", x, "gy", gy)
    _operands.same_device(op, "x", x, "gy", gy)
    _operands.at_least(op, "nnz", nnz, 0)
    _operands.blocks(op, crow, col, shape, block, nnz, gy)
    _operands.channels(op, "gy", gy, shape[0])
    _operands.channels(op, "x", x, shape[1])
    for name, dim in (("batch", 0), ("number of pixels", 2)):
        if gy.shape[dim] != x.shape[dim]:
            raise ValueError(
                f"{op}: x must have the {name} of gy, {gy.shape[dim]}, got {x.shape[dim]}"
            )
    return gy.new_empty(nnz) if tuple(block) == (1, 1) else gy.new_empty(nnz, *block)


def _sddmm(
    gy: Tensor,
    x: Tensor,
    crow: Tensor,
    col: Tensor,
    shape: Sequence[int],
    block: Sequence[int],
    nnz: int,
) -> Tensor:
    values = _check_sddmm(gy, x, crow, col, shape, block, nnz)
    entry = lookup(crow, col, block, shape)
    gy, x = contiguous(gy, x)
    if not (compiled(x) and gy.numel() and x.numel() and values.numel()):
        return reference.sddmm(gy, x, crow, col, block)
    return _execution.kernels(x).sddmm(gy, x, entry.pattern)


define(
    "sparse_conv1x1_sddmm(Tensor gy, Tensor x, Tensor crow, Tensor col, int[] shape, "
    "int[] block, int nnz) -> Tensor",
    _sddmm,
    _check_sddmm,
)
