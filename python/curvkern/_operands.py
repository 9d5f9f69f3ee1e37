"""What the operations refuse, said in Python.

A fake kernel has no binding that checks its tensors, and would put into a graph what the graph
then refuses. Kinds, order and texts are those of ``csrc/bind``; tests/test_ops_contract.py
holds the two together. Where a compiled call takes long, its Python side asks here as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64)


def floating(op: str, name: str, tensor: Tensor) -> None:
    """Refuse every dtype but float32 and float64."""
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32 or float64, got {_plain(tensor.dtype)}")


def float64(op: str, name: str, tensor: Tensor) -> None:
    """Refuse every dtype but float64."""
    floating(op, name, tensor)
    if tensor.dtype is not torch.float64:
        raise TypeError(f"{op}: {name} must be float64")


def same_dtype(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two dtypes."""
    if tensor.dtype is not other.dtype:
        raise TypeError(
            f"{op}: {name} has dtype {_plain(tensor.dtype)} "
            f"but {other_name} has dtype {_plain(other.dtype)}"
        )


def same_shape(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two shapes, also such as would broadcast."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{op}: {name} has shape {tuple(tensor.shape)} "
            f"but {other_name} has shape {tuple(other.shape)}"
        )


def alike(op: str, first_name: str, first: Tensor, name: str, second: Tensor) -> None:
    """Two floating tensors of one dtype and shape, as the elementwise operations take them."""
    floating(op, first_name, first)
    floating(op, name, second)
    same_dtype(op, name, second, first_name, first)
    same_shape(op, name, second, first_name, first)


def dimensions(op: str, name: str, tensor: Tensor, count: int) -> None:
    """Refuse a floating tensor of another rank."""
    floating(op, name, tensor)
    if tensor.dim() != count:
        raise ValueError(f"{op}: {name} must have {count} dimensions, got {tensor.dim()}")


def has_shape(op: str, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Refuse another shape."""
    if tuple(tensor.shape) != tuple(shape):
        expected, got = (", ".join(map(str, sizes)) for sizes in (shape, tensor.shape))
        raise ValueError(f"{op}: {name} must have shape ({expected}), got ({got})")


def shaped(op: str, name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    """Refuse a tensor that is not float64 of this shape; None is legal."""
    if tensor is not None:
        floating(op, name, tensor)
        has_shape(op, name, tensor, shape)
        float64(op, name, tensor)


def rows(op: str, name: str, tensor: Tensor) -> None:
    """Refuse rows without entries, and a tensor without rows."""
    floating(op, name, tensor)
    if tensor.dim() == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"{op}: {name} has empty rows")


def at_least(op: str, name: str, number: int, least: int) -> None:
    """Refuse a smaller number."""
    if number < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {number}")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
