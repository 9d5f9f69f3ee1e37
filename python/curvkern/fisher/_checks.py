"""What the Fisher objects refuse."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _mfac
from .._arguments import _refuse_mask, check_layout, to_float
from .._autograd import derivative_wanted

HALVES = (torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32)


def positive(function: str, name: str, value: Any) -> float:
    """A positive finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{function}: {name} must be a real number, got {type(value).__name__}")
    number = to_float(function, name, value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{function}: {name} must be positive and finite, got {number}")
    return number


def count(function: str, name: str, value: Any, least: int = 1) -> int:
    """An integer of at least so much."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{function}: {name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {value}")
    return int(value)


def index(function: str, name: str, value: Any, size: int) -> int:
    """An index below a size; IndexError for another."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{function}: {name} must be an integer, got {type(value).__name__}")
    if not 0 <= value < size:
        raise IndexError(f"{function}: {name} must be in [0, {size}), got {value}")
    return int(value)


def indices(
    function: str, name: str, value: Any, size: int, *, ndim: int | None = None
) -> Tensor:
    """A tensor of integers below a size, (k,) if ``ndim`` is 1; IndexError for others."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in INTEGERS:
        raise TypeError(f"{function}: {name} must be int64 or int32, got {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(
            f"{function}: {name} has shape {tuple(value.shape)}, expected {ndim} dimension"
        )
    if value.numel() and not 0 <= int(value.min()) <= int(value.max()) < size:
        raise IndexError(
            f"{function}: {name} must be in [0, {size}), got {int(value.min())} to "
            f"{int(value.max())}"
        )
    return value.long()


def storage(function: str, dtype: Any) -> torch.dtype:
    """A dtype that a window can have."""
    if dtype not in _mfac.STORAGES:
        raise TypeError(
            f"{function}: dtype must be torch.float32, float64 or bfloat16, got {dtype}"
        )
    kind: torch.dtype = dtype
    return kind


def vector(function: str, name: str, value: Any, d: int, device: torch.device) -> Tensor:
    """A real tensor (d,) or (k, d) on the window's device; arrays become tensors."""
    if isinstance(value, np.ndarray):
        value = array(function, name, value)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}: {name} must be a tensor or a NumPy array, got {type(value).__name__}"
        )
    check_layout(function, name, value)
    if not value.dtype.is_floating_point or value.dtype.itemsize == 1:
        raise TypeError(
            f"{function}: {name} must be float64, float32, float16 or bfloat16, "
            f"got {value.dtype}"
        )
    if value.ndim not in (1, 2) or value.shape[-1] != d:
        raise ValueError(
            f"{function}: {name} has shape {tuple(value.shape)}, expected ({d},) or (k, {d})"
        )
    if value.device != device:
        raise ValueError(f"{function}: {name} is on {value.device} but the window on {device}")
    return value


def array(function: str, name: str, value: np.ndarray) -> Tensor:
    """A NumPy array as a tensor; copied where torch can't take it as it is."""
    _refuse_mask(function, name, value)
    if value.dtype.kind != "f" or value.dtype.itemsize > 8:
        raise TypeError(
            f"{function}: {name} must be float64, float32 or float16, got {value.dtype}"
        )
    native = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def result(function: str, out: Any, like: Tensor) -> Tensor:
    """A tensor that a result with the shape, dtype and device of another can go to."""
    if not isinstance(out, Tensor):
        raise TypeError(f"{function}: out must be a tensor, got {type(out).__name__}")
    check_layout(function, "out", out)
    if out.dtype is not like.dtype:
        raise TypeError(f"{function}: out is {out.dtype} but v is {like.dtype}")
    if out.shape != like.shape:
        raise ValueError(
            f"{function}: out has shape {tuple(out.shape)} but v has {tuple(like.shape)}"
        )
    if out.device != like.device:
        raise ValueError(f"{function}: out is on {out.device} but v on {like.device}")
    if derivative_wanted(like, out):
        raise RuntimeError(
            f"{function}: out does not go together with derivatives; leave it out, or detach "
            "out and v and call under no_grad()"
        )
    return out


def wide(v: Tensor) -> Tensor:
    """float32 for a half, else as it is."""
    return v.float() if v.dtype in HALVES else v


def finite(window: Tensor, row: Tensor) -> bool:
    """Whether a row (1, d) is finite, also once rounded to the window's storage."""
    return _mfac.is_finite(window, wide(row))
