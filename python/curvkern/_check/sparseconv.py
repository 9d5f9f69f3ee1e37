"""Self-test of convolutions with sparse weights: torch's dense ones in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import sparse
from . import Row, measured

BATCH, CHANNELS, OUT, SIZE = 2, 48, 64, 14
BARS = {torch.float64: 64.0, torch.float32: 64.0, torch.bfloat16: 2.0}


def rows() -> Iterator[Row]:
    """Values by dtype and block, and the gradients in float32; of the largest entry."""
    for dtype in BARS:
        for block in ((1, 1), (4, 1)):
            yield from _pointwise(dtype, block)
        yield from _depthwise(dtype)
        yield _first(dtype)


def _pointwise(dtype: torch.dtype, block: tuple[int, int]) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64).to(
        dtype
    )
    r = block[0]
    kept = (torch.rand(OUT // r, CHANNELS, generator=generator) > 0.9).repeat_interleave(r, 0)
    dense = (torch.randn(OUT, CHANNELS, generator=generator, dtype=torch.float64) * kept).to(
        dtype
    )
    packed = sparse.PackedWeight.from_dense(dense, block=block)
    wide = dense.double()[..., None, None]
    names = f"{block[0]}x{block[1]}"
    yield _row(
        "sparse_conv1x1",
        f"value {names}",
        lambda: sparse.sparse_conv1x1(x, packed, activation="relu"),
        F.conv2d(x.double(), wide).relu(),
        dtype,
    )

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        sparse.sparse_conv1x1(leaf, packed).backward(torch.ones(()).to(dtype).expand(
            BATCH, OUT, SIZE, SIZE))  # fmt: skip
        assert leaf.grad is not None
        return leaf.grad

    expected = wide.sum(0).expand(BATCH, CHANNELS, SIZE, SIZE)
    yield _row("sparse_conv1x1", f"d/dx {names}", gradient, expected, dtype)


def _random(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def _depthwise(dtype: torch.dtype) -> Iterator[Row]:
    name = "depthwise_conv2d"
    x, w = _random(1, dtype, BATCH, CHANNELS, SIZE, SIZE), _random(2, dtype, CHANNELS, 1, 3, 3)
    for stride in (1, 2):
        wide = [t.to(torch.float64, copy=True).requires_grad_() for t in (x, w)]
        truth = F.conv2d(wide[0], wide[1], None, stride, 1, 1, CHANNELS)
        gy = _random(3, dtype, *truth.shape)
        expected = torch.autograd.grad(truth, wide, gy.double())

        def value(stride: int = stride) -> Tensor:
            return sparse.depthwise_conv2d(x, w, stride=stride, padding=1)

        def gradient(of: int, gy: Tensor = gy, stride: int = stride) -> Tensor:
            leaves = [t.clone().requires_grad_() for t in (x, w)]
            y = sparse.depthwise_conv2d(leaves[0], leaves[1], stride=stride, padding=1)
            return torch.autograd.grad(y, leaves, gy)[of]

        yield _row(name, f"value stride {stride}", value, truth.detach(), dtype)
        for of, operand in enumerate("xw"):
            quantity = f"d/d{operand} stride {stride}"
            yield _row(name, quantity, partial(gradient, of), expected[of], dtype)


def _first(dtype: torch.dtype) -> Row:
    x, w = _random(4, dtype, BATCH, 3, 3 * SIZE, 3 * SIZE), _random(5, dtype, OUT, 3, 3, 3)
    truth = F.conv2d(x.double(), w.double(), None, 2, 1)
    return _row("conv2d_first", "value", lambda: sparse.conv2d_first(x, w), truth, dtype)


def _row(
    function: str,
    quantity: str,
    compute: Callable[[], Tensor],
    truth: Tensor,
    dtype: torch.dtype,
) -> Row:
    def errors() -> np.ndarray:
        off = (compute().double() - truth).abs().flatten() / truth.abs().max()
        return (off / torch.finfo(dtype).eps).numpy()

    names = (function, quantity, str(dtype).removeprefix("torch."), "dense float64")
    return measured(names, truth.numel(), BARS[dtype], errors, lambda at: f"entry {at}")
