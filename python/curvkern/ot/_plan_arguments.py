"""From masses and costs as passed to a problem of unit scale, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _runtime
from .._arguments import _as_tensor, check_layout, memory_error
from ._plan_newton import Problem

_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
#: How far apart the total masses may be, relative: what a sum in the dtype may lose.
_UNBALANCED = {torch.float64: 1e-9, torch.float32: 1e-5}


def checked(function: str, a: Any, b: Any, C: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors of one dtype and device whose shapes fit; uniform masses where None was given.

    With a batch of costs the masses have one, too.
    """
    _runtime.spare_forked_child()
    C = _tensor(function, "C", C)
    if C.dim() not in (2, 3):
        raise ValueError(
            f"{function}: C must have shape (n, m) or (B, n, m), got {tuple(C.shape)}"
        )
    if 0 in C.shape:
        raise ValueError(f"{function}: C of shape {tuple(C.shape)} is empty")
    masses = [
        _mass(function, name, mass, C, size)
        for name, mass, size in zip("ab", (a, b), C.shape[-2:], strict=True)
    ]
    return masses[0], masses[1], C


def _tensor(function: str, name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        if not hasattr(value, "__array__"):
            raise TypeError(
                f"{function}: {name} must be a tensor or a NumPy array, "
                f"got {type(value).__name__}"
            )
        if value.dtype.kind != "f":
            raise TypeError(f"{function}: {name} must be real and floating, got {value.dtype}")
        value = _as_tensor(function, name, value)
    check_layout(function, name, value)
    if value.dtype not in _FLOATING:
        raise TypeError(
            f"{function}: {name} must be float64, float32, float16 or bfloat16, "
            f"got {value.dtype}"
        )
    if value.is_meta:
        raise NotImplementedError(f"{function}: {name} is a meta tensor, which has no values")
    return value


def _mass(function: str, name: str, mass: Any, C: Tensor, size: int) -> Tensor:
    shape = (*C.shape[:-2], size)
    if mass is None:
        return torch.full(shape, 1 / size, dtype=C.dtype, device=C.device)
    mass = _tensor(function, name, mass)
    shapes = dict.fromkeys([(size,), shape])
    if mass.shape not in shapes:
        raise ValueError(
            f"{function}: {name} has shape {tuple(mass.shape)} but C has shape "
            f"{tuple(C.shape)}, expected {' or '.join(map(str, shapes))}"
        )
    if mass.dtype is not C.dtype:
        raise TypeError(f"{function}: {name} has dtype {mass.dtype} but C has {C.dtype}")
    if mass.device != C.device:
        raise ValueError(f"{function}: {name} is on {mass.device} but C is on {C.device}")
    return mass.expand(shape)


class Scaled:
    """The problem with masses of sum 1 and finite costs from 0 to 1, without empty points.

    Costs c0 + s C' and masses M a' at gamma are costs C' and masses a' at gamma M / s, with
    potentials f = c0 / 2 + s f' and values M (c0 + s value').
    """

    def __init__(self, function: str, a: Tensor, b: Tensor, C: Tensor, gamma: float) -> None:
        self.dtype, self.device, self.shape = C.dtype, C.device, C.shape
        try:
            a, b = (t.to("cpu", torch.float64) for t in (a, b))
            total_a, total_b = _check_masses(function, a, b, _UNBALANCED.get(C.dtype, 1e-2))
            wide = C.to("cpu", torch.float64)
            lowest, highest = _check_costs(function, wide)
            self.total, self.shift = total_a, lowest
            spread = highest - lowest
            self.scale = spread if spread > 0 else gamma * self.total
            self.gamma = gamma * self.total / self.scale
            if not 0 < self.gamma < float("inf"):
                raise ValueError(
                    f"{function}: gamma={gamma:.3g} is beyond float64 at costs from "
                    f"{lowest:.3g} to {highest:.3g} and mass {total_a:.3g}"
                )
            self.cost = ((wide - lowest) / self.scale).contiguous()
            self.row, self.column = a.nonzero().flatten(), b.nonzero().flatten()
            kept = self.cost
            if len(self.row) < len(a) or len(self.column) < len(b):
                kept = self.cost[self.row][:, self.column]
            self.problem = Problem(
                a[self.row] / total_a, b[self.column] / total_b, kept, kept.t().contiguous()
            )
        except RuntimeError as error:
            raise memory_error(function, C.shape, error) from None
        _check_feasible(function, self.problem.cost, self.row, self.column)

    def value(self, value: float) -> float:
        """A value in the user's units."""
        return self.total * (self.shift + self.scale * value)

    def potentials(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Potentials of all points; without mass the largest that leave the plan zero there."""
        a, b = self.problem.a, self.problem.b
        gap = (a @ f - b @ g) / 2
        f, g = f - gap, g + gap
        all_f, all_g = (torch.zeros(size, dtype=torch.float64) for size in self.shape)
        if len(f) < len(all_f):
            all_f = _finite((self.cost[:, self.column] - g).amin(1))
        if len(g) < len(all_g):
            all_g = _finite((self.cost[self.row] - f[:, None]).amin(0))
        all_f[self.row], all_g[self.column] = f, g
        full = (self._out(self.shift / 2 + self.scale * t) for t in (all_f, all_g))
        return next(full), next(full)

    def entries(self, row: Tensor, column: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and entries of the nonzeros of the plan."""
        device = self.device
        return (
            self.row[row].to(device),
            self.column[column].to(device),
            self._out(self.total * p),
        )

    def _out(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype)


def _finite(potential: Tensor) -> Tensor:
    """Zero where nothing bounds a potential: all its costs are infinite."""
    return torch.where(potential.isfinite(), potential, 0.0)


def _check_masses(function: str, a: Tensor, b: Tensor, slack: float) -> tuple[float, float]:
    for name, mass in (("a", a), ("b", b)):
        if bool(mass.isnan().any()):
            raise ValueError(f"{function}: {name} contains nan")
        if bool((mass < 0).any()):
            at = int(mass.argmin())
            raise ValueError(
                f"{function}: {name} must be non-negative, got {mass[at].item():.6g} at {at}"
            )
        if not bool(mass.isfinite().all()):
            raise ValueError(f"{function}: {name} must be finite")
    total_a, total_b = a.sum().item(), b.sum().item()
    if not abs(total_a - total_b) <= slack * max(total_a, total_b):
        raise ValueError(
            f"{function}: a and b must have the same mass, "
            f"got {total_a:.12g} and {total_b:.12g}"
        )
    if not 0 < total_a < float("inf"):
        raise ValueError(f"{function}: the total mass must be positive, got {total_a}")
    return total_a, total_b


def _check_costs(function: str, cost: Tensor) -> tuple[float, float]:
    """The lowest and the highest finite cost."""
    lowest, highest = (t.item() for t in cost.aminmax())
    if lowest != lowest:
        raise ValueError(f"{function}: C contains nan")
    if lowest == -torch.inf:
        raise ValueError(f"{function}: C contains -inf; costs must be finite or +inf")
    if highest == torch.inf:
        highest = torch.where(cost.isfinite(), cost, lowest).max().item()
    if lowest == torch.inf:
        raise ValueError(f"{function}: infeasible, all of C is +inf")
    return lowest, highest


def _check_feasible(function: str, cost: Tensor, row: Tensor, column: Tensor) -> None:
    for dim, name, index in ((1, "row", row), (0, "column", column)):
        barred = cost.amin(dim).isposinf()
        if bool(barred.any()):
            at = int(index[barred.nonzero()[0, 0]])
            raise ValueError(
                f"{function}: infeasible, {name} {at} has mass but C is +inf throughout it"
            )
