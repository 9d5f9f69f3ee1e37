"""Sums, products and powers, entry by entry."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .rules import DIAGONAL, Op, Rule, Tangents, add, define, linear, plus_product, times


def _sum(op: Op, t: Tangents) -> Any:
    a, b = t
    alpha = op.saved("alpha")
    if b is not None and alpha != 1:
        b = b * alpha
    return add(a, b)


def _difference(op: Op, t: Tangents) -> Any:
    a, b = t
    if b is None:
        return a
    alpha = op.saved("alpha")
    return b * -alpha if a is None else a.sub(b, alpha=alpha)


def _where(op: Op, t: Tangents) -> Any:
    a, b = t
    condition = op.saved("condition")
    if a is None:
        assert b is not None
        return b * ~condition
    return a * condition if b is None else a.where(condition, b)


def _product(op: Op, t: Tangents) -> Any:
    a, b = t
    return plus_product(
        times(a, None if a is None else op.saved("other")),
        b, None if b is None else op.saved("self"),
    )  # fmt: skip


def _reverse_product(
    op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
) -> tuple[Any, Any]:
    x: Tangents = [None, None]
    xd: Tangents = [None, None]
    for i, name in enumerate(("other", "self")):
        if op.needs(i):
            factor = op.saved(name)
            x[i] = times(g[0], factor) if primal else None
            xd[i] = plus_product(times(gd[0], factor), g[0], t[1 - i])
    return x, xd


def _quotient(op: Op, t: Tangents) -> Any:
    a, b = t
    other = op.saved("other")
    y = None if a is None else a / other
    if b is not None:
        back = op.saved("self") * b / other.square()
        y = -back if y is None else y - back
    return y


def _reverse_quotient(
    op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
) -> tuple[Any, Any]:
    # a' = g / b and b' = -g a / b^2, of which tangents are taken
    other = op.saved("other")
    x = op.vjp(g) if primal else None
    xd = op.vjp(gd)
    one, (ta, tb) = g[0], t
    if one is None:
        return x, xd
    part = one / other.square()
    if op.needs(0):
        xd[0] = plus_product(xd[0], part, None if tb is None else -tb)
    if op.needs(1):
        if ta is not None:
            xd[1] = plus_product(xd[1], part, -ta)
        if tb is not None:
            xd[1] = plus_product(xd[1], part * (2 * op.saved("self") / other), tb)
    return x, xd


def _power(op: Op) -> Tensor | float | None:
    """The second derivative of x^n."""
    n, x = op.saved("exponent"), op.saved("self")
    if n in (0, 1):
        return None
    return 2.0 if n == 2 else x.pow(n - 2).mul_(n * (n - 1))


def _power_tangent(op: Op, t: Tangents) -> Any:
    return op.vjp(t)


def _reverse_power(
    op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
) -> tuple[Any, Any]:
    x = op.vjp(g) if primal else None
    xd = op.vjp(gd)
    second = _power(op)
    if g[0] is not None and t[0] is not None and second is not None:
        xd[0] = add(xd[0], (g[0] * t[0]) * second)
    return x, xd


define("Add", rule=linear(_sum))
define("Sub", rule=linear(_difference))
define("Where", rule=linear(_where))
define("Mul", rule=Rule(_product, _reverse_product))
define("Div", rule=Rule(_quotient, _reverse_quotient))
define("Pow", rule=Rule(_power_tangent, _reverse_power))
define(
    "Neg", "MulBackward1", "AddBackward1", "SubBackward1", "RsubBackward1", "DivBackward1",
    "MaskedFill", "NativeDropout", "Tril", "Triu", rule=DIAGONAL,
)  # fmt: skip
