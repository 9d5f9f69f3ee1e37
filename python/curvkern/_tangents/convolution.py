r"""Convolutions of any dimension, grouped and transposed, by torch's own.

.. math::

    \dot y = \dot x * W + x * \dot W, \qquad
    (\dot{\bar x}, \dot{\bar W}) = \mathrm{backward}(\dot{\bar y}, x, W)
        + \mathrm{backward}(\bar y, \dot x, \dot W)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .rules import Op, Rule, Tangents, add, define


def _settings(op: Op) -> tuple[Any, ...]:
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    return tuple(op.saved(name) for name in names)


def _tangent(op: Op, t: Tangents) -> Any:
    x, W, bias = t
    settings = _settings(op)
    y: Tensor | None = None
    if x is not None:
        y = torch.ops.aten.convolution(x, op.saved("weight"), bias, *settings)
    if W is not None:
        other = None if y is not None else bias
        part = torch.ops.aten.convolution(op.saved("input"), W, other, *settings)
        y = part if y is None else y.add_(part)
    if y is None:
        assert bias is not None
        shape = op.outputs[0].shape
        y = bias.view(-1, *[1] * (len(shape) - 2)).expand(shape)
    return y


def _reverse(op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool) -> tuple[Any, Any]:
    x, W = op.saved("input"), op.saved("weight")
    sizes, settings = op.saved("bias_sym_sizes_opt"), _settings(op)
    needs = [op.needs(0), op.needs(1), op.needs(2)]

    def backward(
        grad: Tensor | None, x: Tensor | None, W: Tensor | None, mask: list[bool]
    ) -> Tangents:
        if grad is None or not any(mask):
            return [None, None, None]
        found = torch.ops.aten.convolution_backward(
            grad, x, W, list(sizes) if sizes is not None else None, *settings, mask
        )
        return list(found)

    first = backward(g[0], x, W, needs) if primal else None
    second = backward(gd[0], x, W, needs)
    tx, tW, _ = t
    third = backward(
        g[0],
        x if tx is None else tx,
        W if tW is None else tW,
        [needs[0] and tW is not None, needs[1] and tx is not None, False],
    )
    for i in range(2):
        a, b = second[i], third[i]
        second[i] = add(a, b) if a is None or b is None else a.add_(b)
    return first, second


define("Convolution", rule=Rule(_tangent, _reverse))
