"""Self-test of convolutions with sparse weights: torch's dense ones in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
        yield _depthwise(dtype)


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


def _depthwise(dtype: torch.dtype) -> Row:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64).to(
        dtype
    )
    w = torch.randn(CHANNELS, 1, 3, 3, generator=generator, dtype=torch.float64).to(dtype)
    truth = F.conv2d(x.double(), w.double(), None, 1, 1, 1, CHANNELS)
    return _row(
        "depthwise_conv2d",
        "value",
        lambda: sparse.depthwise_conv2d(x, w, padding=1),
        truth,
        dtype,
    )


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
