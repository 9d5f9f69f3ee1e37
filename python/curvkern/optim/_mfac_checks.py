"""What the M-FAC optimizer refuses: settings out of range, and states that cannot be true."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "lr": ("finite and not negative", lambda x: 0 <= x < math.inf),
    "momentum": ("in [0, 1)", lambda x: 0 <= x < 1),
    "weight_decay": ("finite and not negative", lambda x: 0 <= x < math.inf),
    "damping": ("positive and finite", lambda x: 0 < x < math.inf),
}
LEAST = {"window": 1, "warmup": 0}
SWITCHES = ("decoupled_weight_decay", "maximize")


def check_settings(settings: Mapping[str, Any]) -> None:
    """A param group has every setting, within its range."""
    missing = {*RANGES, *LEAST, *SWITCHES, "window_dtype"} - settings.keys()
    if missing:
        raise ValueError(f"MFAC: a param group lacks {', '.join(sorted(missing))}")
    for name, (wanted, holds) in RANGES.items():
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
            raise TypeError(f"MFAC: {name} must be a number, got {type(value).__name__}")
        if isinstance(value, Tensor) and (value.numel() != 1 or name != "lr"):
            raise TypeError(f"MFAC: {name} must be a number, got shape {tuple(value.shape)}")
        if not holds(float(value)):
            raise ValueError(f"MFAC: {name} must be {wanted}, got {float(value)}")
    for name, least in LEAST.items():
        value = settings[name]
        if type(value) is not int:
            raise TypeError(f"MFAC: {name} must be an int, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"MFAC: {name} must be at least {least}, got {value}")
    for name in SWITCHES:
        if not isinstance(settings[name], bool):
            raise TypeError(f"MFAC: {name} must be a bool, got {type(settings[name]).__name__}")
    if settings["window_dtype"] not in DTYPES:
        raise TypeError(
            "MFAC: window_dtype must be torch.float32, float64 or bfloat16, "
            f"got {settings['window_dtype']}"
        )


def check_state(state: Any, count: int) -> None:
    """The frame of a state for so many parameters; torch and the windows check their own."""
    if not isinstance(state, Mapping):
        raise TypeError(f"MFAC: state_dict must be a dict, got {type(state).__name__}")
    for name, kind in (("state", Mapping), ("param_groups", list), ("windows", list)):
        if not isinstance(state.get(name), kind):
            raise ValueError(f"MFAC: state_dict has no {kind.__name__.lower()} {name!r}")
    known = []
    for group in state["param_groups"]:
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list):
            raise ValueError("MFAC: a param group of state_dict has no list 'params'")
        known += group["params"]
    _distinct(known, "param groups")
    strange = [key for key in state["state"] if key not in known]
    if strange:
        raise ValueError(f"MFAC: state_dict has state of {strange[0]!r}, which is no parameter")
    numbers: list[int] = []
    for entry in state["windows"]:
        numbers += _window_params(entry, count)
    _distinct(numbers, "windows")


def check_momentum(state: Any, shape: torch.Size) -> Tensor:
    """The momentum in the state of one parameter."""
    momentum = state.get("momentum_buffer") if isinstance(state, Mapping) else None
    if (
        not isinstance(momentum, Tensor)
        or momentum.layout is not torch.strided
        or momentum.shape != shape
        or len(state) > 1
    ):
        raise ValueError(
            f"MFAC: state_dict must hold one momentum_buffer of shape {tuple(shape)} for "
            "a parameter, and nothing else"
        )
    if not bool(torch.isfinite(momentum).all()):
        raise ValueError("MFAC: momentum_buffer of state_dict must be finite")
    return momentum


def _window_params(entry: Any, count: int) -> list[int]:
    """The parameters of a window, by number."""
    if not isinstance(entry, Mapping) or not {"params", "steps", "fisher"} <= entry.keys():
        raise ValueError("MFAC: a window of state_dict must have params, steps and fisher")
    numbers, steps = entry["params"], entry["steps"]
    if not (isinstance(numbers, list) and numbers):
        raise ValueError("MFAC: a window of state_dict must list its params")
    for i in numbers:
        if type(i) is not int or not 0 <= i < count:
            raise ValueError(
                f"MFAC: a window of state_dict has parameter {i!r}, expected 0 to {count - 1}"
            )
    if type(steps) is not int or steps < 0:
        raise ValueError(f"MFAC: steps of state_dict must not be negative, got {steps!r}")
    return numbers


def _distinct(numbers: list[Any], where: str) -> None:
    if len(set(map(repr, numbers))) < len(numbers):
        raise ValueError(f"MFAC: {where} of state_dict share a parameter")
