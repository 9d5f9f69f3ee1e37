"""What the laws on the sphere accept: constraints and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from .._arguments import check_layout
from .._masks import all_of

HALVES = (torch.float16, torch.bfloat16)
Shape = Sequence[int]


# torch prints the name of a constraint's class without its first character.
class _UnitVector(constraints.Constraint):
    """Vectors of norm one, to the rounding a user's own normalisation leaves."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        wide = value.float() if value.dtype in HALVES else value
        tolerance = 2e-2 if value.dtype in HALVES else 1e-5
        return ((wide * wide).sum(-1).sqrt() - 1).abs() <= tolerance


class _FiniteNonnegative(constraints.Constraint):
    """Numbers in [0, inf)."""

    def check(self, value: Tensor) -> Tensor:
        return (value >= 0) & torch.isfinite(value)


unit_vector = _UnitVector()
finite_nonnegative = _FiniteNonnegative()


def require_unit_vectors(owner: str, name: str, value: Tensor) -> None:
    valid = unit_vector.check(value)
    if all_of(valid) is False:
        norm = torch.linalg.vector_norm(value[~valid][0].double()).item()
        raise ValueError(
            f"{owner}: {name} must hold unit vectors, got one of norm {norm:g}; "
            f"normalise {name} first"
        )


def require_finite_nonnegative(owner: str, name: str, value: Tensor) -> None:
    valid = finite_nonnegative.check(value)
    if all_of(valid) is False:
        got = value[~valid][0].item()
        raise ValueError(f"{owner}: {name} must be non-negative and finite, got {got:g}")


def require_point(law: Distribution, value: Any) -> None:
    """That the density of the law can be evaluated at `value`."""
    owner = f"{type(law).__name__}.log_prob"
    require_floating(owner, value=value)
    shape = law.batch_shape + law.event_shape
    if value.shape[-1:] != law.event_shape or _broadcast(value.shape, shape) is None:
        raise ValueError(
            f"{owner}: value has shape {tuple(value.shape)} but the law has batch and event "
            f"shape {tuple(shape)}"
        )
    if law._validate_args:
        require_unit_vectors(owner, "value", value)


def require_floating(owner: str, **tensors: Any) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{owner}: {name} must be a tensor, got {type(tensor).__name__}")
        check_layout(owner, name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(
                f"{owner}: {name} must be a real floating tensor, got {tensor.dtype}"
            )


def as_shape(owner: str, name: str, shape: Any) -> torch.Size:
    try:
        size = torch.Size(shape)
    except (TypeError, OverflowError):
        raise TypeError(
            f"{owner}: {name} must be a sequence of integers, such as (5,), got {shape!r}"
        ) from None
    if any(n < 0 for n in size):
        raise ValueError(f"{owner}: {name} must be non-negative, got {tuple(size)}")
    if any(n >= 2**63 for n in size):
        raise ValueError(f"{owner}: {name} is too large, got {tuple(size)}")
    return size


def expanded_shape(law: Distribution, batch_shape: Any) -> torch.Size:
    owner = f"{type(law).__name__}.expand"
    size = as_shape(owner, "batch_shape", batch_shape)
    if _broadcast(law.batch_shape, size) != size:
        raise ValueError(
            f"{owner}: batch_shape is {tuple(size)}, to which a law of batch shape "
            f"{tuple(law.batch_shape)} does not expand"
        )
    return size


def _broadcast(*shapes: torch.Size) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return None


def require_dim(owner: str, dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"{owner}: dim must be an integer, got {type(dim).__name__}")
    if dim < 2:
        raise ValueError(f"{owner}: dim must be at least 2, got {dim}")
    return int(dim)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype data of this dtype is worked on in."""
    return torch.float32 if dtype in HALVES else dtype
