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
    _hutchinson,  # noqa: F401  (these define their operations)
    _mfac,  # noqa: F401
    _mfac_static,  # noqa: F401
    _ops,
    special,
)
from curvkern.ot import _gradients, _tiles  # noqa: F401  (the first defines operations)
from curvkern.sparse import _depthwise_operations, _operations  # noqa: F401  (as these)


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
    solver = ("sinkhorn", 3, 1e-6, 1, 1.0, False)  # method, steps, tolerances, in float32
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
        **_hutchinson_operands(),
        **_sparseconv_operands(),
        **_tiles_operands(),
    }


def _hutchinson_operands() -> dict[str, tuple[Any, ...]]:
    """Two parameters and two probes."""
    tensors = [torch.ones(2, 3), torch.ones(4)]
    row = [0.1, 0.9, 0.99, 1e-4, 0.01, 0.75, 0.1, 0.01, 0.0, 0.0, 1.0]
    lists = (tensors, tensors, 2 * tensors, [], tensors, tensors, tensors)
    return {
        "hutchinson_step": (*lists, [3, 1], [0, 6], [0, 0], row, 0.5, True, 7, 2),
        "hutchinson_sophia": (
            *lists[:6],
            [0, 6],
            [0, 0],
            [0.1, 0.9, 0.99, 0.5, 1e-4, 0.01],
            0.5,
            2.0,
            True,
            7,
            2,
        ),
        "hutchinson_metric": (
            *lists,
            [0, 6],
            [0, 0],
            [0.9, 0.1, 1.0],
            0.5,
            True,
            7,
            2,
            1,
        ),
        "hutchinson_descent": (*lists[:2], *lists[4:], [0, 0], [0.1, 0.2], 0.5),
        "hutchinson_signs": (tensors, [0, 6], 7, 2, 1),
        "hutchinson_accumulate": (tensors, tensors, tensors, [], [0, 6], 7, 2, 1, 2),
    }


def _sparseconv_operands() -> dict[str, tuple[Any, ...]]:
    """A matrix of 4 x 3 in rows, and filters of 2 x 2 for three channels."""
    x, gy, values = torch.ones(2, 3, 5), torch.ones(2, 4, 5), torch.ones(5)
    crow, col = torch.tensor([0, 2, 2, 3, 5]), torch.tensor([0, 2, 1, 0, 1])
    parts = (crow, col, [4, 3])
    image, filters = torch.ones(2, 3, 5, 6), torch.ones(3, 1, 2, 2)
    window = (1, [1, 0, 0, 1], 1)
    epilogue = (torch.ones(4), gy, *parts, "relu", "auto", False)
    return {
        "sparse_conv1x1": (x, values, *epilogue),
        "sparse_conv1x1_input_grad": (gy, values, *parts),
        "sparse_conv1x1_sddmm": (gy, x, *parts, [1, 1], 5),
        "depthwise_conv2d": (image, filters, torch.ones(3), *window, "silu"),
        "depthwise_conv2d_input_grad": (image, filters, [5, 6], *window),
        "depthwise_conv2d_weight_grad": (image, image, [2, 2], *window),
        "first_conv2d": (image, torch.ones(4, 3, 2, 2), torch.ones(4), *window[:2], "relu"),
    }


def _tiles_operands() -> dict[str, tuple[Any, ...]]:
    """Some of those that are defined when a number of tensors first asks for one."""
    wide = {"dtype": torch.float64}
    a, b, eps = (torch.full(shape, 0.25, **wide) for shape in ((2, 3), (2, 4), (2,)))
    cost, x, y = torch.ones(2, 3, 4), torch.ones(2, 3, 5, **wide), torch.zeros(2, 4, 5, **wide)
    of_rows, of_columns = torch.ones(2, 3, 2, **wide), torch.ones(2, 4, 1, **wide)
    matrix = ("", 1.0, cost, None, None, eps, a, b, a[..., None], b[..., None].expand(2, 4, 2))
    points = ("l1", 0.5, None, x, y, eps, a, b)
    rows = [
        ("products", *matrix),
        ("totals", *points, a, b),
        ("products:4,5,6,7", *matrix, of_rows, of_columns),
        ("products:0,3,4,5,6,7", *matrix, of_rows, of_columns),
        ("totals:1", *points, a, b, eps, eps, eps),
        ("products:4,5:6,8", *matrix, of_rows, of_columns, a, b),
    ]
    return {_tiles.operation(row[0], len(row) - 3).__name__: row for row in rows}


OPERANDS = _operands()

every_operation = pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def requiring_grad(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)
