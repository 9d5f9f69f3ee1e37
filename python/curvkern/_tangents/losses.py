"""Losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .rules import Op, Rule, Tangents, add, define, linear


def _nll(name: str) -> Any:
    forward = getattr(torch.ops.aten, name)

    def tangent(op: Op, t: Tangents) -> Any:
        return forward(
            t[0], op.saved("target"), op.saved("weight"), op.saved("reduction"),
            op.signed("ignore_index"),
        )[0]  # fmt: skip

    return linear(tangent)


def _difference(op: Op, t: Tangents) -> Tensor:
    """Of the tangents of the prediction and the target, times 2, and over n for a mean."""
    a, b = t
    one = a if b is None else -b if a is None else a - b
    assert one is not None
    count = op.saved("self").numel() if op.saved("reduction") == 1 else 1
    return one * (2 / max(1, count))


def _mse_tangent(op: Op, t: Tangents) -> Any:
    y = _difference(op, t).mul(op.saved("self") - op.saved("target"))
    return y if op.saved("reduction") == 0 else y.sum()


def _mse_reverse(
    op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
) -> tuple[Any, Any]:
    x = op.vjp(g) if primal else None
    xd = op.vjp(gd)
    if g[0] is not None and any(one is not None for one in t):
        bent = g[0] * _difference(op, t)
        if op.needs(0):
            xd[0] = add(xd[0], bent)
        if op.needs(1):
            xd[1] = add(xd[1], -bent)
    return x, xd


define("NllLoss", rule=_nll("nll_loss_forward"))
define("NllLoss2D", rule=_nll("nll_loss2d_forward"))
define("MseLoss", rule=Rule(_mse_tangent, _mse_reverse))
