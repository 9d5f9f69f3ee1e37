r"""Batch, layer and group normalization: :math:`y = w \hat x + b,\ \hat x = r (x - \mu)`.

With means over what shares its statistics, J = dx^/dx is symmetric:

.. math::

    \dot{\hat x} &= r (\dot x - \overline{\dot x} - \hat x \overline{\hat x \dot x}), \qquad
    \bar x = r (u - \overline{u} - \hat x \overline{\hat x u}), \quad u = w \bar y, \\
    \dot{\bar x} &= r (\dot u - \overline{\dot u} - \dot{\hat x} \overline{\hat x u}
        - \hat x \overline{\dot{\hat x} u + \hat x \dot u})
        - r \overline{\hat x \dot x}\, \bar x

Batch normalization in evaluation takes fixed :math:`\mu` and r: then J = r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .rules import Op, Rule, Tangents, add, define

SPAN = 8  # elements of a channel next to each other from which on passes by channel pay


@dataclass
class Norm:
    """x in a shape where statistics are over ``dims`` and weights broadcast from ``shape``."""

    x: Tensor
    mean: Tensor
    r: Tensor
    weight: Tensor | None
    dims: tuple[int, ...]
    shape: tuple[int, ...]
    #: Groups and what is next to each other in them, where compiled passes take it.
    groups: int = 1
    inner: int = 0
    by_channel: bool = False
    fixed: bool = False

    def view(self, t: Tensor | None) -> Tensor | None:
        return None if t is None else t.reshape(self.x.shape)

    def weights(self, t: Tensor | None) -> Tensor | None:
        return None if t is None else t.reshape(self.shape)

    def hat(self) -> Tensor:
        return (self.x - self.mean).mul_(self.r)

    def project(self, hat: Tensor, t: Tensor) -> Tensor:
        """J t."""
        if self.fixed:
            return t * self.r
        inner = (hat * t).mean(self.dims, keepdim=True)
        return (t - t.mean(self.dims, keepdim=True)).addcmul_(hat, inner, value=-1).mul_(self.r)

    def scaled(self, g: Tensor) -> Tensor:
        w = self.weights(self.weight)
        return g if w is None else g * w


def _batch(op: Op) -> Norm:
    x = op.saved("input")
    shape = (1, x.shape[1]) + (1,) * (x.dim() - 2)
    training = op.saved("training")
    if training:
        mean, r = op.saved("result1"), op.saved("result2")
    else:
        mean = op.saved("running_mean")
        r = (op.saved("running_var") + op.saved("eps")).rsqrt()
    spatial = x.shape[2:].numel()
    return Norm(
        x, mean.view(shape), r.view(shape), op.saved("weight"), (0, *range(2, x.dim())), shape,
        x.shape[1], spatial if training and spatial >= SPAN else 0, True, not training,
    )  # fmt: skip


def _layer(op: Op) -> Norm:
    x, shape = op.saved("input"), tuple(op.saved("normalized_shape"))
    dims = tuple(range(x.dim() - len(shape), x.dim()))
    return Norm(
        x, op.saved("result1"), op.saved("result2"), op.saved("weight"), dims,
        (1,) * (x.dim() - len(shape)) + shape, 1, math.prod(shape),
    )  # fmt: skip


def _group(op: Op) -> Norm:
    x, groups = op.saved("input"), op.saved("group")
    n, c = x.shape[:2]
    stats = (n, groups, 1, 1)
    return Norm(
        x.reshape(n, groups, c // groups, -1), op.saved("result1").view(stats),
        op.saved("result2").view(stats), op.saved("weight"), (2, 3),
        (1, groups, c // groups, 1),
    )  # fmt: skip


def _is_native(norm: Norm, tensors: Tangents) -> bool:
    known = tensors[0] is not None and norm.inner > 0
    return known and kernels.takes(norm.x, norm.weight, norm.mean, *tensors)


def _vectors(norm: Norm, t: Tangents) -> list[Tensor | None]:
    return [kernels.maybe_dense(one) for one in (norm.weight, *t[1:])]


def _native_tangent(norm: Norm, t: Tangents) -> Tensor:
    x, xd = norm.x.detach(), t[0]
    assert xd is not None
    y = torch.empty_like(x)
    kernels.module().norm_tangent(
        x, kernels.dense(xd), *_vectors(norm, t), kernels.dense(norm.mean),
        kernels.dense(norm.r), norm.groups, norm.inner, norm.by_channel, y,
    )  # fmt: skip
    return y


def _native_reverse(
    op: Op, norm: Norm, t: Tangents, g: Tensor, gd: Tensor, primal: bool
) -> tuple[Any, Any]:
    x, xd = norm.x.detach(), t[0]
    assert xd is not None
    bar = torch.empty_like(x) if primal and op.needs(0) else None
    bar_dot = torch.empty_like(x)
    rows = x.numel() // (norm.groups * norm.inner)
    width = norm.groups if norm.by_channel else norm.inner
    chunks = 1 if norm.by_channel else -(-rows // kernels.ROWS)
    sums = x.new_empty(chunks, 4, width)
    kernels.module().norm_reverse(
        x, kernels.dense(xd), *_vectors(norm, t)[:2], kernels.dense(norm.mean),
        kernels.dense(norm.r), norm.groups, norm.inner, norm.by_channel, kernels.dense(g),
        kernels.dense(gd), bar, bar_dot, sums,
    )  # fmt: skip
    w, wd, b, bd = sums.sum(0) if chunks > 1 else sums[0]

    def like(i: int, value: Tensor) -> Tensor | None:
        return value.reshape(shape_of(op, i)) if op.needs(i) else None

    found = [bar, like(1, w), like(2, b)] if primal else None
    return found, [bar_dot if op.needs(0) else None, like(1, wd), like(2, bd)]


def shape_of(op: Op, i: int) -> torch.Size:
    meta = op.inputs[i]
    assert meta is not None
    return meta.shape


def _rule(norm_of: Any) -> Rule:
    def tangent(op: Op, t: Tangents) -> Any:
        norm = norm_of(op)
        if _is_native(norm, t):
            return _native_tangent(norm, t)
        hat = norm.hat()
        y: Tensor | None = None
        x, w, b = norm.view(t[0]), norm.weights(t[1]), norm.weights(t[2])
        if x is not None:
            y = norm.scaled(norm.project(hat, x))
        if w is not None:
            y = hat * w if y is None else y.addcmul(hat, w)
        if b is not None:
            y = b.expand(norm.x.shape) if y is None else y + b
        assert y is not None
        return y.reshape(op.outputs[0].shape)

    def reverse(
        op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
    ) -> tuple[Any, Any]:
        norm = norm_of(op)
        if g[0] is not None and gd[0] is not None and _is_native(norm, [*t, *g, *gd]):
            return _native_reverse(op, norm, t, g[0], gd[0], primal)
        hat = norm.hat()
        one, dot = norm.view(g[0]), norm.view(gd[0])
        tx, tw = norm.view(t[0]), norm.weights(t[1])
        hat_dot = None if tx is None else norm.project(hat, tx)
        x: Tangents = [None] * 3
        xd: Tangents = [None] * 3

        def weight_like(i: int, value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value.sum_to_size(norm.shape).reshape(shape_of(op, i))

        if op.needs(1):
            x[1] = weight_like(1, one * hat) if primal and one is not None else None
            part = None if dot is None else dot * hat
            if one is not None and hat_dot is not None:
                part = one * hat_dot if part is None else part.addcmul_(one, hat_dot)
            xd[1] = weight_like(1, part)
        if op.needs(2):
            x[2] = weight_like(2, one) if primal else None
            xd[2] = weight_like(2, dot)
        if op.needs(0):
            u = None if one is None else norm.scaled(one)
            ud = None if dot is None else norm.scaled(dot)
            if one is not None and tw is not None:
                ud = add(ud, one * tw)
            bar = None
            if u is not None and (primal or tx is not None):
                bar = norm.project(hat, u)
            bar_dot = None if ud is None else norm.project(hat, ud)
            if u is not None and tx is not None and hat_dot is not None and not norm.fixed:
                mean = lambda a, b: (a * b).mean(norm.dims, keepdim=True)  # noqa: E731
                bent = (hat_dot * mean(hat, u)).addcmul_(hat, mean(hat_dot, u)).mul_(norm.r)
                bent.addcmul_(bar, norm.r * mean(hat, tx))
                bar_dot = -bent if bar_dot is None else bar_dot.sub_(bent)
            shape = shape_of(op, 0)
            x[0] = None if bar is None or not primal else bar.reshape(shape)
            xd[0] = None if bar_dot is None else bar_dot.reshape(shape)
        return x if primal else None, xd

    return Rule(tangent, reverse)


define("NativeBatchNorm", rule=_rule(_batch))
define("NativeLayerNorm", rule=_rule(_layer))
define("NativeGroupNorm", rule=_rule(_group))
