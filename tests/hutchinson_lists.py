"""Arguments of the Hutchinson family's steps: tensors of all kinds of sizes and blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from curvkern import _hutchinson
from curvkern.reference import hutchinson as reference

SEED = 0x1234_5678_9ABC_DEF
ROW = reference.Row(0.05, 0.9, 0.99, 1e-3, 0.02, 1.0, 0.1, 0.01)
ROWS = [{}, {"signed": 1.0}, {"power": 0.5}, {"power": 0.3}, {"power": 0.0}, {"atan2": 1.0}]
# All kinds of blocks: none, short, longer than a tile, one that does not divide.
SHAPES = [(70, 70), (3,), (2, 9000), (), (0, 3), (130, 4, 3, 3), (10001,), (1,)]
BLOCKS = [70, 1, 9000, 1, 1, 9, 5000, 1]
OFFSETS = [5 + sum(math.prod(s) for s in SHAPES[:i]) for i in range(len(SHAPES))]
ALTERNATE = [i % 2 for i in range(len(SHAPES))]


class Lists:
    """Random tensors like the parameters; shifted, none begins at a multiple of 16 bytes."""

    def __init__(self, dtype: torch.dtype, probes: int = 1, shift: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.shift = shift
        wide = _hutchinson.state_dtype(dtype)
        self.p, self.g = self.normal(dtype), self.normal(dtype)
        self.hz = [t for _ in range(probes) for t in self.normal(dtype)]
        self.states = [[t.abs_() for t in self.normal(wide)] for _ in range(3)]

    def normal(self, dtype: torch.dtype) -> list[Tensor]:
        return [self.placed(torch.randn(s, generator=self.generator), dtype) for s in SHAPES]

    def placed(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        flat = torch.empty(tensor.numel() + self.shift, dtype=dtype)
        part = flat[self.shift :].view(tensor.shape)
        return part.copy_(tensor)


def adahessian(dtype: torch.dtype, probes: int = 1, shift: int = 0, **row: float) -> list[Any]:
    x = Lists(dtype, probes, shift)
    settings = [*ROW._replace(**row), *ROW._replace(lr=0.2, maximize=1.0, **row)]
    return [x.p, x.g, x.hz, [], *x.states, BLOCKS, OFFSETS, ALTERNATE, settings, 0.5, True,
            SEED, 3]  # fmt: skip


def sophia(dtype: torch.dtype, probes: int = 1, shift: int = 0) -> list[Any]:
    x = Lists(dtype, probes, shift)
    rows = [*reference.SophiaRow(0.05, 0.9, 0.8, 0.5, 1e-3, 0.1),
            *reference.SophiaRow(0.2, 0.5, 0.9, 2.0, 0.0, 0.0)]  # fmt: skip
    return [
        x.p,
        x.g,
        x.hz,
        [],
        *x.states[:2],
        OFFSETS,
        ALTERNATE,
        rows,
        0.5,
        3.0,
        True,
        SEED,
        3,
    ]


def metric(dtype: torch.dtype, probes: int = 1, shift: int = 0) -> list[Any]:
    x = Lists(dtype, probes, shift)
    rows = [*reference.MetricRow(0.9, 0.1, 1.0), *reference.MetricRow(0.0, 0.5, 0.0)]
    return [x.p, x.g, x.hz, [], *x.states, OFFSETS, ALTERNATE, rows, 0.5, True, SEED, 3, 2]


def descent(dtype: torch.dtype, probes: int = 1, shift: int = 0) -> list[Any]:
    del probes
    x = Lists(dtype, 1, shift)
    rows = [*reference.DescentRow(0.1, 0.2), *reference.DescentRow(0.01, 1.0)]
    return [x.p, x.g, *x.states, ALTERNATE, rows, 0.5]


#: Name of the step -> its arguments.
STEPS: dict[str, Callable[..., list[Any]]] = {
    "step": adahessian,
    "sophia": sophia,
    "metric": metric,
    "descent": descent,
}
REFERENCE: dict[str, Callable[..., Any]] = {
    "step": reference.step,
    "sophia": reference.sophia,
    "metric": reference.metric,
    "descent": reference.descent,
}


def moved(arguments: Sequence[Any], to: Callable[[Tensor], Tensor] = torch.clone) -> list[Any]:
    """Arguments with copies of their tensors."""
    return [
        [to(t) for t in part] if part and isinstance(part, list) and torch.is_tensor(part[0])
        else part
        for part in arguments
    ]  # fmt: skip


def tensors(arguments: Sequence[Any]) -> list[Tensor]:
    return [
        t for part in arguments if isinstance(part, list) for t in part if torch.is_tensor(t)
    ]


def compare(got: Sequence[Any], expected: Sequence[Any], bar: float) -> None:
    for a, b in zip(tensors(got), tensors(expected), strict=True):
        rounding = 1e-2 if a.dtype is torch.bfloat16 else bar
        torch.testing.assert_close(a.cpu(), b, rtol=rounding, atol=rounding)


def bar_of(dtype: torch.dtype) -> float:
    return 1e-12 if dtype is torch.float64 else 2e-5
