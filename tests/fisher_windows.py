"""Windows of random gradients, and the dense matrix that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern.fisher import SlidingWindowFisher
from mfac_truth import Problem

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
WIDE = torch.float64


def filled(problem: Problem, dtype: torch.dtype) -> SlidingWindowFisher:
    """A window with the problem's gradients."""
    G = problem.tensor("G", dtype)
    fisher = SlidingWindowFisher(
        G.shape[1],
        problem["n"],
        problem["damping"],
        dtype=dtype,
        block_size=problem["block"] or None,
    )
    for g in G:
        fisher.push(g)
    return fisher


def pushed(count: int, d: int = 40, m: int = 6, damping: float = 1e-3, **options: Any) -> Any:
    fisher = SlidingWindowFisher(d, m, damping, **{"dtype": WIDE, **options})
    for _ in range(count):
        fisher.push(torch.randn(d, dtype=fisher._window.dtype))
    return fisher


def dense(G: Tensor, n: int, damping: float) -> Tensor:
    return damping * torch.eye(G.shape[1], dtype=WIDE) + G.double().T @ G.double() / n
