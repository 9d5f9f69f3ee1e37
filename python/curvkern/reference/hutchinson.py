r"""The step of AdaHessian and means over probes, in plain PyTorch.

.. math::
    D = z \odot H z, \quad \bar D = \text{mean of } |D| \text{ or } D, \quad
    m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
    v \leftarrow \beta_2 v + (1 - \beta_2) \bar D^2, \\
    p \leftarrow p - \eta \Bigl(\frac{m / (1 - \beta_1^t)}
    {(\sqrt v / \sqrt{1 - \beta_2^s})^k + \epsilon} + \lambda p\Bigr)

Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney, "ADAHESSIAN: An Adaptive Second Order Optimizer
for Machine Learning", AAAI 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .philox import fill_signs, signs

__all__ = ["Row", "accumulate", "fill_signs", "signs", "spatial_mean", "step"]

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
    blocks = [part.mean().expand_as(part) for part in D.reshape(-1).split(size)]
    return torch.cat(blocks).view(D.shape)


def _blocks(D: Tensor, block: int) -> Tensor:
    return D if block == 1 or D.numel() == 0 else _block_mean(D, block)


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
        probes = len(hz) // count
        curvature = []
        for i, block in enumerate(blocks):
            signed = bool(table[rows[i]].signed)
            D = torch.zeros_like(m[i])
            for probe in range(probes):
                product = hz[probe * count + i].to(D.dtype)
                if z:
                    product = product * z[probe * count + i]
                elif draws:
                    sign = signs(product.numel(), offsets[i], seed, index, probe)
                    product = product * sign.view(product.shape).to(product)
                D += product / probes
            curvature.append((_blocks(D if signed else D.abs(), block) * scale).abs())
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
