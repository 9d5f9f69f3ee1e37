r"""Activations, entry by entry, and softmax.

Where :math:`y = f(x)`, torch's backward multiplies by :math:`f'(x)`, so it takes tangents
forward as well; what it lacks is :math:`f''(x) \dot x \bar y`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .rules import DIAGONAL, Op, Rule, Tangents, add, define

Second = Callable[[Op], Tensor]


def _tangent(op: Op, t: Tangents) -> Any:
    return op.vjp(t)


def _smooth(second: Second) -> Rule:
    def reverse(
        op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
    ) -> tuple[Any, Any]:
        x = op.vjp(g) if primal else None
        xd = op.vjp(gd)
        if g[0] is not None and t[0] is not None:
            bent = second(op).mul_(t[0]).mul_(g[0])
            xd[0] = bent if xd[0] is None else bent.add_(xd[0])
        return x, xd

    return Rule(_tangent, reverse)


def _tanh(op: Op) -> Tensor:
    y = op.saved("result")
    return (y.square() - 1).mul_(y).mul_(2)


def _sigmoid(op: Op) -> Tensor:
    y = op.saved("result")
    return (1 - y).mul_(y).mul_(1 - 2 * y)


def _silu(op: Op) -> Tensor:
    # (x s)'' = s (1 - s) (2 + x (1 - 2 s))
    x = op.saved("self")
    s = torch.sigmoid(x)
    return (2 + x * (1 - 2 * s)).mul_(s).mul_(1 - s)


def _softplus(op: Op) -> Tensor:
    x, beta = op.saved("self"), op.saved("beta")
    s = torch.sigmoid(x * beta)
    return (beta * s * (1 - s)).masked_fill_(x * beta > op.saved("threshold"), 0)


def _gelu(op: Op) -> Tensor:
    x = op.saved("self")
    square = x.square()
    if op.saved("approximate") == "none":
        # (x Phi)'' = phi(x) (2 - x^2)
        return square.mul(-0.5).exp_().mul_(2 - square).mul_(1 / math.sqrt(2 * math.pi))
    # y = x (1 + tanh u) / 2, u = a (x + b x^3)
    a, b = math.sqrt(2 / math.pi), 0.044715
    y = torch.tanh(a * x * (1 + b * square))
    first = a * (1 + 3 * b * square)  # u'
    slope = 1 - y.square()
    return slope * (first + x * (3 * a * b * x - y * first.square()))


def _gelu_reverse(
    op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
) -> tuple[Any, Any]:
    x, one, along = op.saved("self"), g[0], t[0]
    exact = op.saved("approximate") == "none"
    if one is None or along is None or not exact or not kernels.takes(x, one, along, gd[0]):
        return _smooth(_gelu).reverse(op, t, g, gd, primal)
    xd = op.vjp(gd)[0]
    xd = torch.zeros_like(x) if xd is None else kernels.dense(xd)
    kernels.module().gelu_bend(x.detach(), kernels.dense(along), kernels.dense(one), xd)
    return op.vjp(g) if primal else None, [xd]


def _elu(op: Op) -> Tensor:
    x, alpha = op.saved("self"), op.saved("alpha")
    scale, rate = op.saved("scale"), op.saved("input_scale")
    return (x * rate).exp().mul_(scale * alpha * rate * rate).masked_fill_(x > 0, 0)


def _celu(op: Op) -> Tensor:
    x, alpha = op.saved("self"), op.saved("alpha")
    return (x / alpha).exp().div_(alpha).masked_fill_(x > 0, 0)


def _log_sigmoid(op: Op) -> Tensor:
    s = torch.sigmoid(op.saved("self"))
    return (s - 1).mul_(s)


def _erf(op: Op) -> Tensor:
    x = op.saved("self")
    return x.square().neg_().exp_().mul_(x).mul_(-4 / math.sqrt(math.pi))


def _softmax(op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool) -> tuple[Any, Any]:
    # x' = y (g - s), s = sum(y g) along the dimension
    x = op.vjp(g) if primal else None
    xd = op.vjp(gd)
    if g[0] is not None and t[0] is not None:
        dim, y, yd = op.signed("dim"), op.saved("result"), op.vjp(t)[0]
        assert yd is not None
        rest = g[0] - (y * g[0]).sum(dim, keepdim=True)
        bent = rest.mul_(yd).addcmul_(y, (yd * g[0]).sum(dim, keepdim=True), value=-1)
        xd[0] = add(xd[0], bent)
    return x, xd


def _log_softmax_tangent(op: Op, t: Tangents) -> Any:
    p = op.saved("result").exp()
    one = t[0]
    assert one is not None
    return one - p.mul_(one).sum(op.signed("dim"), keepdim=True)


def _log_softmax(
    op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
) -> tuple[Any, Any]:
    # x' = g - p sum(g), and p has the tangent p y'
    x = op.vjp(g) if primal else None
    xd = op.vjp(gd)
    if g[0] is not None and t[0] is not None:
        dim, p = op.signed("dim"), op.saved("result").exp()
        one = t[0]
        yd = one - (p * one).sum(dim, keepdim=True)
        bent = p.mul_(yd).mul_(g[0].sum(dim, keepdim=True))
        xd[0] = -bent if xd[0] is None else xd[0] - bent
    return x, xd


define(
    "Relu", "LeakyRelu", "Hardtanh", "Threshold", "Abs", "ClampBackward1",
    "ClampMin", "ClampMax", rule=DIAGONAL,
)  # fmt: skip
define("Tanh", rule=_smooth(_tanh))
define("Sigmoid", rule=_smooth(_sigmoid))
define("Silu", rule=_smooth(_silu))
define("Softplus", rule=_smooth(_softplus))
define("Gelu", rule=Rule(_tangent, _gelu_reverse))
define("Elu", rule=_smooth(_elu))
define("Celu", rule=_smooth(_celu))
define("LogSigmoid", rule=_smooth(_log_sigmoid))
define("Erf", rule=_smooth(_erf))
define("Exp", rule=_smooth(lambda op: op.saved("result").clone()))
define("Expm1", rule=_smooth(lambda op: op.saved("result") + 1))
define("Log", rule=_smooth(lambda op: op.saved("self").square().reciprocal_().neg_()))
define("Log1P", rule=_smooth(lambda op: (op.saved("self") + 1).square_().reciprocal_().neg_()))
define("Sin", rule=_smooth(lambda op: op.saved("self").sin().neg_()))
define("Cos", rule=_smooth(lambda op: op.saved("self").cos().neg_()))
define("Sqrt", rule=_smooth(lambda op: op.saved("result").pow(-3).mul_(-0.25)))
define("Rsqrt", rule=_smooth(lambda op: op.saved("result").pow(5).mul_(0.75)))
define("Reciprocal", rule=_smooth(lambda op: op.saved("result").pow(3).mul_(2)))
define("Softmax", "SafeSoftmax", rule=Rule(_tangent, _softmax))
define("LogSoftmax", rule=Rule(_log_softmax_tangent, _log_softmax))
