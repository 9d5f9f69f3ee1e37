"""The state of a window: a plain dict of tensors, numbers and strings, checked when loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FUNCTION = "SlidingWindowFisher.load_state_dict"
TOLERANCE = 1e-9  # relative; rounding of sums of 2^40 products, or of a factor, is far below
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
        same = isinstance(state[name], type(configuration[name]))
        if not same or state[name] != configuration[name]:
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
        raise ValueError(f"{FUNCTION}: gram must be symmetric, with a diagonal not below 0")
    if factor is not None and not bool((factor.diagonal() > 0).all()):
        raise ValueError(f"{FUNCTION}: factor must have a positive diagonal")
    return dict(state)


def check_gram(window: Tensor, gram: Tensor) -> None:
    """Refuse products that are not those of the rows, by those with one vector; O(d m)."""
    probe = _probe(len(gram))
    ops, slots = torch.ops.curvkern, list(range(len(gram)))
    combined = ops.mfac_combine(window, slots, probe.to(window.device), 0.0, None, True)
    found = ops.mfac_products(window, slots, combined).cpu()
    norms = gram.diagonal().sqrt()
    if not _near(found, probe @ gram, norms):
        raise ValueError(f"{FUNCTION}: gram must be the products of the rows of window")


def check_factor(factor: Tensor, gram: Tensor, shift: float) -> None:
    """Refuse a factor that is not that of ``shift I + gram``; O(m^2)."""
    probe, U = _probe(len(gram)), factor.triu()
    norms = (gram.diagonal() + shift).sqrt()
    if not _near(probe @ U.T @ U, probe @ gram + shift * probe, norms):
        raise ValueError(f"{FUNCTION}: factor must be that of gram and damping")


def _probe(count: int) -> Tensor:
    """Numbers (1, count) without a pattern."""
    return torch.cos(torch.arange(1, count + 1, dtype=torch.float64))[None]


def _near(x: Tensor, y: Tensor, norms: Tensor) -> bool:
    """Sums of products of rows of such norms, up to rounding."""
    return bool(((x - y).abs() <= TOLERANCE * norms * norms.sum()).all())


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
    if value.layout is not torch.strided or value.is_meta:
        raise ValueError(
            f"{FUNCTION}: {name} must be dense and hold data, got layout {value.layout} on "
            f"{value.device}"
        )
    if tuple(value.shape) != shape or (dtype is not None and value.dtype is not dtype):
        raise ValueError(
            f"{FUNCTION}: {name} must have shape {shape}"
            f"{'' if dtype is None else f' and dtype {dtype}'}, got {tuple(value.shape)}, "
            f"{value.dtype}"
        )
    return value
