"""States of the Hutchinson family: checked when loaded, copied, in their dtypes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import _hutchinson
from . import _shards

COUNTS = ("step", "refreshes")  # of a parameter: steps, and those with new products


def checked_numbers(name: str, state_dict: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a state, which have to be those that the optimizer has."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"{name}: state_dict must be a dict, got {type(state_dict).__name__}")
    saved = state_dict.get("hutchinson")
    if not isinstance(saved, Mapping) or saved.keys() != own.keys():
        raise ValueError(
            f"{name}: state_dict must have 'hutchinson' with {', '.join(own)}; it is not one "
            "of this optimizer"
        )
    for key in ("seed", "step"):
        value = saved[key]
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise ValueError(f"{name}: {key} of state_dict must be in [0, 2^63), got {value!r}")
    for key in saved.keys() - {"seed", "step"}:
        value = saved[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{name}: {key} of state_dict must be positive, got {value!r}")
        if math.isinf(value) and math.isfinite(own[key]):
            raise ValueError(f"{name}: {key} of state_dict must be finite, got {value!r}")
    return dict(saved)


def restore(
    name: str,
    optimizer: Optimizer,
    state_dict: Mapping[str, Any],
    buffers: Sequence[str],
    kept: Sequence[str],
) -> None:
    """Check each parameter's state and take its tensors over as they were saved.

    There may be all ``buffers``, and have to be those that this optimizer has ``kept``.
    ``Optimizer.load_state_dict`` casts them to the parameter's dtype, which bfloat16's are not
    of, and shares their memory.
    """
    numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for number, p in zip(numbers, params, strict=True):
        saved = state_dict["state"].get(number)
        if not saved:
            continue
        if not isinstance(saved, Mapping):
            raise ValueError(f"{name}: state of a parameter must be a dict")
        unknown = [key for key in saved if key not in (*COUNTS, *buffers)]
        if unknown:
            raise ValueError(f"{name}: a parameter's state has an unknown {unknown[0]!r}")
        missing = [key for key in (*COUNTS, *kept) if key not in saved]
        if missing:
            raise ValueError(f"{name}: a parameter's state lacks {', '.join(missing)}")
        steps, refreshes = (saved[key] for key in COUNTS)
        if type(steps) is not int or type(refreshes) is not int:
            raise ValueError(f"{name}: {' and '.join(COUNTS)} of a parameter must be counts")
        if not 1 <= refreshes <= steps < 1 << 63:
            raise ValueError(
                f"{name}: a parameter must have 1 <= refreshes <= step < 2^63, got "
                f"{refreshes} and {steps}"
            )
        tensors = {
            key: _checked(name, key, value, p)
            for key, value in saved.items()
            if key not in COUNTS
        }
        optimizer.state[p] = {"step": steps, "refreshes": refreshes, **tensors}


def _checked(name: str, key: str, value: Any, p: Tensor) -> Tensor:
    """A copy, in the dtype of states of p."""
    if not isinstance(value, Tensor) or value.shape != p.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else value
        raise ValueError(f"{name}: {key} must have shape {tuple(p.shape)}, got {shape}")
    if value.layout is not torch.strided or not value.is_floating_point():
        raise ValueError(
            f"{name}: {key} must be dense and real, got {value.dtype} of layout {value.layout}"
        )
    if not _hutchinson.is_finite([_shards.local(value)]):
        raise ValueError(f"{name}: {key} of state_dict must be finite")
    dtype = _hutchinson.state_dtype(p.dtype)
    return value.detach().to(device=p.device, dtype=dtype, copy=True)
