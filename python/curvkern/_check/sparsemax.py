"""Self-test of sparsemax and of sparse plans: exact arithmetic, and duality."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from .. import ConvergenceWarning, ot
from . import Row, measured

SHAPES = [(scale, n) for scale in (1e-6, 1e-2, 1.0, 50.0) for n in (1, 2, 7, 33, 200)]
VALUE_BAR, SUM_BAR = 2.0, 4.0
TOLERANCE = 1e-9  # of the marginals of a plan
PLAN_BAR = TOLERANCE / torch.finfo(torch.float64).eps


def rows() -> Iterator[Row]:
    """Entries and sums of the projections; values of plans against their dual bounds."""
    for dtype in (torch.float64, torch.float32):
        for function, k in (("sparsemax", None), ("topk_sparsemax", 3)):
            yield from _projections(function, k, dtype)
    for function, k in (("quadratic_ot", None), ("sparsity_constrained_ot", 4)):
        yield _plans(function, k)


def _projections(function: str, k: int | None, dtype: torch.dtype) -> Iterator[Row]:
    eps = torch.finfo(dtype).eps
    inputs = [_scores(scale, n, dtype) for scale, n in SHAPES]

    def projected(z: Tensor) -> list[Fraction]:
        p = ot.sparsemax(z) if k is None else ot.topk_sparsemax(z, k)
        return [Fraction(x) for x in p.tolist()]

    def entries() -> np.ndarray:
        errors = [
            max(abs(x - y) for x, y in zip(projected(z), exact(z.tolist(), k), strict=True))
            for z in inputs
        ]
        return np.array([float(e) / eps for e in errors])

    def sums() -> np.ndarray:
        return np.array([float(abs(sum(projected(z)) - 1)) / eps for z in inputs])

    def label(at: int) -> str:
        return f"scale={SHAPES[at][0]:g} n={SHAPES[at][1]}"

    name = str(dtype).removeprefix("torch.")
    names = (function, "entries", name, "rational")
    yield measured(names, len(inputs), VALUE_BAR, entries, label)
    names = (function, "sum", name, "rational")
    yield measured(names, len(inputs), SUM_BAR, sums, label)


def exact(z: list[float], k: int | None) -> list[Fraction]:
    """The projection onto the simplex, of the k largest entries, in rational arithmetic."""
    entries = [Fraction(x) for x in z]
    order = sorted(range(len(z)), key=lambda i: (-entries[i], i))[:k]
    total, threshold = Fraction(0), Fraction(0)
    for rank, i in enumerate(order, 1):
        total += entries[i]
        if entries[i] > (total - 1) / rank:
            threshold = (total - 1) / rank
    kept = {i for i in order if entries[i] > threshold}
    return [x - threshold if i in kept else Fraction(0) for i, x in enumerate(entries)]


def _plans(function: str, k: int | None) -> Row:
    gammas = (0.01, 0.3, 10.0)

    def error(gamma: float) -> float:
        C = _scores(1.0, 40 * 30, torch.float64).reshape(40, 30).square()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            if k is None:
                result = ot.quadratic_ot(None, None, C, gamma, tol=TOLERANCE)
                gap = abs(result.value.item() - result.lower_bound)
            else:
                result = ot.sparsity_constrained_ot(None, None, C, gamma, k, tol=TOLERANCE)
                gap = max(0.0, result.lower_bound - result.value.item())
        off = (result.plan.sum(1) - 1 / 40).abs().sum().item()
        return max(off, gap) / torch.finfo(torch.float64).eps

    return measured(
        (function, "marginals, gap", "float64", "dual bound"),
        len(gammas),
        PLAN_BAR,
        lambda: np.array([error(gamma) for gamma in gammas]),
        lambda at: f"gamma={gammas[at]:g}",
    )


def _scores(scale: float, n: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return (scale * torch.randn(n, generator=generator, dtype=torch.float64)).to(dtype)
