r"""Matrix products. See ``graph.py`` for the formulas.

Two products that add up are one where it pays: few rows of :math:`[\bar y; \dot{\bar y}]` go
through a large W together, which is then read once, and weight gradients of few rows are one
product over :math:`[\dot x; x]`, written once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .rules import Op, Rule, Tangents, add, define, plus_product, times

FEW = 4  # rows are few where so many times as many are fewer than those of W


def _product_of(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b) if a.dim() == 3 else torch.mm(a, b)


def _mm(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else _product_of(a, b)


def _plus_mm(sum_: Tensor | None, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """sum + a b, in place: the sum was made by one of these functions."""
    if a is None or b is None:
        return sum_
    if sum_ is None:
        return _mm(a, b)
    return sum_.baddbmm_(a, b) if a.dim() == 3 else sum_.addmm_(a, b)


def _pair(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """a c and b c; together where c is large and they are not."""
    if a.dim() == 2 and FEW * len(a) <= min(c.shape):
        first, second = torch.mm(torch.cat([a, b]), c).split(len(a))
        return first, second
    return _product_of(a, c), _product_of(b, c)


def _sum_of_two(
    a: Tensor | None, b: Tensor | None, c: Tensor | None, d: Tensor | None
) -> Tensor | None:
    """a b + c d."""
    if a is None or b is None or c is None or d is None:
        return _plus_mm(_mm(a, b), c, d)
    if a.dim() == 2 and FEW * a.shape[1] <= min(a.shape[0], b.shape[1]):
        return torch.mm(torch.cat([a, c], 1), torch.cat([b, d]))
    return _plus_mm(_mm(a, b), c, d)


def _weight(
    x: Tensor | None, g: Tensor | None, xd: Tensor | None, gd: Tensor | None, columns: bool
) -> Tensor | None:
    """x' g + xd' gd, stored as torch stores the gradient: by columns where W is."""
    if columns:
        return _t(_sum_of_two(_t(g), x, _t(gd), xd))
    return _sum_of_two(_t(x), g, _t(xd), gd)


def _t(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.mT


def _by_columns(op: Op) -> bool:
    if op.name == "BmmBackward0":
        return False
    return bool(op.saved("mat2_sym_strides")[0] == 1)


def _factors(op: Op, names: tuple[str, str]) -> tuple[Tensor | None, Tensor | None]:
    """Both; None where torch has not saved one, as the other has no gradient."""
    return op.saved(names[0]), op.saved(names[1])


def _product(names: tuple[str, str], inputs: int) -> Rule:
    """alpha a b, and beta c before it where there are three inputs."""

    def scale(op: Op, name: str) -> float:
        return float(op.saved(name)) if inputs == 3 else 1.0

    def scaled(value: Tensor | None, by: float) -> Tensor | None:
        return value if value is None or by == 1 else value * by

    def tangent(op: Op, t: Tangents) -> Any:
        ta, tb = t[-2:]
        a, b = _factors(op, names)
        y = scaled(_plus_mm(_mm(ta, b), a, tb), scale(op, "alpha"))
        if inputs == 3 and t[0] is not None:
            bias = scaled(t[0], scale(op, "beta"))
            assert bias is not None
            y = bias if y is None else y.add_(bias)
        return y

    def reverse(
        op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
    ) -> tuple[Any, Any]:
        a, b = _factors(op, names)
        ta, tb = t[-2:]
        alpha = scale(op, "alpha")
        x: Tangents = [None] * inputs
        xd: Tangents = [None] * inputs
        if inputs == 3 and op.needs(0):
            beta = scale(op, "beta")
            x[0], xd[0] = scaled(g[0], beta) if primal else None, scaled(gd[0], beta)
        one, dot = scaled(g[0], alpha), scaled(gd[0], alpha)
        if op.needs(inputs - 2):
            assert b is not None
            if primal and one is not None and dot is not None:
                x[-2], xd[-2] = _pair(one, dot, b.mT)
            else:
                x[-2] = _mm(one, b.mT) if primal else None
                xd[-2] = _mm(dot, b.mT)
            xd[-2] = _plus_mm(xd[-2], one, _t(tb))
        if op.needs(inputs - 1):
            assert a is not None
            columns = names[1] == "mat2" and _by_columns(op)
            x[-1] = _weight(a, one, None, None, columns) if primal else None
            xd[-1] = _weight(ta, one, a, dot, columns)
        return x, xd

    return Rule(tangent, reverse)


def _vector_tangent(op: Op, t: Tangents) -> Any:
    A, x = op.saved("self"), op.saved("vec")
    return add(
        None if t[0] is None else t[0] @ x, None if t[1] is None else A @ t[1]
    )  # fmt: skip


def _vector_reverse(
    op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
) -> tuple[Any, Any]:
    x = op.vjp(g) if primal else None
    xd = op.vjp(gd)
    one, (tA, tx) = g[0], t
    if one is not None:
        if op.needs(0) and tx is not None:
            xd[0] = add(xd[0], torch.outer(one, tx))
        if op.needs(1) and tA is not None:
            xd[1] = add(xd[1], tA.mT @ one)
    return x, xd


def _dot_tangent(op: Op, t: Tangents) -> Any:
    a, b = t
    return add(
        None if a is None else a.dot(op.saved("tensor")),
        None if b is None else b.dot(op.saved("self")),
    )


def _dot_reverse(
    op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
) -> tuple[Any, Any]:
    x: Tangents = [None, None]
    xd: Tangents = [None, None]
    for i, name in enumerate(("tensor", "self")):
        if op.needs(i):
            factor = op.saved(name)
            x[i] = times(g[0], factor) if primal else None
            xd[i] = plus_product(times(gd[0], factor), g[0], t[1 - i])
    return x, xd


define("Mm", "Bmm", rule=_product(("self", "mat2"), 2))
define("Addmm", rule=_product(("mat1", "mat2"), 3))
define("Baddbmm", rule=_product(("batch1", "batch2"), 3))
define("Mv", rule=Rule(_vector_tangent, _vector_reverse))
define("Dot", rule=Rule(_dot_tangent, _dot_reverse))
