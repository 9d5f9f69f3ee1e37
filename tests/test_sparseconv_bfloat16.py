"""bfloat16: sums in float32 that are rounded once, in values and in every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from curvkern import nn
from curvkern.reference import sparseconv as reference

#: The largest relative errors of rounding to bfloat16 and to float32.
ROUNDED, SUMMED = 2.0**-8, 2.0**-24

#: conv(x, weight, bias)
Conv = Callable[[Tensor, Tensor, Tensor], Tensor]


def computed(conv: Conv, operands: list[Tensor], gy: Tensor) -> list[Tensor]:
    """The value, and the gradients in x, weight and bias."""
    leaves = [t.detach().clone().requires_grad_() for t in operands]
    y = conv(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, gy)]


def assert_rounded_once(
    found: list[Tensor],
    conv: Conv,
    operands: list[Tensor],
    gy: Tensor,
    parts: int,
    activation: str,
) -> None:
    """|found - t| <= u |t| + (1 + u) n v s for each entry, and as much after a relu.

    t is the sum of n products in float64, s that of their absolute values. Products of two
    numbers of bfloat16 are exact in float32, where their sum is off by at most n v s in any
    order (N. Higham, "Accuracy and Stability of Numerical Algorithms", section 4.2); rounding
    adds u. For s and n the same is computed of absolute values and of ones. A gradient in x
    that is summed from ``parts`` rounded gradients is off by another parts u s.
    """
    wide, g = [t.double() for t in operands], gy.double()
    truths = computed(conv, wide, g)
    sums = computed(conv, [t.abs() for t in wide], g.abs())
    counts = computed(conv, [torch.ones_like(t) for t in wide], torch.ones_like(g))
    names = ("value", "gradient in x", "in weight", "in bias")
    for name, got, t, s, n in zip(names, found, truths, sums, counts, strict=True):
        assert got.dtype is torch.bfloat16
        bar = ROUNDED * t.abs() + (1 + ROUNDED) * n * SUMMED * s
        if name == "gradient in x" and parts > 1:
            bar += parts * ROUNDED * s
        if name == "value":
            t = reference.ACTIVATIONS[activation](t)
        assert bool(((got.double() - t).abs() <= bar).all()), name


def check(module: Any, conv: Conv, weight: Tensor, x: Tensor, parts: int = 1) -> None:
    """Training and evaluation, without an activation and with one."""
    for activation in ("none", "relu"):
        module.activation = activation
        leaf = x.clone().requires_grad_()
        y = module.train()(leaf)
        gy = torch.randn(y.shape).bfloat16()
        stored = getattr(module, "values", None)
        leaves = [leaf, module.weight if stored is None else stored, module.bias]
        gx, gw, gb = torch.autograd.grad(y, leaves, gy)
        if stored is not None:
            where = module.crow_indices, module.col_indices
            gw = reference.to_dense(*where, gw, module.shape)[..., None, None]
        operands = [x, weight, module.bias.detach()]
        slope = y > 0 if activation == "relu" else torch.ones_like(y)
        with torch.no_grad():
            evaluated = module.eval()(x)
        for value in (y.detach(), evaluated):
            found = [value, gx, gw, gb]
            assert_rounded_once(found, conv, operands, gy * slope, parts, activation)


@pytest.mark.parametrize("block", [(1, 1), (2, 1), (4, 1), (16, 1)])
@pytest.mark.parametrize(
    ("inputs", "outputs", "batch", "size", "stride"),
    [(16, 32, 1, (7, 7), 1), (33, 48, 3, (9, 5), 1), (64, 16, 2, (14, 15), 2)],
)
def test_sparse(
    inputs: int, outputs: int, batch: int, size: tuple[int, int], stride: int, block: Any
) -> None:
    kept = torch.rand(outputs // block[0], inputs) < 0.3
    mask = kept.repeat_interleave(block[0], 0)
    module = nn.SparseWeightConv2d(inputs, outputs, stride=stride, mask=mask, block=block)
    module.bfloat16()
    x = torch.randn(batch, inputs, *size).bfloat16()

    def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight * mask[..., None, None], bias, stride)

    check(module, conv, module.to_dense().weight.detach(), x)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "batch", "size"),
    [
        (3, 1, 1, 1, (7, 7)),
        (3, 2, 1, 3, (9, 14)),
        (5, 1, 2, 2, (14, 14)),
        (5, 2, 2, 3, (15, 33)),
    ],
)
def test_windows(
    kernel: int, stride: int, padding: int, batch: int, size: tuple[int, int], first: bool
) -> None:
    for channels, outputs in ((3, 8), (1, 5)) if first else ((6, 6), (4, 12)):
        kind: Any = nn.FirstConv2d if first else nn.DepthwiseConv2d
        module = kind(channels, outputs, kernel, stride, padding).bfloat16()
        x = torch.randn(batch, channels, *size).bfloat16()
        groups = 1 if first else channels

        def conv(x: Tensor, weight: Tensor, bias: Tensor, groups: int = groups) -> Tensor:
            return F.conv2d(x, weight, bias, stride, padding, 1, groups)

        # of several filters a channel each has a gradient, and torch sums these
        parts = 1 if first else outputs // channels
        check(module, conv, module.weight.detach(), x, parts)


@pytest.mark.parametrize("channels", [4, 12])
def test_images_of_two_columns(channels: int) -> None:
    """torch's own convolution of bfloat16 is wrong there."""
    module = nn.FirstConv2d(channels, 8, 3, 2, 1).bfloat16()
    x = torch.randn(16, channels, 20, 2).bfloat16()
    check(module, lambda *t: F.conv2d(*t, 2, 1), module.weight.detach(), x)
