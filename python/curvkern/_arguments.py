"""From what a user passes to what an elementwise operation takes."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Computed in float32 and rounded at the end.
HALVES = (torch.float16, torch.bfloat16)


def elementwise(
    function: str, compute: Callable[[Tensor, Tensor], Tensor], v: Any, x: Any
) -> Any:
    """Apply ``compute`` to ``v`` and ``x`` after broadcasting and promoting them.

    ``compute`` gets two tensors of one shape and device, both float32 or both float64. NumPy
    arrays and numbers without any tensor give a NumPy result.
    """
    if not (isinstance(v, Tensor) or isinstance(x, Tensor)):
        result = elementwise(
            function, compute, _as_tensor(function, "v", v), _as_tensor(function, "x", x)
        )
        return result.numpy()[()]

    v, x = checked(function, "v", v), checked(function, "x", x)
    dtype = _result_dtype(function, v, x)
    work = torch.float32 if dtype in HALVES else dtype
    v, x = _broadcast(function, *_one_device(function, v, x, work))
    try:
        result = compute(v, x)
    except RuntimeError as error:
        raise memory_error(function, v.shape, error) from None
    return result if work is dtype else result.to(dtype)


def _as_tensor(function: str, name: str, value: Any) -> Tensor:
    """A NumPy array or number as a tensor; integers become float64, as they do in NumPy."""
    if not isinstance(value, (np.ndarray, np.generic, numbers.Real)):
        raise TypeError(
            f"{function}: {name} must be a tensor, a NumPy array or a real number, "
            f"got {type(value).__name__}"
        )
    _refuse_mask(function, name, value)
    if not isinstance(value, (np.ndarray, np.generic, bool)):
        value = to_float(function, name, value)
    array = np.asarray(value)
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{function}: {name} must be real and at most float64, got {array.dtype}"
        )
    # A copy in native byte order: read-only and negative strides are nothing torch can take.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def from_array(function: str, name: str, array: np.ndarray) -> Tensor:
    """A NumPy array as a tensor of its dtype, which shares its memory where torch can."""
    _refuse_mask(function, name, array)
    native = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be real and at most float64, got {array.dtype}"
        ) from None


def checked(function: str, name: str, value: Any) -> Tensor | float:
    """A tensor as it is or a number as a float, if it is of a kind that can stay beside one."""
    if isinstance(value, Tensor):
        check_layout(function, name, value)
        if value.dtype is torch.bool or value.dtype.is_complex:
            raise TypeError(f"{function}: {name} must be real, got {value.dtype}")
        return value
    if isinstance(value, (np.ndarray, np.generic)) and not isinstance(value, float):
        _refuse_mask(function, name, value)
        raise TypeError(
            f"{function}: {name} is a NumPy {type(value).__name__} beside a tensor; "
            "convert it with torch.as_tensor"
        )
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{function}: {name} must be a tensor or a real number, got {type(value).__name__}"
        )
    return to_float(function, name, value)


def check_layout(function: str, name: str, tensor: Tensor) -> None:
    if tensor.is_nested:
        raise TypeError(
            f"{function}: {name} has a nested layout, expected torch.strided; "
            "pass its .values() or .unbind()"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{function}: {name} has layout {tensor.layout}, expected torch.strided; "
            "call .to_dense() on it"
        )


def _refuse_mask(function: str, name: str, value: Any) -> None:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{function}: {name} is a masked array, whose mask would be lost; "
            "call .filled() or .compressed() on it"
        )


def to_float(function: str, name: str, value: Any) -> float:
    """A real number of any kind as a float."""
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{function}: {name} must be within the range of float64, got a number beyond it"
        ) from None


def memory_error(
    function: str, shape: Sequence[int], error: RuntimeError, what: str = "a result"
) -> Exception:
    """What to raise for an error of torch: it has no class of its own for lack of memory."""
    lacking = ("allocate memory", "calculation overflowed", "multiplication overflow")
    if any(words in str(error) for words in lacking):
        return MemoryError(f"{function}: {what} of shape {tuple(shape)} is too large")
    return error


def _result_dtype(function: str, v: Any, x: Any) -> torch.dtype:
    """``torch.result_type``, which torch.compile does not trace, for real arguments.

    A tensor with dimensions outranks a 0-d tensor, which outranks a number, unless only the
    lower one is floating.
    """
    low, high = sorted((v, x), key=_rank)
    if _rank(low) == _rank(high):
        dtype = torch.promote_types(v.dtype, x.dtype)
    elif high.dtype.is_floating_point or _rank(low) == 0:
        dtype = high.dtype
    else:
        dtype = low.dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        dtype = torch.get_default_dtype()
    if dtype not in (torch.float32, torch.float64, *HALVES):
        raise TypeError(
            f"{function}: expected float64, float32, float16, bfloat16 or integers, got {dtype}"
        )
    return dtype


def _rank(value: Any) -> int:
    return 1 + (value.ndim > 0) if isinstance(value, Tensor) else 0


def _one_device(function: str, v: Any, x: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both arguments as tensors of the dtype; numbers and 0-d CPU tensors follow the other."""
    if not isinstance(v, Tensor):
        v = torch.full((), v, dtype=torch.float64, device=x.device)
    if not isinstance(x, Tensor):
        x = torch.full((), x, dtype=torch.float64, device=v.device)
    if v.device != x.device:
        if v.ndim == 0 and v.device.type == "cpu":
            v = v.to(x.device)
        elif x.ndim == 0 and x.device.type == "cpu":
            x = x.to(v.device)
        else:
            raise ValueError(f"{function}: v is on {v.device} but x is on {x.device}")
    return (
        v if v.dtype is dtype else v.to(dtype),
        x if x.dtype is dtype else x.to(dtype),
    )


def _broadcast(function: str, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if v.shape == x.shape:
        return v, x
    try:
        shape = torch.broadcast_shapes(v.shape, x.shape)
    except RuntimeError:
        raise ValueError(
            f"{function}: v has shape {tuple(v.shape)} but x has shape {tuple(x.shape)}; "
            "they do not broadcast"
        ) from None
    try:
        return v.expand(shape), x.expand(shape)
    except RuntimeError as error:
        raise memory_error(function, shape, error) from None
