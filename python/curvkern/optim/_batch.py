"""What a step knows of the parameters that take part in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _shards

Probes = Sequence[Sequence[Tensor | None]]


@dataclass
class Batch:
    """The parameters that have a gradient, and what a step knows of them.

    Products are of the first probe, then of the second, ..; none where the step looks at old
    curvature. Without z the probes are those of (seed, step). All tensors but ``whole`` are
    what this rank holds.
    """

    whole: list[Tensor]  # the optimizer's own
    params: list[Tensor]
    groups: list[dict[str, Any]]
    offsets: Each
    grads: list[Tensor]
    step: int
    scale: float = 1.0  # of gradients and products
    hz: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    loss: float | None = None
    own: list[dict[str, Any]] = field(default_factory=list)  # states, once they are known


class Each(list[int]):
    """A number for each parameter of a batch."""


def check_parameter(name: str, p: Tensor) -> None:
    """Refuse what no step can write to."""
    if not p.is_floating_point():
        raise TypeError(f"{name}: parameters must be real and floating, got {p.dtype}")
    if p.layout is not torch.strided:
        raise TypeError(f"{name}: parameters must be dense, got layout {p.layout}")
    if any(n > 1 and s == 0 for n, s in zip(p.shape, p.stride(), strict=True)):
        raise ValueError(
            f"{name}: elements of parameters must not share memory, got shape "
            f"{tuple(p.shape)} with strides {p.stride()}; clone it"
        )


def chosen(
    name: str, what: str, given: Probes, count: int, every: Sequence[Tensor], index: list[int]
) -> list[Tensor]:
    """Of given lists, one for each probe, the tensors of the parameters that take part."""
    if isinstance(given, Tensor) or len(given) != count:
        raise ValueError(
            f"{name}: {what} must be a list of {count} lists, one for each probe, "
            f"got {len(given)}"
        )
    found = []
    for one in given:
        if isinstance(one, Tensor) or len(one) != len(every):
            raise ValueError(
                f"{name}: {what} must have {len(every)} tensors for each probe, got {len(one)}"
            )
        found += [_checked(name, what, one[i], every[i]) for i in index]
    return found


def _checked(name: str, what: str, tensor: Any, p: Tensor) -> Tensor:
    """What this rank holds of it, without a graph, in the dtype of p."""
    if tensor is None:
        return torch.zeros_like(_shards.local(p))
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: {what} must hold tensors, got {type(tensor).__name__}")
    dtype, shape = p.dtype, p.shape
    if tensor.layout is not torch.strided or tensor.dtype.is_complex:
        raise TypeError(
            f"{name}: {what} must be dense and real, got {tensor.dtype} of layout "
            f"{tensor.layout}"
        )
    if tensor.shape != shape:
        raise ValueError(
            f"{name}: {what} has shape {tuple(tensor.shape)} for a parameter of shape "
            f"{tuple(shape)}"
        )
    if tensor.device != p.device:
        raise ValueError(
            f"{name}: {what} is on {tensor.device} but its parameter on {p.device}"
        )
    if _shards.is_sharded(p):
        return _shards.cut(tensor, p).to(dtype)
    tensor = tensor.detach() if tensor.requires_grad else tensor
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def part(tensors: list[Tensor], index: list[int], count: int) -> list[Tensor]:
    """Of a list of ``count`` tensors for each probe the entries of some parameters."""
    if len(index) == count:
        return tensors
    return [tensors[at + i] for at in range(0, len(tensors), count) for i in index]
