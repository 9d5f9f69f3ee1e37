"""The state of a window: a plain dict of tensors, numbers and strings, checked when loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FUNCTION = "SlidingWindowFisher.load_state_dict"
CONFIGURATION = ("d", "capacity", "normalize", "dtype", "block_size")


def checked(state: Any, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The state, or ValueError for one that does not fit or cannot be true."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{FUNCTION}: state must be a dict, got {type(state).__name__}")
    expected = {*CONFIGURATION, "damping", "head", "count", "window", "gram", "factor"}
    missing = sorted(expected - set(state))
    if missing:
        raise ValueError(f"{FUNCTION}: state lacks {', '.join(missing)}")
    for name in CONFIGURATION:
        if state[name] != configuration[name]:
            raise ValueError(
                f"{FUNCTION}: {name} is {state[name]!r} but the window's is "
                f"{configuration[name]!r}"
            )
    d, capacity = configuration["d"], configuration["capacity"]
    count = _integer(state, "count", 0, capacity)
    _integer(state, "head", 0, max(count - 1, 0))
    damping = state["damping"]
    if not isinstance(damping, float) or not 0 < damping < math.inf:
        raise ValueError(f"{FUNCTION}: damping must be positive and finite, got {damping!r}")
    window = _tensor(state, "window", (count, d))
    if str(window.dtype) != configuration["dtype"]:
        raise ValueError(
            f"{FUNCTION}: window is {window.dtype}, expected {configuration['dtype']}"
        )
    gram, factor = _tensor(state, "gram", (count, count), torch.float64), state["factor"]
    if factor is not None:
        _tensor(state, "factor", (count, count), torch.float64)
    for name in ("window", "gram", "factor"):
        if state[name] is not None and not bool(torch.isfinite(state[name]).all()):
            raise ValueError(f"{FUNCTION}: {name} must be finite")
    if not torch.equal(gram, gram.T) or bool((gram.diagonal() < 0).any()):
        raise ValueError(f"{FUNCTION}: gram must be symmetric, with squares on its diagonal")
    if factor is not None and not bool((factor.diagonal() > 0).all()):
        raise ValueError(f"{FUNCTION}: factor must have positive pivots")
    return dict(state)


def _integer(state: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = state[name]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(
            f"{FUNCTION}: {name} must be an integer in [{low}, {high}], got {value!r}"
        )
    return value


def _tensor(
    state: Mapping[str, Any], name: str, shape: tuple[int, ...], dtype: Any = None
) -> Tensor:
    value = state[name]
    if not isinstance(value, Tensor):
        raise ValueError(f"{FUNCTION}: {name} must be a tensor, got {type(value).__name__}")
    if tuple(value.shape) != shape or (dtype is not None and value.dtype is not dtype):
        raise ValueError(
            f"{FUNCTION}: {name} must have shape {shape}"
            f"{'' if dtype is None else f' and dtype {dtype}'}, got {tuple(value.shape)}, "
            f"{value.dtype}"
        )
    return value
