"""The Sinkhorn family on a GPU: the implementations of ``torch.ops.curvkern.sinkhorn_*`` there.

The same kernels run on the host where the compiled module is ``_cpu``: so tests can compare
them with the solvers of the CPU on machines without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import _runtime
from ._arguments import memory_error

Callback = Callable[[int, Tensor], object]


class Inputs:
    """A batch of problems in the form of the compiled functions, and where they run."""

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        cost: Tensor | None,
        x: Tensor | None,
        y: Tensor | None,
        kind: str,
        scale: float,
        eps: Tensor,
        rho: Tensor,
    ) -> None:
        self.a, self.b, self.x, self.extent = a.contiguous(), b.contiguous(), x, None
        if x is not None and y is not None:
            # float64, and coordinate by coordinate: the threads of a warp read side by side
            x, y = x.double().contiguous(), y.double().mT.contiguous()
            self.extent = _extent(x, y, kind)
        self.native = (
            self.a, self.b, None if cost is None else cost.contiguous(), x, y,
            "dense" if x is None else kind, float(scale), eps.contiguous(), rho.contiguous(),
        )  # fmt: skip

    @property
    def module(self) -> ModuleType:
        cuda = self.a.device.type == "cuda"
        return _runtime.cuda_module() if cuda else _runtime.cpu_module()

    @property
    def stream(self) -> int:
        device = self.a.device
        return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self.a.device)

    def workspace(self, count: int) -> Tensor:
        shape = len(self.a), self.a.shape[1], self.b.shape[1]
        return self.empty(self.module.sinkhorn_device_workspace(*shape, count))


def _extent(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """A bound (B,) on the costs between the points, from the boxes that hold them."""
    most = torch.maximum(x.amax(1), y.amax(2))
    least = torch.minimum(x.amin(1), y.amin(2))
    sides = most - least
    total = sides.sum(1) if kind == "l1" else sides.square().sum(1)
    return total.sqrt() if kind == "euclidean" else total


class History:
    """Rows (iteration, largest error): all, or of very many every second, fourth, ..."""

    def __init__(self, most: int) -> None:
        self.rows: list[tuple[int, float]] = []
        self.most, self.checks, self.keep_every = most, 0, 1

    def add(self, iteration: int, error: float) -> None:
        if self.checks % self.keep_every == 0:
            if len(self.rows) == self.most:
                self.rows, self.keep_every = self.rows[::2], 2 * self.keep_every
            if self.checks % self.keep_every == 0:
                self.rows.append((iteration, error))
        self.checks += 1


def solve(
    inputs: Inputs,
    f: Tensor | None,
    g: Tensor | None,
    max_iter: int,
    tol: float,
    check_every: int,
    translate: bool = True,
    anneal: bool = True,
    symmetric: bool = False,
    callback: Callback | None = None,
    history: int = 4096,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`curvkern._sinkhorn.solve`."""
    a, b = inputs.a, inputs.b
    try:
        workspace = inputs.workspace(0)
        out = inputs.empty(*a.shape), inputs.empty(*b.shape), inputs.empty(len(a), 3)
        errors = inputs.empty(len(a))
    except RuntimeError as error:
        raise memory_error("sinkhorn", (*a.shape, b.shape[1]), error) from None
    checks = History(history)

    def checked(iteration: int, largest: float) -> None:
        checks.add(iteration, largest)
        if callback is not None:
            callback(iteration, errors.clone())

    starts = (None, None) if f is None or g is None else (f.contiguous(), g.contiguous())
    inputs.module.sinkhorn_device_solve(
        inputs.native, inputs.extent, *starts, workspace, *out, errors, max_iter, tol,
        check_every, translate, anneal, symmetric, checked, inputs.stream,
    )  # fmt: skip
    rows = torch.tensor(checks.rows, dtype=torch.float64, device=a.device).reshape(-1, 2)
    return *out, rows


def products(
    inputs: Inputs, f: Tensor, g: Tensor, v: Tensor | None, u: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`curvkern._sinkhorn.products`."""
    a, b = inputs.a, inputs.b
    count = 0 if v is None else v.shape[2]
    count = count if u is None else u.shape[2]
    try:
        v, u = (None if t is None else t.contiguous() for t in (v, u))
        workspace = inputs.workspace(count + 1)
        pv = inputs.empty(*a.shape, count if v is not None else 0)
        ptu = inputs.empty(*b.shape, count if u is not None else 0)
    except RuntimeError as error:
        raise memory_error("sinkhorn_products", (*a.shape, count), error) from None
    totals = inputs.empty(len(a), 2)
    inputs.module.sinkhorn_device_products(
        inputs.native, f.contiguous(), g.contiguous(), v, u, workspace,
        None if v is None else pv, None if u is None else ptu, totals, count, inputs.stream,
    )  # fmt: skip
    return pv, ptu, totals


def gradient(inputs: Inputs, f: Tensor, g: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """As :func:`curvkern._sinkhorn.gradient`."""
    assert inputs.x is not None
    try:
        workspace = inputs.workspace(0)
        out = inputs.empty(*inputs.x.shape)
    except RuntimeError as error:
        raise memory_error("sinkhorn_points_gradient", inputs.x.shape, error) from None
    given: tuple[Any, ...] = tuple(t.contiguous() for t in (f, g, u, w))
    inputs.module.sinkhorn_device_gradient(
        inputs.native, *given, workspace, out, inputs.stream
    )  # fmt: skip
    return out


def newton(
    inputs: Inputs,
    f: Tensor | None,
    g: Tensor | None,
    max_iter: int,
    tol: float,
    history: int = 4096,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`curvkern._sinkhorn.newton`, for points, too, whose costs nobody holds."""
    a, b, module = inputs.a, inputs.b, inputs.module
    try:
        out = [inputs.empty(*t.shape) for t in (a, b)]
        for start, target in zip((f, g), out, strict=True):
            target.fill_(0.0) if start is None else target.copy_(start)
        info = inputs.empty(len(a), 3)
        size = module.sinkhorn_device_newton_workspace(a.shape[1], b.shape[1])
        workspace = inputs.empty(size)
        trace = torch.full((len(a), min(max_iter, history)), torch.nan, dtype=torch.float64)
    except RuntimeError as error:
        raise memory_error("sinkhorn", (*a.shape, b.shape[1]), error) from None
    module.sinkhorn_device_newton(
        inputs.native, inputs.extent, workspace, *out, info, trace, max_iter, tol,
        f is not None, inputs.stream,
    )  # fmt: skip
    return out[0], out[1], info, trace.to(a.device)
