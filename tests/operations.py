"""The table of operations that every generic test goes through.

A family adds rows here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern import (
    _mfac,  # noqa: F401  (defines its operations)
    _mfac_static,  # noqa: F401
    _ops,
    special,
)
from curvkern.ot import _gradients  # noqa: F401  (these too)


@dataclass(frozen=True)
class Elementwise:
    """A function of two tensors (v, x) that broadcast, with operations for its derivatives."""

    name: str
    v: tuple[float, float] = (0.3, 20.0)
    x: tuple[float, float] = (0.5, 30.0)
    arguments: tuple[str, str] = ("v", "x")
    order_first: bool = True  # as the public function takes them
    saves_x: bool = True  # for its derivatives; else what it made of it

    @property
    def function(self) -> Callable[[Any, Any], Any]:
        public: Callable[[Any, Any], Any] = getattr(special, self.name)
        return public if self.order_first else lambda v, x: public(x, v)

    def __call__(self, v: Any, x: Any) -> Any:
        return self.function(v, x)

    def operation(self, order: int) -> Any:
        return getattr(torch.ops.curvkern, self.name + _ops.DERIVATIVES[order][0])

    def sample(self, *shape: int, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
        """Tensors (v, x) of this shape, uniform over the row's domain."""
        return tuple(
            torch.empty(shape, dtype=torch.float64).uniform_(*bounds).to(dtype=dtype, **options)
            for bounds in (self.v, self.x)
        )


MATERN = Elementwise("matern", (0.3, 20.0), (0.05, 4.0), ("nu", "r"), False, False)
OPERATIONS = [MATERN if name == MATERN.name else Elementwise(name) for name in _ops.BESSEL]


def _operands() -> dict[str, tuple[Any, ...]]:
    """Every operation of the package -> arguments that it takes."""
    wide, ones = {"dtype": torch.float64}, torch.ones(2, 3)
    elementwise = [op.name + suffix for op in OPERATIONS for suffix, _ in _ops.DERIVATIVES]
    a, b, eps = (torch.full(shape, 0.25, **wide) for shape in ((2, 3), (2, 4), (2,)))
    rho = torch.full((2, 2), 1.0, **wide)
    x, y, cost = torch.ones(2, 3, 5), torch.ones(2, 4, 5), torch.ones(2, 3, 4)
    points = (a, b, x, y, "l1", 1.0, eps)
    matrix = (a, b, cost, None, None, "", 1.0, eps, rho)
    options = (rho, a, b, 3, 1e-6, 1)
    solver = ("sinkhorn", 3, 1e-6, 1, 1.0)  # method, steps, tolerances
    columns = (b[..., None], a[..., None])
    return {
        **dict.fromkeys(elementwise, (ones, ones)),
        "mfac_products": (ones, [1, 0], ones),
        "mfac_push": (ones.clone(), [1, 0], 1, ones[:1], ones),
        "mfac_combine": (ones, [1, 0], torch.ones(2, 2, **wide), 0.5, ones, False),
        "mfac_gram": (ones, [1, 0]),
        "mfac_whitened_squares": (ones, [1, 0], torch.ones(2, 2, **wide)),
        "sparsemax": (ones, torch.ones(2, **wide), 2),
        "sparsemax_jacobian": (ones, ones),
        "sinkhorn_dense": (a, b, cost, eps, *options),
        "sinkhorn_points": (*points, *options),
        "sinkhorn_dense_products": (a, b, cost, eps, a, b, *columns),
        "sinkhorn_points_products": (*points, a, b, *columns),
        "sinkhorn_points_gradient": (*points, a, b, a, b),
        "ot_solve": (*matrix, a, b, "ot_solve", *solver),
        "ot_dual_system": (*matrix, a, b, a, b, False),
    }


OPERANDS = _operands()

every_operation = pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def requiring_grad(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)
