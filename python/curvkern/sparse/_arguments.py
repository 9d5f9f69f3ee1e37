"""From what a user passes to what the operations take."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._arguments import check_layout
from ._operands import ACTIVATIONS, one_of, plain, ranked, same_device

#: The largest stride, dilation and padding.
LONGEST = 2**31 - 1


def tensor(function: str, name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(value).__name__}")
    check_layout(function, name, value)
    return value


def activation_name(function: str, value: Any) -> str:
    one_of(function, "activation", value, ACTIVATIONS)
    name: str = value
    return name


def integer(function: str, name: str, value: Any, least: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be an integer, got {type(value).__name__}"
        ) from None
    if number < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {number}")
    return number


def step(function: str, name: str, value: Any, least: int) -> int:
    """A number of pixels of which any few make a 64-bit number."""
    number = integer(function, name, value, least)
    if number > LONGEST:
        raise ValueError(f"{function}: {name} is too large, at most {LONGEST}, got {number}")
    return number


def same(function: str, name: str, value: Any) -> int:
    """An integer, or a pair of equal ones, of at least 1."""
    if not isinstance(value, (tuple, list)):
        return step(function, name, value, 1)
    numbers = [step(function, name, entry, 1) for entry in value]
    if len(numbers) != 2 or numbers[0] != numbers[1]:
        raise ValueError(
            f"{function}: {name} must be an integer or two equal ones, got {tuple(value)}"
        )
    return numbers[0]


def padding_of(function: str, value: Any) -> list[int]:
    """(left, right, top, bottom) from one number, (vertical, horizontal), or all four."""
    if not isinstance(value, (tuple, list)):
        return [step(function, "padding", value, 0)] * 4
    numbers = [step(function, "padding", entry, 0) for entry in value]
    if len(numbers) == 2:
        return [numbers[1], numbers[1], numbers[0], numbers[0]]
    if len(numbers) != 4:
        raise ValueError(
            f"{function}: padding must be an integer, (vertical, horizontal) or "
            f"(left, right, top, bottom), got {len(numbers)} numbers"
        )
    return numbers


def image(function: str, value: Any) -> tuple[Tensor, bool]:
    """x as (B, C, H, W), and whether it had a batch."""
    x = tensor(function, "x", value)
    ranked(function, "x", x, 3, 4)
    return (x, True) if x.dim() == 4 else (x.unsqueeze(0), False)


def cast_together(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, halves beside wider tensors become as wide; else nothing is done."""
    there = [t for t in tensors if t is not None]
    kind = there[0].device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return tensors
    dtypes = {t.dtype for t in there if t.is_floating_point()}
    halves = {torch.bfloat16, torch.float16}
    wider = dtypes - halves
    if len(wider) != 1 or not dtypes & halves:
        return tensors
    (dtype,) = wider
    return tuple(t.to(dtype) if t is not None and t.dtype in halves else t for t in tensors)


def operand(
    function: str, name: str, value: Any, shape: Sequence[int], x: Tensor
) -> Tensor | None:
    """None, or a tensor of this shape, with the dtype and device of x."""
    if value is None:
        return None
    found = tensor(function, name, value)
    if tuple(found.shape) != tuple(shape):
        raise ValueError(
            f"{function}: {name} must have shape {tuple(shape)}, got {tuple(found.shape)}"
        )
    same_dtype_as_x(function, name, found, x)
    return found


def same_dtype_as_x(function: str, name: str, found: Tensor, x: Tensor) -> None:
    same_device(function, name, found, "x", x)
    if found.dtype is not x.dtype:
        raise TypeError(
            f"{function}: {name} has dtype {plain(found.dtype)} but x has dtype "
            f"{plain(x.dtype)}"
        )
