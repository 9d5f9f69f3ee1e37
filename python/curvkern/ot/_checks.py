"""Refusals that depend on values: ranges, NaN, unequal masses, points out of all reach."""

from __future__ import annotations

import torch
from torch import Tensor

from .._sinkhorn import Problem

#: Mass of a solvable problem: exponents of its plan relative to a b' stay below those at which
#: its entries are cut (_kernel.LARGEST_EXPONENT).
LEAST_MASS = 1e-250

#: Names of both clouds where they are not x and y.
POINTS = {"monge_gap": ("x", "Tx")}


def check_values(
    function: str, problem: Problem, f: Tensor | None, g: Tensor | None, mass_tol: float
) -> None:
    """Raise ValueError where the tensors of a batch are no problem of optimal transport."""
    a, b = problem.a, problem.b
    check_positive(function, "eps", problem.eps, finite=True)
    check_positive(function, "rho", problem.rho, finite=False)
    for name, weights in (("a", a), ("b", b)):
        check_weights(function, name, weights)
    for name, potential in (("f of init", f), ("g of init", g)):
        if potential is not None:
            check_finite(function, name, potential)
    _check_masses(function, a, b, problem.rho, mass_tol)
    if problem.cost is not None:
        check_costs(function, "C", a, b, problem.cost)
    names = POINTS.get(function, ("x", "y"))
    for name, points in zip(names, problem[3:5], strict=True):
        if points is not None:
            check_finite(function, name, points)
    if problem.x is not None:
        _check_distance(function, names, problem)


def check_positive(function: str, name: str, value: Tensor, *, finite: bool) -> None:
    good = (value > 0) & (torch.isfinite(value) if finite else ~torch.isnan(value))
    if not bool(good.all()):
        bad = float(value[~good][0])
        kind = "positive and finite" if finite else "positive (inf for a hard marginal)"
        raise ValueError(f"{function}: {name} must be {kind}, got {bad}")


def check_weights(function: str, name: str, weights: Tensor) -> None:
    """Weights (B, n): finite, non-negative, with some mass."""
    check_finite(function, name, weights)
    if bool((weights < 0).any()):
        at, bad = _first(weights < 0, weights)
        raise ValueError(f"{function}: {name} must be non-negative, got {bad} at {at}")
    sums = weights.sum(1)
    if not bool((sums > 0).all()):
        where = "" if len(sums) == 1 else f" in problem {int((sums <= 0).nonzero()[0])}"
        raise ValueError(f"{function}: {name} has no mass{where}: all its weights are 0")
    if bool((sums < LEAST_MASS).any()):
        raise ValueError(
            f"{function}: the mass of {name} must be at least {LEAST_MASS:g}, got "
            f"{float(sums.min()):.3g}; rescale the weights"
        )
    if not bool(torch.isfinite(sums).all()):
        raise ValueError(f"{function}: the sum of {name} is too large for float64")


def check_finite(function: str, name: str, value: Tensor) -> None:
    # A sum is finite only if all terms are, unless it overflows; it needs no temporary.
    if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
        at, bad = _first(~torch.isfinite(value), value)
        raise ValueError(f"{function}: {name} must be finite, got {bad} at {at}")


def _check_distance(function: str, names: tuple[str, str], problem: Problem) -> None:
    """By the box around all points: the squares that make up a cost must not overflow."""
    clouds = [t for t in problem[3:5] if t is not None]
    low, high = zip(*(torch.aminmax(t, dim=1) for t in clouds), strict=True)
    extent = torch.maximum(*high).to(torch.float64) - torch.minimum(*low).to(torch.float64)
    cost = (extent if problem.kind == "l1" else extent**2).sum(1)
    if problem.kind == "euclidean":
        cost = cost.sqrt()
    dtype = clouds[0].dtype
    if not bool((problem.scale * cost <= torch.finfo(dtype).max).all()):
        raise ValueError(
            f"{function}: {names[0]} and {names[1]} are up to {float(extent.max()):.3g} apart, "
            f"where {problem.kind!r} costs are beyond {str(dtype).removeprefix('torch.')}; "
            "rescale the points"
        )


def check_costs(function: str, name: str, a: Tensor, b: Tensor, C: Tensor) -> None:
    """No NaN, no -inf, and a finite cost from every point with mass to one with mass."""
    low, high = torch.aminmax(C)
    if bool(torch.isnan(low)):
        at, _ = _first(torch.isnan(C), C)
        raise ValueError(f"{function}: {name} has nan at {at}")
    if bool(low == -torch.inf):
        at, _ = _first(torch.isneginf(C), C)
        raise ValueError(f"{function}: {name} must not be -inf, got it at {at}")
    top = high
    if bool(high == torch.inf):
        allowed = ~torch.isposinf(C)
        top = torch.where(allowed, C, low).amax()
        _check_reach(function, name, "row", a, (allowed & (b > 0)[:, None, :]).any(2))
        _check_reach(function, name, "column", b, (allowed & (a > 0)[:, :, None]).any(1))
    if not bool(torch.isfinite(2 * (top.to(torch.float64) - low.to(torch.float64)))):
        raise ValueError(
            f"{function}: {name} goes from {float(low):.3g} to {float(top):.3g}, a range beyond "
            "float64; rescale the costs"
        )


def _check_reach(function: str, name: str, line: str, mass: Tensor, reached: Tensor) -> None:
    cut = (mass > 0) & ~reached
    if bool(cut.any()):
        problem, index = cut.nonzero()[0].tolist()
        where = f" of problem {problem}" if len(mass) > 1 else ""
        raise ValueError(
            f"{function}: infeasible: {line} {index}{where} has mass but {name} is +inf "
            "wherever it could go; set its weight to 0 or allow a finite cost"
        )


def _check_masses(function: str, a: Tensor, b: Tensor, rho: Tensor, tolerance: float) -> None:
    sums, others = a.sum(1), b.sum(1)
    off = (sums - others).abs() > tolerance * torch.maximum(sums, others)
    off &= torch.isinf(rho).all(1)
    if bool(off.any()):
        k = int(off.nonzero()[0])
        raise ValueError(
            f"{function}: the balanced problem needs equal masses, but a sums to "
            f"{float(sums[k]):.9g} and b to {float(others[k]):.9g}; rescale one, or pass rho"
        )


def _first(mask: Tensor, value: Tensor) -> tuple[str, float]:
    """Index, without the batch where it has one problem, and value of the first element."""
    index = tuple(mask.nonzero()[0].tolist())
    shown = index[1:] if value.shape[0] == 1 and value.dim() > 1 else index
    return "[" + ", ".join(map(str, shown)) + "]", float(value[index])
