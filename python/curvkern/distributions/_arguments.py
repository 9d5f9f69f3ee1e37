"""What the laws on the sphere accept: constraints and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

HALVES = (torch.float16, torch.bfloat16)
Shape = Sequence[int]


class UnitVector(constraints.Constraint):
    """Vectors of norm one, to the rounding a user's own normalisation leaves."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        wide = value.float() if value.dtype in HALVES else value
        tolerance = 2e-2 if value.dtype in HALVES else 1e-5
        return ((wide * wide).sum(-1).sqrt() - 1).abs() <= tolerance


class FiniteNonnegative(constraints.Constraint):
    """Numbers in [0, inf)."""

    def check(self, value: Tensor) -> Tensor:
        return (value >= 0) & torch.isfinite(value)


unit_vector = UnitVector()
finite_nonnegative = FiniteNonnegative()


def require_floating(owner: str, **tensors: Any) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{owner}: {name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(
                f"{owner}: {name} must be a real floating tensor, got {tensor.dtype}"
            )


def require_dim(owner: str, dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"{owner}: dim must be an integer, got {type(dim).__name__}")
    if dim < 2:
        raise ValueError(f"{owner}: dim must be at least 2, got {dim}")
    return int(dim)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype data of this dtype is worked on in."""
    return torch.float32 if dtype in HALVES else dtype
