"""States of the Hutchinson family: checked when loaded, copied, in their dtypes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .. import _hutchinson


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
    for key, value in saved.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise ValueError(f"{name}: {key} of state_dict must be a number, got {value!r}")
    return dict(saved)


def restore(
    name: str, optimizer: Optimizer, state_dict: Mapping[str, Any], buffers: Sequence[str]
) -> None:
    """Check each parameter's state and take its tensors over as they were saved.

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
        state: dict[str, Any] = {}
        for key, value in saved.items():
            if key in ("step", "refreshes"):
                if type(value) is not int or value < 0:
                    raise ValueError(f"{name}: {key} must be a count, got {value!r}")
                state[key] = value
            elif key in buffers:
                if not isinstance(value, Tensor) or value.shape != p.shape:
                    shape = tuple(value.shape) if isinstance(value, Tensor) else value
                    raise ValueError(
                        f"{name}: {key} must have shape {tuple(p.shape)}, got {shape}"
                    )
                dtype = _hutchinson.state_dtype(p.dtype)
                state[key] = value.detach().to(device=p.device, dtype=dtype, copy=True)
            else:
                raise ValueError(f"{name}: a parameter's state has an unknown {key!r}")
        if not {"step", "refreshes"} <= state.keys():
            raise ValueError(f"{name}: a parameter's state lacks step or refreshes")
        optimizer.state[p] = state
