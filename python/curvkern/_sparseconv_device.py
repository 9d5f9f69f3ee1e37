"""Sparse and depthwise convolutions of contiguous CUDA tensors, without derivatives.

Functions are those of :mod:`curvkern._sparseconv`, with the same meanings. The same kernels
run on the host where the images are there: so tests can compare them with plain formulas on
machines without a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from . import _runtime

#: Columns of a row of blocks that a warp takes for the derivative in the weights.
_TILE = 8

#: Values and columns begin at a multiple of so many bytes.
_ALIGNMENT = 32

#: A subwarp of so many threads takes a row. Other names mean the best one: those of the CPU's
#: variants, which a layer that was tuned there may bring along, and "auto".
VARIANTS = ("lanes32", "lanes16", "lanes8", "lanes4", "lanes2", "lanes1")


class Pattern(Protocol):
    """Where a matrix of shape (O, C) has blocks of r x c entries, in compressed rows."""

    @property
    def crow(self) -> Tensor: ...
    @property
    def col(self) -> Tensor: ...
    @property
    def block(self) -> tuple[int, int]: ...
    @property
    def shape(self) -> tuple[int, int]: ...


@dataclass(frozen=True, eq=False)
class Packed:
    """Values of a pattern, which kernels read as they are, and a variant."""

    pattern: Pattern
    values: Tensor
    variant: str


def variants(pattern: Pattern, dtype: torch.dtype, B: int, P: int, threads: int) -> list[str]:
    """Ways to compute a product, the likely best first.

    All sum alike: results are the same to the last bit.
    """
    del pattern, threads
    best = _lanes(dtype, B, P)
    others = [n for n in (32, 16, 8) if n != best and n <= 2 * best]
    return [f"lanes{n}" for n in (best, *others)]


def _lanes(dtype: torch.dtype, B: int, P: int) -> int:
    """As many as leave few idle, of the fewest that there can be."""
    most = 2 if dtype is torch.float64 else 4
    loads = B * P // (most if P % most == 0 else 1)
    choices = [32, 16, 8] if loads >= 8 else [4, 2, 1]
    taken = {n: -(-loads // n) * n for n in choices}
    return next(n for n in choices if 20 * taken[n] <= 23 * min(taken.values()))


def pack(pattern: Pattern, values: Tensor, variant: str) -> Packed:
    """Values for a variant, for as long as they do not change."""
    return Packed(pattern, values, variant)


def conv1x1_packed(
    x: Tensor,
    packed: Packed,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """act(W x + bias + residual) for x of shape (B, K, P)."""
    return conv1x1(
        x, packed.pattern, packed.values, bias, residual, activation, variant=packed.variant
    )


def conv1x1(
    x: Tensor,
    pattern: Pattern,
    values: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    *,
    variant: str = "auto",
) -> Tensor:
    """The same from values as they are stored."""
    matrix = _cached(pattern, x.device, "rows", _by_rows)
    y = x.new_empty(x.shape[0], pattern.shape[0], x.shape[2])
    _multiply(matrix, pattern.block, values, x, bias, residual, activation, variant, y)
    return y


def conv1x1_input_grad(
    gy: Tensor, pattern: Pattern, values: Tensor, *, variant: str = "auto"
) -> Tensor:
    """W' gy for gy of shape (B, O, P)."""
    *matrix, source = _cached(pattern, gy.device, "columns", _by_columns)
    r, c = pattern.block
    turned = values.new_empty(len(values) if r * c == 1 else (len(values), c, r))
    _module(gy).sparseconv_device_transpose(values, source, (r, c), turned, _stream(gy))
    gx = gy.new_empty(gy.shape[0], pattern.shape[1], gy.shape[2])
    _multiply(tuple(matrix), (c, r), turned, gy, None, None, "none", variant, gx)
    return gx


def _multiply(
    matrix: tuple[Tensor, ...],
    block: tuple[int, int],
    values: Tensor,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    variant: str,
    y: Tensor,
) -> None:
    if values.data_ptr() % _ALIGNMENT:
        values = values.clone()
    lanes = _lanes(x.dtype, x.shape[0], x.shape[2])
    if variant in VARIANTS:
        lanes = int(variant.removeprefix("lanes"))
    _module(x).sparseconv_device_multiply(
        matrix, block, values, x, bias, residual, activation, lanes, y, _stream(x)
    )


def sddmm(gy: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    """The sum over the batch of gy x', where the pattern has blocks."""
    matrix = _cached(pattern, x.device, "tiles", _by_tiles)
    r, c = pattern.block
    count, tiles = len(pattern.col), len(matrix[3])
    values = x.new_empty(count if r * c == 1 else (count, r, c))
    module = _module(x)
    size = module.sparseconv_device_correlation_workspace(
        count, (r, c), tiles, x.shape[0], x.shape[2]
    )
    module.sparseconv_device_correlate(
        matrix, (r, c), gy, x, _float64(x, size), values, _stream(x)
    )
    return values


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: int = 1,
    activation: str = "none",
) -> Tensor:
    """act(conv + bias) with a filter (C, 1, kh, kw) each; padded (left, right, top, bottom)."""
    return _convolve(True, x, weight, bias, stride, padding, dilation, activation)


def first_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 2,
    padding: Sequence[int] = (1, 1, 1, 1),
    activation: str = "none",
) -> Tensor:
    """act(conv + bias) with dense filters (N, C, kh, kw)."""
    return _convolve(False, x, weight, bias, stride, padding, 1, activation)


def _convolve(
    depthwise: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    activation: str,
) -> Tensor:
    left, right, top, bottom = padding
    size = (
        (n + around - dilation * (taps - 1) - 1) // stride + 1
        for n, around, taps in zip(
            x.shape[2:], (top + bottom, left + right), weight.shape[2:], strict=True
        )
    )
    y = x.new_empty(x.shape[0], weight.shape[0], *size)
    _module(x).sparseconv_device_convolve(
        depthwise, x, weight, bias, stride, padding, dilation, activation, y, _stream(x)
    )
    return y


def depthwise_input_grad(
    gy: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
) -> Tensor:
    """The gradient of :func:`depthwise` in an x of a size."""
    gx = gy.new_empty(*gy.shape[:2], *size)
    _module(gy).sparseconv_device_input_gradient(
        gy, weight, stride, padding, dilation, gx, _stream(gy)
    )
    return gx


def depthwise_weight_grad(
    gy: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
) -> Tensor:
    """The gradient of :func:`depthwise` in its filters, (C, 1, kh, kw)."""
    module = _module(x)
    batch, channels, *out = gy.shape
    size = module.sparseconv_device_weight_workspace(kernel, out, batch, channels)
    gw = x.new_empty(channels, 1, *kernel)
    module.sparseconv_device_weight_gradient(
        gy, x, stride, padding, dilation, _float64(x, size), gw, _stream(x)
    )
    return gw


# ---- the order in which kernels walk a pattern ----------------------------------------------

_plans: WeakKeyDictionary[Any, dict[tuple[torch.device, str], tuple[Tensor, ...]]] = (
    WeakKeyDictionary()
)
_lock = threading.Lock()


def _cached(
    pattern: Pattern,
    device: torch.device,
    kind: str,
    make: Callable[[Pattern, Tensor, Tensor], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """What ``make`` says of a pattern on a device, made once for as long as the pattern lives.

    Numbers of indices travel as floating point numbers of the same bits: what the compiled
    module takes.
    """
    with _lock:
        plans = _plans.setdefault(pattern, {})
        found = plans.get((device, kind))
    if found is None:
        with torch.no_grad():
            crow = pattern.crow.to(device, torch.int64)
            col = pattern.col.to(device, torch.int64)
            made = make(pattern, crow, col)
        found = tuple(
            t.contiguous().view(torch.float64 if t.dtype is torch.int64 else torch.float32)
            for t in made
        )
        if device.type == "cuda":  # other streams will read it
            torch.cuda.current_stream(device).synchronize()
        with _lock:
            plans[device, kind] = found
    return found


def _longest_first(crow: Tensor) -> Tensor:
    return crow.diff().argsort(descending=True, stable=True).int()


def _by_rows(pattern: Pattern, crow: Tensor, col: Tensor) -> tuple[Tensor, ...]:
    """(crow, col, rows by falling length)"""
    del pattern
    return crow, col.int(), _longest_first(crow)


def _rows_of(crow: Tensor, counts: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts), device=crow.device), counts)


def _by_columns(pattern: Pattern, crow: Tensor, col: Tensor) -> tuple[Tensor, ...]:
    """The same of the transposed pattern, and where each of its blocks stands in this one."""
    columns = pattern.shape[1] // pattern.block[1]
    source = col.argsort(stable=True)
    rows = _rows_of(crow, crow.diff())[source]
    counts = torch.bincount(col, minlength=columns)
    turned = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return turned, rows.int(), _longest_first(turned), source


def _by_tiles(pattern: Pattern, crow: Tensor, col: Tensor) -> tuple[Tensor, ...]:
    """That of :func:`_by_rows`, the block row of each tile, and the first of its columns."""
    tiles = (crow.diff() * pattern.block[1] + _TILE - 1) // _TILE
    row = _rows_of(crow, tiles)
    before = tiles.cumsum(0) - tiles
    first = (torch.arange(len(row), device=crow.device) - before[row]) * _TILE
    return (*_by_rows(pattern, crow, col), row.int(), first)


def _module(x: Tensor) -> ModuleType:
    return _runtime.cuda_module() if x.is_cuda else _runtime.cpu_module()


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def _float64(x: Tensor, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float64, device=x.device)
