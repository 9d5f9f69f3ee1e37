r"""Steps of AdaHessian and its relatives and means over probes, in plain PyTorch.

.. math::
    D = z \odot H z, \quad \bar D = \text{mean of } |D| \text{ or } D, \quad
    m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
    v \leftarrow \beta_2 v + (1 - \beta_2) \bar D^2, \\
    p \leftarrow p - \eta \Bigl(\frac{m / (1 - \beta_1^t)}
    {(\sqrt v / \sqrt{1 - \beta_2^s})^k + \epsilon} + \lambda p\Bigr)

Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney, "ADAHESSIAN: An Adaptive Second Order Optimizer
for Machine Learning", AAAI 2021. The papers of the relatives are named by their classes in
``curvkern.optim``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .philox import fill_signs, signs

__all__ = [
    "DescentRow",
    "MetricRow",
    "Row",
    "SophiaRow",
    "accumulate",
    "descent",
    "fill_signs",
    "metric",
    "signs",
    "sophia",
    "spatial_mean",
    "step",
]

Spatial = str | Sequence[int]


class Row(NamedTuple):
    """The numbers of a group; biases are 1 - beta1^t and 1 - beta2^s, flags are 0 or 1."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    power: float
    first_bias: float
    second_bias: float
    maximize: float = 0.0
    atan2: float = 0.0
    signed: float = 0.0


class SophiaRow(NamedTuple):
    """The numbers of a group of Sophia's."""

    lr: float
    beta1: float
    beta2: float
    gamma: float
    eps: float
    weight_decay: float


class MetricRow(NamedTuple):
    """Of OASIS and SANIA; ``known`` is 1 where there are a last parameter and gradient."""

    beta2: float
    alpha: float
    known: float


class DescentRow(NamedTuple):
    """The length of the step and the least curvature."""

    rate: float
    alpha: float


def spatial_mean(D: Tensor, spatial: Spatial) -> Tensor:
    """The mean over the dimensions or flat blocks that a mode names, in all their elements.

    "conv": dimensions from the third on. "row": the last of two or more. A tuple has a length
    of flat blocks for 1, 2, 3, and 4 or more dimensions; -1 stands for none of one, the last of
    two or three, those from the third on of more.
    """
    n = D.dim()
    if D.numel() == 0 or n == 0 or spatial == "none":
        return D
    dims: list[int] = []
    if spatial == "conv":
        dims = list(range(2, n))
    elif spatial == "row":
        dims = [n - 1] if n > 1 else []
    else:
        size = int(spatial[min(n, 4) - 1])
        if size >= 0:
            return _block_mean(D, size)
        dims = list(range(2, n)) if n > 3 else [n - 1] if n > 1 else []
    return D.mean(dims, keepdim=True).expand_as(D) if dims else D


def _block_mean(D: Tensor, size: int) -> Tensor:
    """Means of flat blocks, of which the last may be shorter."""
    flat = D.reshape(-1)
    whole = flat.numel() // size * size
    means = flat[:whole].view(-1, size).mean(1).repeat_interleave(size)
    if whole < flat.numel():
        rest = flat[whole:]
        means = torch.cat([means, rest.mean().expand_as(rest)])
    return means.view(D.shape)


def _blocks(D: Tensor, block: int) -> Tensor:
    return D if block == 1 or D.numel() == 0 else _block_mean(D, block)


def _mean_products(
    hz: Sequence[Tensor],
    z: Sequence[Tensor],
    like: Sequence[Tensor],
    offsets: Sequence[int],
    draws: Sequence[bool],
    seed: int,
    index: int,
    first: int = 0,
) -> list[Tensor]:
    """The mean of z hz over probes, in the state's dtype. It may be hz itself."""
    count = len(like)
    probes = len(hz) // count
    mean = []
    for i, state in enumerate(like):
        products = []
        for probe in range(probes):
            product = hz[probe * count + i].to(state.dtype)
            if z:
                product = product * z[probe * count + i]
            elif draws[i]:
                sign = signs(product.numel(), offsets[i], seed, index, first + probe)
                product = product * sign.view(product.shape).to(product)
            products.append(product if probes == 1 else product / probes)
        mean.append(sum(products[1:], products[0]))
    return mean


def step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    hz: Sequence[Tensor],
    z: Sequence[Tensor],
    m: Sequence[Tensor],
    v: Sequence[Tensor],
    stale: Sequence[Tensor],
    blocks: Sequence[int],
    offsets: Sequence[int],
    rows: Sequence[int],
    settings: Sequence[float],
    scale: float,
    draws: bool,
    seed: int,
    index: int,
) -> None:
    """What ``torch.ops.curvkern.hutchinson_step`` does, with the same arguments."""
    count = len(params)
    if not count:
        return
    table = [
        Row(*settings[i : i + len(Row._fields)])
        for i in range(0, len(settings), len(Row._fields))
    ]
    curvature: list[Tensor] | None = None
    if hz:
        curvature = []
        is_signed = [bool(table[row].signed) for row in rows]
        matters = [  # the sign of D
            draws and (len(hz) > count or (signed and block > 1))
            for signed, block in zip(is_signed, blocks, strict=True)
        ]
        D = _mean_products(hz, z, m, offsets, matters, seed, index)
        for i, (block, signed) in enumerate(zip(blocks, is_signed, strict=True)):
            mean = _blocks(D[i] if signed else D[i].abs(), block)
            curvature.append((mean * scale).abs())
        if stale:
            torch._foreach_copy_(list(stale), curvature)
    elif stale:
        curvature = list(stale)
    for number, row in enumerate(table):
        mine = [i for i in range(count) if rows[i] == number]
        if mine:
            known = None if curvature is None else [curvature[i] for i in mine]
            p, g, first, second = ([t[i] for i in mine] for t in (params, grads, m, v))
            _update(p, g, first, second, known, row, scale)


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    D: list[Tensor] | None,
    row: Row,
    scale: float,
) -> None:
    sign = -scale if row.maximize else scale
    g = [grad.to(state.dtype) * sign for grad, state in zip(grads, m, strict=True)]
    torch._foreach_mul_(m, row.beta1)
    torch._foreach_add_(m, g, alpha=1 - row.beta1)
    if D is not None:
        torch._foreach_mul_(v, row.beta2)
        torch._foreach_addcmul_(v, D, D, 1 - row.beta2)
    base = list(torch._foreach_sqrt(v))
    torch._foreach_div_(base, math.sqrt(row.second_bias))
    if row.power != 1:
        base = list(torch._foreach_pow(base, row.power))
    if row.atan2:
        update = [torch.atan2(a / row.first_bias, b) for a, b in zip(m, base, strict=True)]
    else:
        torch._foreach_add_(base, row.eps)
        update = list(torch._foreach_div(m, base))
        torch._foreach_div_(update, row.first_bias)
    for p, direction in zip(params, update, strict=True):
        p.copy_(p.to(direction.dtype) * (1 - row.lr * row.weight_decay) - row.lr * direction)


def _rows(kind: type[Any], rows: Sequence[int], settings: Sequence[float]) -> list[Any]:
    """The row of each parameter."""
    width = len(kind._fields)
    return [kind(*settings[row * width : (row + 1) * width]) for row in rows]


def sophia(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    hz: Sequence[Tensor],
    z: Sequence[Tensor],
    m: Sequence[Tensor],
    h: Sequence[Tensor],
    offsets: Sequence[int],
    rows: Sequence[int],
    settings: Sequence[float],
    scale: float,
    weight: float,
    draws: bool,
    seed: int,
    index: int,
) -> None:
    """What ``torch.ops.curvkern.hutchinson_sophia`` does, with the same arguments."""
    D = _mean_products(hz, z, m, offsets, [draws] * len(m), seed, index) if hz else []
    for i, (p, row) in enumerate(zip(params, _rows(SophiaRow, rows, settings), strict=True)):
        g = grads[i].to(m[i].dtype) * scale
        m[i].mul_(row.beta1).add_(g, alpha=1 - row.beta1)
        if D:
            h[i].mul_(row.beta2).add_(D[i] * weight, alpha=1 - row.beta2)
        quotient = m[i] / (row.gamma * h[i]).clamp_min(row.eps)
        direction = quotient.nan_to_num_(0.0).clamp_(-1, 1)
        p.copy_(p.to(g.dtype) * (1 - row.lr * row.weight_decay) - row.lr * direction)


def metric(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    hz: Sequence[Tensor],
    z: Sequence[Tensor],
    D: Sequence[Tensor],
    last_p: Sequence[Tensor],
    last_g: Sequence[Tensor],
    offsets: Sequence[int],
    rows: Sequence[int],
    settings: Sequence[float],
    scale: float,
    draws: bool,
    seed: int,
    index: int,
    probe: int,
) -> Tensor:
    """What ``torch.ops.curvkern.hutchinson_metric`` does, with the same arguments.

    With dw and dg what parameters and gradients have changed by since the last step, returns
    the sums of B dw^2, dg^2 / B and g^2 / B over all parameters, B = max(abs(D), alpha).
    """
    sums = torch.zeros(3, dtype=torch.float64, device=params[0].device if params else None)
    if not params:
        return sums
    new = _mean_products(hz, z, D, offsets, [draws] * len(D), seed, index, probe)
    for i, row in enumerate(_rows(MetricRow, rows, settings)):
        g = grads[i].to(D[i].dtype) * scale
        D[i].mul_(row.beta2).add_(new[i] * scale, alpha=1 - row.beta2)
        B = D[i].abs().clamp_min(row.alpha).double()
        sums[2] += (g.double() ** 2 / B).sum()
        if row.known and last_p:
            dw, dg = params[i].to(g.dtype) - last_p[i], g - last_g[i]
            sums[0] += (dw.double() ** 2 * B).sum()
            sums[1] += (dg.double() ** 2 / B).sum()
    return sums


def descent(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    D: Sequence[Tensor],
    last_p: Sequence[Tensor],
    last_g: Sequence[Tensor],
    rows: Sequence[int],
    settings: Sequence[float],
    scale: float,
) -> None:
    """What ``torch.ops.curvkern.hutchinson_descent`` does, with the same arguments."""
    for i, (p, row) in enumerate(zip(params, _rows(DescentRow, rows, settings), strict=True)):
        g = grads[i].to(D[i].dtype) * scale
        if last_p:
            last_p[i].copy_(p)
            last_g[i].copy_(g)
        p.copy_(p.to(g.dtype) - row.rate * g / D[i].abs().clamp_min(row.alpha))


def accumulate(
    mean: Sequence[Tensor],
    square: Sequence[Tensor],
    hz: Sequence[Tensor],
    z: Sequence[Tensor],
    offsets: Sequence[int],
    seed: int,
    index: int,
    probe: int,
    count: int,
) -> None:
    """What ``torch.ops.curvkern.hutchinson_accumulate`` does, with the same arguments."""
    for i, product in enumerate(hz):
        D = product.to(mean[i].dtype)
        if z:
            D = D * z[i]
        else:
            sign = signs(D.numel(), offsets[i], seed, index, probe)
            D = D * sign.view(D.shape).to(D)
        off = D - mean[i]
        mean[i].add_(off, alpha=1 / count)
        if square:
            square[i].add_(off * (D - mean[i]))
