"""Self-test of optimal transport: closed forms, marginals, and derivatives against plans.

Errors are relative to the largest truth of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .. import ot
from . import Row, measured

TOL = 1e-13
#: In eps of float64; what rests on marginals that are right to TOL alone.
EXACT, SOLVED = 64.0, 1e4
DIFFERENCES = 1e-7 / torch.finfo(torch.float64).eps
EPSILONS = (3.0, 0.3, 0.03, 0.003)


def rows() -> Iterator[Row]:
    """Swaps of two points, separable costs, one point unbalanced; marginals and slopes."""
    yield _row("sinkhorn", "value", "closed form", 4, EXACT, _swap)
    yield _row("sinkhorn", "plan", "closed form", 30, SOLVED, _separable)
    yield _row("sinkhorn", "unbalanced", "closed form", 4, SOLVED, _one_point)
    for method in ("auto", "newton"):
        quantity = f"marginals {method}"
        yield _row("sinkhorn", quantity, "weights", 4 * 27, SOLVED, partial(_met, method))
    yield _row("sinkhorn", "d/dC", "differences", 1, DIFFERENCES, _slope)
    yield _row("sinkhorn_points", "d2/dx2", "differences", 12, DIFFERENCES, _curvature)
    yield _row("sinkhorn_divergence", "value", "closed form", 4, SOLVED, _shift)


def _row(
    function: str,
    quantity: str,
    against: str,
    points: int,
    bar: float,
    compute: Callable[[], tuple[Tensor, Tensor]],
) -> Row:
    def errors() -> np.ndarray:
        found, truth = compute()
        scale = truth.abs().max() * torch.finfo(torch.float64).eps
        return ((found - truth).abs() / scale).detach().numpy().ravel()

    names = (function, quantity, "float64", against)
    return measured(names, points, bar, errors, lambda at: f"entry {at}")


def _swap() -> tuple[Tensor, Tensor]:
    """-eps log((1 + exp(-1 / eps)) / 2): by symmetry f = g, and the rows add up to 1."""
    eps = torch.tensor(EPSILONS, dtype=torch.float64)
    C = 1 - torch.eye(2, dtype=torch.float64)
    value = ot.sinkhorn(None, None, C.expand(len(eps), 2, 2), eps, tol=TOL).value
    return value, -eps * torch.log((1 + torch.exp(-1 / eps)) / 2)


def _random(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(71993)
    a, b, C = (
        torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
        for shape in ((n,), (m,), (n, m))
    )
    return a / a.sum(), b / b.sum(), C


def _separable() -> tuple[Tensor, Tensor]:
    """Costs u_i + v_j leave all plans equal, so that P = a b'."""
    a, b, C = _random(5, 6)
    plan = ot.sinkhorn(a, b, C[:, :1] - C[:1], 0.1, tol=TOL).plan
    return plan, a[:, None] * b


def _one_point() -> tuple[Tensor, Tensor]:
    """log p = (eps log(a b) + rho_a log a + rho_b log b - C) / (eps + rho_a + rho_b)."""
    a, b, C, rho = 2.0, 0.5, 0.7, (0.3, 0.9)
    eps = torch.tensor(EPSILONS, dtype=torch.float64)
    one = torch.ones(len(eps), 1, dtype=torch.float64)
    plan = ot.sinkhorn(a * one, b * one, C * one[..., None], eps, rho=rho, tol=TOL).plan
    top = rho[0] * np.log(a) + rho[1] * np.log(b) - C + eps * np.log(a * b)
    return plan[:, 0, 0], torch.exp(top / (eps + sum(rho)))


def _met(method: str) -> tuple[Tensor, Tensor]:
    a, b, C = _random(12, 15)
    eps = torch.tensor(EPSILONS, dtype=torch.float64)
    plan = ot.sinkhorn(a, b, C.expand(len(eps), 12, 15), eps, tol=TOL, method=method).plan
    found = torch.cat([plan.sum(2), plan.sum(1)], 1)
    return found, torch.cat([a, b]).expand_as(found)


def _slope() -> tuple[Tensor, Tensor]:
    """The gradient of the value along a direction, and the difference of two values."""
    a, b, C = _random(12, 15)
    direction, step = C.flip(0) - 0.5, 1e-5

    def value(C: Tensor) -> Tensor:
        result: Tensor = ot.sinkhorn(a, b, C, 0.03, tol=TOL).value
        return result

    found = (torch.func.grad(value)(C) * direction).sum()
    return found, (value(C + step * direction) - value(C - step * direction)) / (2 * step)


def _curvature() -> tuple[Tensor, Tensor]:
    """The second derivative along a direction, and the difference of two first ones."""
    _, _, x = _random(6, 2)
    y, direction, step = x.flip(1) + 0.5, x.flip(0) - 0.5, 1e-5

    def value(x: Tensor) -> Tensor:
        result: Tensor = ot.sinkhorn_points(x, y, 0.3, tol=TOL).value
        return result

    first = torch.func.grad(value)
    found = torch.func.jvp(first, (x,), (direction,))[1]
    return found, (first(x + step * direction) - first(x - step * direction)) / (2 * step)


def _shift() -> tuple[Tensor, Tensor]:
    """Between a cloud and itself moved by v the divergence is |v|^2."""
    _, _, x = _random(6, 2)
    v = torch.tensor([0.3, -0.4], dtype=torch.float64)
    found = torch.stack([ot.sinkhorn_divergence(x, x + v, e, tol=TOL) for e in EPSILONS])
    return found, torch.full_like(found, 0.25)
