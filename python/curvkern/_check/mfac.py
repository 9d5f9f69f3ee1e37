"""Self-test of inverse Fisher products: dense solves in float64, whatever the storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .. import fisher
from . import Row, measured

D, M, PUSHES, DAMPING = 60, 12, 40, 1e-4
#: Of the norm of the truth, in eps of float64: F has a condition of 1e6, float32 is rounded.
BARS = {torch.float64: 1e6, torch.float32: 1e-6 / torch.finfo(torch.float64).eps}


def rows() -> Iterator[Row]:
    """A window that has slid, its newest gradient, and a given set of gradients."""
    for dtype in (torch.float64, torch.float32):
        generator = torch.Generator().manual_seed(0)
        sequence = torch.randn(PUSHES, D, generator=generator).to(dtype)
        v = torch.randn(D, generator=generator).to(dtype)
        G = sequence[-M:].double()
        F = DAMPING * torch.eye(D, dtype=torch.float64) + G.T @ G / M
        window = fisher.SlidingWindowFisher(D, M, DAMPING, dtype=dtype)
        for g in sequence[:-1]:
            window.push(g)
        static = fisher.StaticFisher.from_gradients(sequence[-M:], DAMPING)
        inverse = torch.linalg.inv(F)
        newest = partial(window.push_ihvp, sequence[-1])
        yield _row(window, "push_ihvp", dtype, newest, inverse @ G[-1])
        for one in (window, static):
            yield _row(one, "ihvp", dtype, partial(one.ihvp, v), inverse @ v.double())
            yield _row(one, "diag_inverse", dtype, one.diag_inverse, inverse.diagonal())


def _row(
    one: object, quantity: str, dtype: torch.dtype, compute: Callable[[], Tensor], truth: Tensor
) -> Row:
    def errors() -> np.ndarray:
        off = (compute().double() - truth).abs() / truth.norm()
        return (off / torch.finfo(torch.float64).eps).numpy()

    names = (type(one).__name__, quantity, str(dtype).removeprefix("torch."), "dense solve")
    return measured(names, len(truth), BARS[dtype], errors, lambda at: f"entry {at}")
