"""The tables of operations and functions that every generic test goes through.

A family adds rows here: `Elementwise` for an operation of its own, `Composite` for a function
that is made of operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern import _ops, reference, special


@dataclass(frozen=True)
class Elementwise:
    """A function of two tensors (v, x) that broadcast, with operations for its derivatives."""

    name: str
    v: tuple[float, float] = (0.3, 20.0)
    x: tuple[float, float] = (0.5, 30.0)
    arguments: tuple[str, str] = ("v", "x")
    work: torch.dtype = torch.float32  # what half precision is computed in
    rtol: float = 1e-13  # of `derivatives`

    @property
    def function(self) -> Callable[[Any, Any], Any]:
        return getattr(special, self.name)

    def __call__(self, v: Any, x: Any) -> Any:
        return self.function(v, x)

    def operation(self, order: int) -> Any:
        return getattr(torch.ops.curvkern, self.name + _ops.DERIVATIVES[order][0])

    def derivatives(self, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """All derivatives of one order, without autograd through the function itself."""
        return self.operation(order)(v, x)

    def sample(self, *shape: int, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
        """Tensors (v, x) of this shape, uniform over the row's domain."""
        return tuple(
            torch.empty(shape, dtype=torch.float64).uniform_(*bounds).to(dtype=dtype, **options)
            for bounds in (self.v, self.x)
        )


@dataclass(frozen=True)
class Composite(Elementwise):
    """A function of two tensors with a twin of its name, but no operation of its own."""

    work: torch.dtype = torch.float64
    rtol: float = 1e-8  # torch.polygamma, in second derivatives of the twin

    def derivatives(self, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        twin = getattr(getattr(reference, self.name), self.name)
        v, x = requiring_grad(v, x)
        dv, dx = torch.autograd.grad(twin(v, x).sum(), (v, x), create_graph=order > 1)
        if order == 1:
            return dv, dx
        dvv, dvx = torch.autograd.grad(dv.sum(), (v, x), retain_graph=True)
        return dvv, dvx, *torch.autograd.grad(dx.sum(), x)


OPERATIONS = [Elementwise(name) for name in _ops.BESSEL]
COMPOSITES = [Composite("matern", (0.05, 4.0), (0.3, 20.0), ("r", "nu"))]

every_operation = pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
every_function = pytest.mark.parametrize(
    "op", [*OPERATIONS, *COMPOSITES], ids=lambda op: op.name
)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def requiring_grad(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)
