"""What the Fisher objects refuse."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _mfac
from .._arguments import check_layout, from_array, to_float
from .._autograd import derivative_wanted

HALVES = (torch.float16, torch.bfloat16)


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
    if value >= 1 << 63:
        raise ValueError(f"{function}: {name} is too large, got {value}")
    return int(value)


def index(function: str, name: str, value: Any, size: int) -> int:
    """An index below a size; IndexError for another."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{function}: {name} must be an integer, got {type(value).__name__}")
    if not 0 <= value < size:
        raise IndexError(f"{function}: {name} must be in [0, {size}), got {value}")
    return int(value)


def indices(function: str, name: str, value: Any, size: int, ndim: int | None = None) -> Tensor:
    """A tensor of integers below a size; IndexError for others."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(value).__name__}")
    kind = value.dtype
    if kind.is_floating_point or kind.is_complex or kind is torch.bool:
        raise TypeError(f"{function}: {name} must be integers, got {kind}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(
            f"{function}: {name} must have {ndim} dimension, got shape {tuple(value.shape)}"
        )
    value = value.long()  # uint8 would be a mask
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
        value = from_array(function, name, value)
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


def output(function: str, out: Any, v: Tensor) -> None:
    """Refuse what cannot take the result for v."""
    if not isinstance(out, Tensor):
        raise TypeError(f"{function}: out must be a tensor, got {type(out).__name__}")
    if out.dtype is not v.dtype:
        raise TypeError(f"{function}: out must be {v.dtype} as v, got {out.dtype}")
    if out.shape != v.shape or out.device != v.device:
        raise ValueError(
            f"{function}: out must have shape {tuple(v.shape)} on {v.device} as v, "
            f"got {tuple(out.shape)} on {out.device}"
        )
    if derivative_wanted(v) or (torch.is_grad_enabled() and out.requires_grad):
        raise RuntimeError(
            f"{function}: out does not go together with derivatives; leave it out, or detach v"
        )


def wide(v: Tensor) -> Tensor:
    """float32 for a half, else as it is."""
    return v.float() if v.dtype in HALVES else v


def storable(window: Tensor, row: Tensor) -> bool:
    """Whether a row (1, d) and its square are finite, also once rounded to the storage."""
    if not _mfac.is_finite(window, wide(row)):
        return False
    if window.dtype is not torch.float64 or row.dtype is not torch.float64:
        return True  # squares of other dtypes have room
    return math.isfinite(float(row.square().sum()))
