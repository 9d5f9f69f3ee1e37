"""What the convolutions refuse, in the same words for real, fake and meta tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._operands import at_least as at_least
from .._operands import has_shape as has_shape
from .._operands import same_dtype as same_dtype

ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish")
FLOATING = (torch.float32, torch.bfloat16, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def one_of(op: str, name: str, value: Any, choices: Sequence[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name} must be a string, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {value!r}")


def floating(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{op}: {name} must be float32, bfloat16 or float64, got {plain(tensor.dtype)}"
        )


def ranked(op: str, name: str, tensor: Tensor, *counts: int) -> None:
    """A floating tensor of one of these numbers of dimensions."""
    floating(op, name, tensor)
    if tensor.dim() not in counts:
        expected = " or ".join(map(str, counts))
        raise ValueError(f"{op}: {name} must have {expected} dimensions, got {tensor.dim()}")


def beside(
    op: str, name: str, tensor: Tensor | None, shape: Sequence[int], first: str, other: Tensor
) -> None:
    """None, or a tensor of this shape with the dtype and device of another."""
    if tensor is None:
        return
    floating(op, name, tensor)
    same_dtype(op, name, tensor, first, other)
    has_shape(op, name, tensor, shape)
    same_device(op, name, tensor, first, other)


def same_device(op: str, name: str, tensor: Tensor, first: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {first}, {other.device}, "
            f"got {tensor.device}"
        )


def index(op: str, name: str, tensor: Tensor, length: int, other: Tensor) -> None:
    """A vector of int32 or int64 of this length."""
    if tensor.dtype not in INTEGERS:
        raise TypeError(f"{op}: {name} must be int32 or int64, got {plain(tensor.dtype)}")
    has_shape(op, name, tensor, (length,))
    same_device(op, name, tensor, "x", other)


def blocks(
    op: str,
    crow: Tensor,
    col: Tensor,
    shape: Sequence[int],
    block: Sequence[int],
    count: int,
    other: Tensor,
) -> None:
    """The parts of a matrix in compressed rows; what its indices hold is not looked at."""
    for name, sizes, least in (("shape", shape, 0), ("block", block, 1)):
        if len(sizes) != 2:
            raise ValueError(f"{op}: {name} must have 2 entries, got {len(sizes)}")
        for size in sizes:
            at_least(op, name, size, least)
    if shape[0] % block[0] or shape[1] % block[1]:
        raise ValueError(
            f"{op}: shape must have multiples of the block {tuple(block)}, got {tuple(shape)}"
        )
    index(op, "crow", crow, shape[0] // block[0] + 1, other)
    index(op, "col", col, count, other)


def matrix(op: str, values: Tensor, crow: Tensor, col: Tensor, shape: Sequence[int]) -> None:
    """A matrix by its values, (nnz,) or (nnz, r, c), and its indices."""
    ranked(op, "values", values, 1, 3)
    block = tuple(values.shape[1:]) or (1, 1)
    blocks(op, crow, col, shape, block, values.shape[0], values)


def channels(op: str, name: str, tensor: Tensor, count: int) -> None:
    ranked(op, name, tensor, 3)
    if tensor.shape[1] != count:
        raise ValueError(f"{op}: {name} must have {count} channels, got {tensor.shape[1]}")


def conv1x1(
    op: str,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    crow: Tensor,
    col: Tensor,
    shape: Sequence[int],
    activation: str,
) -> None:
    ranked(op, "x", x, 3)
    matrix(op, values, crow, col, shape)
    same_dtype(op, "values", values, "x", x)
    same_device(op, "values", values, "x", x)
    channels(op, "x", x, shape[1])
    beside(op, "bias", bias, (shape[0],), "x", x)
    beside(op, "residual", residual, (x.shape[0], shape[0], x.shape[2]), "x", x)
    one_of(op, "activation", activation, ACTIVATIONS)


def window(
    op: str, stride: int, padding: Sequence[int], dilation: int, activation: str = "none"
) -> None:
    """How a filter moves."""
    at_least(op, "stride", stride, 1)
    at_least(op, "dilation", dilation, 1)
    if len(padding) != 4:
        raise ValueError(f"{op}: padding must have 4 entries, got {len(padding)}")
    for pad in padding:
        at_least(op, "padding", pad, 0)
    one_of(op, "activation", activation, ACTIVATIONS)


def output_size(
    op: str,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
) -> tuple[int, int]:
    """Height and width of what a filter of this size makes of an image."""
    left, right, top, bottom = padding
    found = []
    for length, before, after, k in zip(
        size, (top, left), (bottom, right), kernel, strict=True
    ):
        room = length + before + after - dilation * (k - 1) - 1
        if k < 1 or room < 0:
            raise ValueError(
                f"{op}: weight must have a kernel of at least 1 x 1 that fits into the padded "
                f"input of {length + before + after}, got {tuple(kernel)}"
            )
        found.append(room // stride + 1)
    return found[0], found[1]
