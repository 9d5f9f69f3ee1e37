"""Parameters whose flattened gradients share a window, on one rank or several."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..fisher import SlidingWindowFisher
from ..fisher._partial import partial_products, push_known

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
        in_backward: bool = False,
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
        self._starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        self._own = sum(self.sizes[: len(sharded)])
        total = sum(self.sizes[len(sharded) :])
        self._share = -(-total // self.ranks)
        # A rank without columns has one of zeros.
        self.d = max(1, self._own + self._share)

        names = ("damping", "window", "window_dtype")
        damping, m, dtype = (_agreed(params, name) for name in names)
        self.dtype: torch.dtype = dtype
        device = _agreed_device([local(p) for p, _ in params])
        # All columns of sharded parameters, then whole ones, padded to equal shares.
        self._flat = torch.zeros(
            self._own + self._share * self.ranks, dtype=dtype, device=device
        )
        self.fisher = SlidingWindowFisher(
            self.d, m, damping, dtype=dtype, device=device, process_group=process_group
        )
        # A share of a whole parameter is cut anywhere, so its columns wait for the step.
        self.in_backward = in_backward and not (whole and self.ranks > 1)
        self._products: list[Tensor | None] = [None] * len(self.params)
        self._watch()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A deep copy, whose parameters know nothing of the hooks of the others."""
        self.__dict__.update(state)
        self._watch()

    @property
    def lock(self) -> Any:
        """For whoever reads or writes the window."""
        return self.fisher._lock

    def read(self) -> Tensor:
        """The gradient row of this rank, (d,), in the window's dtype; None is zero."""
        self._wanted_damping = _agreed(self.params, "damping")
        for name, made in (("window", self.fisher.capacity), ("window_dtype", self.dtype)):
            wanted = _agreed(self.params, name)
            if wanted != made:
                raise ValueError(
                    f"MFAC: {name} is {wanted}, but was {made} when the window was made, and "
                    "cannot change"
                )
        for index, (p, settings) in enumerate(self.params):
            part = self._part(index)
            # Not by version counters: a GradScaler, for one, changes gradients behind them.
            met = None if self._products[index] is None else part.clone()
            write_gradient(p, settings, part)
            if met is not None and not torch.equal(part, met):
                self._products[index] = None
        return self._mine(self._flat)

    @torch.no_grad()
    def meet(self, index: int) -> None:
        """The products of a parameter's columns with its gradient, which is complete."""
        p, settings = self.params[index]
        with self.lock:
            write_gradient(p, settings, self._part(index))
            self._products[index] = self._columns_products(index)

    def _columns_products(self, index: int) -> Tensor:
        return partial_products(self.fisher, self._starts[index], self._part(index))

    def _solved(self, row: Tensor) -> Tensor:
        """F^-1 times the row, which is pushed first; in float32 for rows of bfloat16."""
        row = row.float() if row.dtype is torch.bfloat16 else row
        if not self.in_backward:
            return self.fisher.push_ihvp(row)
        total = torch.zeros(len(self.fisher), dtype=torch.float64, device=row.device)
        for index, known in enumerate(self._products):
            total += self._columns_products(index) if known is None else known
            # They were those of the rows before this one.
            self._products[index] = None
        return push_known(self.fisher, row, total)

    def not_finite(self, row: Tensor) -> Tensor:
        """How many elements are not, of all ranks."""
        count = (~torch.isfinite(row)).sum()
        if self.group is not None:
            dist.all_reduce(count, group=self.group)
        return count

    def push(self, row: Tensor) -> Iterator[tuple[Tensor, Settings, Tensor]]:
        """Parameters with F^-1 times the row, which is pushed first."""
        if self._wanted_damping != self.fisher.damping:
            self.fisher.set_damping(self._wanted_damping)
        update = self._solved(row)
        self.steps += 1
        if self.ranks > 1 and self._share:
            mine = update[self._own : self._own + self._share].contiguous()
            whole = mine.new_empty(self._share * self.ranks)
            dist.all_gather_into_tensor(whole, mine, group=self.group)
            update = torch.cat([update[: self._own], whole])
        for (p, settings), start, size in zip(
            self.params, self._starts, self.sizes, strict=True
        ):
            yield p, settings, update[start : start + size]

    def _watch(self) -> None:
        """Hooks that meet the gradients of a backward, for as long as the window lives."""
        if not self.in_backward:
            return
        known = weakref.ref(self)

        def meet(index: int, _: Tensor) -> None:
            alive = known()
            if alive is not None:
                alive.meet(index)

        for index, (p, _) in enumerate(self.params):
            if p.requires_grad:
                handle = p.register_post_accumulate_grad_hook(partial(meet, index))
                weakref.finalize(self, handle.remove).atexit = False

    def _mine(self, flat: Tensor) -> Tensor:
        if self.d > len(flat):
            return flat.new_zeros(self.d)
        if self.ranks == 1:
            return flat
        start = self._own + self._share * dist.get_rank(self.group)
        return torch.cat([flat[: self._own], flat[start : start + self._share]])

    def _part(self, index: int) -> Tensor:
        start = self._starts[index]
        return self._flat[start : start + self.sizes[index]]


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
