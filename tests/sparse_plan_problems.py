"""Problems for plans with exact zeros, and the functions that solve them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from curvkern import ot

FUNCTIONS: dict[str, Callable[..., ot.SparsePlanResult]] = {
    "quadratic_ot": ot.quadratic_ot,
    "sparsity_constrained_ot": lambda a, b, C, gamma, **options: ot.sparsity_constrained_ot(
        a, b, C, gamma, 3, **options
    ),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def problem(n: int, m: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Masses of sum 1, and squared distances of Gaussian points, at most 1."""
    a, b = (torch.rand(size, dtype=torch.float64) + 0.1 for size in (n, m))
    x, y = torch.randn(n, 2, dtype=torch.float64), torch.randn(m, 2, dtype=torch.float64)
    C = torch.cdist(x, y) ** 2
    return (a / a.sum()).to(dtype), (b / b.sum()).to(dtype), (C / C.max()).to(dtype)
