"""Parameters whose flattened gradients share a window, on one rank or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..reference.mfac import SlidingWindowFisher

Settings = Mapping[str, Any]  # the param group that a parameter is in


class Window:
    """The gradients of some parameters as rows of one Fisher window.

    With a process group a rank holds its columns only: the local parts of sharded parameters,
    followed by its share of those that all ranks hold whole.
    """

    def __init__(
        self,
        params: Sequence[tuple[Tensor, Settings]],
        process_group: Any = None,
    ) -> None:
        self.steps = 0
        self.group = process_group
        self.ranks = dist.get_world_size(process_group) if process_group is not None else 1
        sharded = [(p, s) for p, s in params if is_sharded(p)]
        whole = [(p, s) for p, s in params if not is_sharded(p)]
        if sharded and process_group is None:
            raise ValueError("MFAC: parameters are sharded: pass their process_group")
        self.params = sharded + whole
        self.sizes = [local(p).numel() for p, _ in self.params]
        self._own = sum(self.sizes[: len(sharded)])
        total = sum(self.sizes[len(sharded) :])
        self._share = -(-total // self.ranks)
        # A rank without columns has one of zeros.
        self.d = max(1, self._own + self._share)

        names = ("damping", "window", "window_dtype")
        self.damping, m, dtype = (_agreed(params, name) for name in names)
        device = _agreed_device([local(p) for p, _ in params])
        # All columns of sharded parameters, then whole ones, padded to equal shares.
        self._flat = torch.zeros(
            self._own + self._share * self.ranks, dtype=dtype, device=device
        )
        self.fisher = SlidingWindowFisher(
            self.d, m, self.damping, dtype=dtype, device=device, process_group=process_group
        )

    def read(self) -> Tensor:
        """The gradient row of this rank, (d,), in the window's dtype; None is zero."""
        self._wanted_damping = _agreed(self.params, "damping")
        for (p, settings), part in zip(self.params, self._parts(self._flat), strict=True):
            write_gradient(p, settings, part)
        return self._mine(self._flat)

    def not_finite(self, row: Tensor) -> Tensor:
        """How many elements are not, of all ranks."""
        count = (~torch.isfinite(row)).sum()
        if self.group is not None:
            dist.all_reduce(count, group=self.group)
        return count

    def push(self, row: Tensor) -> Iterator[tuple[Tensor, Settings, Tensor]]:
        """Parameters with F^-1 times the row, which is pushed first."""
        if self._wanted_damping != self.damping:
            self.fisher.set_damping(self._wanted_damping)
            self.damping = self._wanted_damping
        update = self.fisher.push_ihvp(row)
        self.steps += 1
        if self.ranks > 1 and self._share:
            mine = update[self._own : self._own + self._share].contiguous()
            whole = mine.new_empty(self._share * self.ranks)
            dist.all_gather_into_tensor(whole, mine, group=self.group)
            update = torch.cat([update[: self._own], whole])
        for (p, settings), part in zip(self.params, self._parts(update), strict=True):
            yield p, settings, part

    def _mine(self, flat: Tensor) -> Tensor:
        if self.d > len(flat):
            return flat.new_zeros(self.d)
        if self.ranks == 1:
            return flat
        start = self._own + self._share * dist.get_rank(self.group)
        return torch.cat([flat[: self._own], flat[start : start + self._share]])

    def _parts(self, flat: Tensor) -> Iterator[Tensor]:
        start = 0
        for size in self.sizes:
            yield flat[start : start + size]
            start += size


def is_sharded(p: Tensor) -> bool:
    return any(placement.is_shard() for placement in getattr(p, "placements", ()))


def local(t: Tensor) -> Tensor:
    """What this rank holds of a DTensor, whose memory it shares; other tensors as they are."""
    return t.to_local() if hasattr(t, "to_local") else t


def write_gradient(p: Tensor, settings: Settings, part: Tensor) -> None:
    """The row's part: the direction of descent, with L2 decay unless that is decoupled."""
    grad: Any = p.grad  # a DTensor where p is one
    if grad is None:
        part.zero_()
        return
    if grad.layout is not torch.strided:
        raise TypeError(f"MFAC: gradients must be dense, got layout {grad.layout}")
    placements = getattr(p, "placements", None)
    if placements is not None and grad.placements != placements:
        grad = grad.redistribute(placements=placements)
    grad = local(grad).reshape(-1)
    decay = 0.0 if settings["decoupled_weight_decay"] else settings["weight_decay"]
    if decay or settings["maximize"]:
        grad = -grad if settings["maximize"] else grad.clone()
        if decay:
            grad.add_(local(p.detach()).reshape(-1), alpha=decay)
    part.copy_(grad)


def _agreed(params: Sequence[tuple[Tensor, Settings]], name: str) -> Any:
    """A setting of the window, which all its parameters have to share."""
    values = {settings[name] for _, settings in params}
    if len(values) > 1:
        raise ValueError(
            f"MFAC: {name} is {' and '.join(sorted(map(str, values)))} within one window; "
            "param groups may differ in it under grouping='per_group' or 'per_param'"
        )
    return values.pop()


def _agreed_device(tensors: Sequence[Tensor]) -> torch.device:
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        raise ValueError(
            f"MFAC: parameters are on {' and '.join(sorted(map(str, devices)))} within one "
            "window; choose grouping='per_group' or 'per_param'"
        )
    return devices.pop()
