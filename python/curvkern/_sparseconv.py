"""Compiled sparse and depthwise convolutions of contiguous CPU tensors, without derivatives.

The operations of :mod:`curvkern.sparse` call them with what they have checked: one dtype,
float32, float64 or bfloat16, contiguous, not empty.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import _runtime

if TYPE_CHECKING:
    from ._cpu import SparsePlan

#: Bytes of a register, by instruction set; others have 16.
_REGISTERS = {"v4": 64, "v3": 32}


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where a matrix of shape (O, C) has blocks of r x c entries, in compressed rows."""

    crow: Tensor
    col: Tensor
    block: tuple[int, int]
    shape: tuple[int, int]
    _plans: dict[tuple[Any, ...], SparsePlan] = field(default_factory=dict, repr=False)

    @property
    def nnz(self) -> int:
        """How many blocks are stored."""
        return len(self.col)

    @classmethod
    def validated(
        cls, crow: Tensor, col: Tensor, block: Sequence[int], shape: Sequence[int]
    ) -> Pattern:
        """A pattern, unless its indices are no compressed rows of such a matrix."""
        op = "sparse_conv1x1"
        for name, index in (("crow", crow), ("col", col)):
            if index.dtype not in (torch.int32, torch.int64):
                dtype = str(index.dtype).removeprefix("torch.")
                raise TypeError(f"{op}: {name} must be int32 or int64, got {dtype}")
            if index.dim() != 1:
                raise ValueError(f"{op}: {name} must have 1 dimension, got {index.dim()}")
        pattern = cls(crow, col, (block[0], block[1]), (shape[0], shape[1]))
        _runtime.cpu_module().check_sparse_pattern(*pattern._matrix())
        return pattern

    def _matrix(self) -> tuple[Any, ...]:
        crow, col = (
            np.ascontiguousarray(index.detach().cpu().numpy(), dtype=np.int64)
            for index in (self.crow, self.col)
        )
        return (crow, col, *self.shape, *self.block)

    def plan(self, transposed: bool, by_blocks: bool, vectors: int, parts: int) -> SparsePlan:
        """The order in which a kernel walks the nonzeros, made once."""
        key = (transposed, by_blocks, vectors, parts)
        if key not in self._plans:
            make = _runtime.cpu_module().SparsePlan
            self._plans[key] = make(*self._matrix(), *key)
        return self._plans[key]


@dataclass(frozen=True, eq=False)
class Packed:
    """The values of a pattern in the order of a plan."""

    plan: SparsePlan
    values: Tensor


def _native() -> Any:
    torch.get_num_threads()  # hands the setting of torch.set_num_threads to a new thread
    return _runtime.cpu_module()


@cache
def _lanes(dtype: torch.dtype) -> int:
    """Pixels in a register."""
    return _REGISTERS.get(_runtime.isa(), 16) // (8 if dtype is torch.float64 else 4)


def _strip(variant: str) -> tuple[int, int]:
    """How many registers and how many parts of rows: "strip7" has one part, "strip4x2" two."""
    name, _, parts = variant.removeprefix("strip").partition("x")
    return int(name), int(parts or 1)


def variants(pattern: Pattern, dtype: torch.dtype, B: int, P: int, threads: int) -> list[str]:
    """Ways to compute a product, the likely best first."""
    del pattern
    lanes = _lanes(dtype)
    registers = -(-P // lanes) if lanes <= P else -(-B * P // lanes)
    widths = [4, 7] if registers <= 4 else [7, 4]
    if registers <= 2:
        widths.insert(0, registers)
    found = []
    for width in widths:
        strips = B * -(-registers // width)
        if threads > 1 and strips < 4 * threads:  # each packs what it needs: more, but even
            found.append(f"strip{width}x{threads}")
        else:
            found.append(f"strip{width}")
    return found


def _pack(plan: SparsePlan, values: Tensor) -> Packed:
    wide = torch.float64 if values.dtype is torch.float64 else torch.float32
    packed = torch.empty(plan.size(), dtype=wide)
    plan.gather(values, packed)
    return Packed(plan, packed)


def pack(pattern: Pattern, values: Tensor, variant: str) -> Packed:
    """Values in the order of a variant, for as long as they do not change."""
    width, parts = _strip(variant)
    return _pack(pattern.plan(False, True, width, parts), values)


def conv1x1_packed(
    x: Tensor,
    packed: Packed,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """act(W x + bias + residual) for x of shape (B, K, P) or (B, K, H, W)."""
    torch.get_num_threads()  # as in _native
    return packed.plan.multiply(x, packed.values, bias, residual, activation)


#: The workspace of a thread, for all of its chains, and how many numbers of one are kept.
_kept = threading.local()
MOST_KEPT = 1 << 24

#: A stage of a chain: its kind and what :class:`curvkern._cpu.ConvChain` takes for it.
Stage = tuple[Any, ...]


class Chain:
    """Convolutions one after the other on contiguous images of one shape, as one call.

    Each stage takes the result of an earlier one by its number; 0 is the image, i + 1 what
    stage i computes.
    """

    #: Bytes of a tensor that is kept as a whole, and of the buffers of a band.
    limits = 1 << 20, 1 << 20
    #: A group has at most so many images, of at most so many pixels for each of them.
    most_images, pixels_an_image = 16, 8

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        stages: list[Stage],
        group: tuple[int, int] | None = None,
    ) -> None:
        threads = torch.get_num_threads()
        group = group or (len(stages), 1)
        self._native = _native().ConvChain(
            tuple(shape), dtype.itemsize, stages, threads, self.limits, group
        )
        #: the stages, from which on, that take several images at once, and how many of them
        self.group = group

    @classmethod
    def grouping(
        cls, sizes: list[tuple[int, int, int]], dtype: torch.dtype, batch: int, alone: int
    ) -> tuple[int, int]:
        """Which stages should take several images at once, and how many: ``group``.

        ``sizes`` are channels, height and width by tensor; ``alone`` stages cannot. The others
        should where images are small: a filter takes 40 ns or more for a plane by itself,
        however small, and as long for a pixel of up to 16 images as for one. With more than 8
        pixels for each image that there is nothing is gained, nor where what lies between two
        stages does not fit into L2.
        """
        threads, count = torch.get_num_threads(), len(sizes) - 1
        for first in range(alone, count):
            elements = [math.prod(size) for size in sizes[first:]]
            bytes = dtype.itemsize * max(map(sum, itertools.pairwise(elements)))
            images = min(cls.most_images, -(-batch // threads), cls.limits[0] // bytes)
            if images < 2:
                continue
            groups = -(-batch // images)
            groups = -(-groups // threads) * threads  # for each thread as many
            images = -(-batch // groups)
            pixels = max(height * width for _, height, width in sizes[first:])
            if pixels <= cls.pixels_an_image * images:
                return first, images
        return count, 1

    @staticmethod
    def pointwise(
        input: int,
        residual: int | None,
        packed: Packed,
        bias: Tensor | None,
        activation: str,
        gate: tuple[Any, ...] | None = None,
    ) -> Stage:
        """act(W x + bias + residual).

        With a gate (S, b, E, c, act, hard), x is scaled by sigma(E act(S mean(x) + b) + c) for
        each channel, where sigma is the hard or the smooth sigmoid.
        """
        values = packed.plan, packed.values, bias, activation
        return ("pointwise", input, residual, *values, gate)

    @staticmethod
    def depthwise(
        input: int,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: Sequence[int],
        dilation: int,
        activation: str,
    ) -> Stage:
        """As :func:`depthwise`."""
        return "depthwise", input, weight, bias, stride, dilation, tuple(padding), activation

    @staticmethod
    def first(
        input: int,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: Sequence[int],
        activation: str,
    ) -> Stage:
        """As :func:`first_native`."""
        return "first", input, weight, bias, stride, tuple(padding), activation

    def segments(self) -> list[tuple[int, int]]:
        """By stage: the segment it runs in, and how many rows are a band of it, 0 for all."""
        return self._native.segments()

    def __call__(self, x: Tensor) -> Tensor:
        """The result of the last stage."""
        _native()
        y = x.new_empty(self._native.shape())
        size = self._native.workspace()
        # None during a call: one within it, from a handler of signals, takes its own
        workspace, _kept.workspace = getattr(_kept, "workspace", None), None
        if workspace is None or workspace.numel() < size:
            workspace = torch.empty(size, dtype=torch.float32, device="cpu")
        try:
            self._native.run(x, workspace, y)
        finally:
            if workspace.numel() <= MOST_KEPT:
                _kept.workspace = workspace
        return y


def _auto(pattern: Pattern, x: Tensor, variant: str) -> tuple[int, int]:
    if variant == "auto":
        threads = _native().build_info()["threads"]
        variant = variants(pattern, x.dtype, x.shape[0], x.shape[2], threads)[0]
    return _strip(variant)


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
    plan = pattern.plan(False, True, *_auto(pattern, x, variant))
    packed = _pack(plan, values)
    return conv1x1_packed(x, packed, bias, residual, activation)


def conv1x1_input_grad(
    gy: Tensor, pattern: Pattern, values: Tensor, *, variant: str = "auto"
) -> Tensor:
    """W' gy for gy of shape (B, O, P)."""
    plan = pattern.plan(True, True, *_auto(pattern, gy, variant))
    return conv1x1_packed(gy, _pack(plan, values))


def sddmm(gy: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    """The sum over the batch of gy x', where the pattern has blocks."""
    _native()
    plan = pattern.plan(False, False, 8, 1)
    r, c = pattern.block
    values = x.new_empty(pattern.nnz, r, c) if r * c > 1 else x.new_empty(pattern.nnz)
    plan.sddmm(gy, x, values)
    return values


#: Channels of a first convolution up to which the compiled kernel is quicker than torch's, by
#: instruction set.
MOST_CHANNELS = {"v4": 8, "v3": 4}

#: act(z), in the memory of z.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": torch.relu_,
    "relu6": lambda z: F.relu6(z, inplace=True),
    "silu": lambda z: F.silu(z, inplace=True),
    "hardswish": lambda z: F.hardswish(z, inplace=True),
}


def _output(
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: Sequence[int],
    dilation: int = 1,
) -> Tensor:
    """Memory for what comes out of a convolution."""
    size = output_size(x.shape[2:], weight, stride, padding, dilation)
    return x.new_empty(x.shape[0], weight.shape[0], *size)


def output_size(
    size: Sequence[int], weight: Tensor, stride: int, padding: Sequence[int], dilation: int = 1
) -> tuple[int, int]:
    """Height and width of what comes out of a convolution."""
    left, right, top, bottom = padding
    kh, kw = weight.shape[2:]
    height = (size[0] + top + bottom - dilation * (kh - 1) - 1) // stride + 1
    return height, (size[1] + left + right - dilation * (kw - 1) - 1) // stride + 1


def first_is_native(channels: int) -> bool:
    """Whether first convolutions of so many channels are computed by the compiled kernel."""
    return channels <= MOST_CHANNELS.get(_runtime.isa(), 0)


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    activation: str,
) -> Tensor:
    """act(conv2d) of (B, C, H, W) by (N, 1, kh, kw), padded by (left, right, top, bottom)."""
    y = _output(x, weight, stride, padding, dilation)
    place = (stride, dilation, padding[0], padding[2])
    _native().depthwise(x, weight, bias, *place, activation, y)
    return y


def first_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: str,
) -> Tensor:
    """act(conv2d) of (B, C, H, W) by (N, C, kh, kw), padded by (left, right, top, bottom).

    Where torch's own convolution is quicker, it computes.
    """
    if not first_is_native(x.shape[1]):
        return first_by_torch(x, weight, bias, stride, padding, activation)
    return first_native(x, weight, bias, stride, padding, activation)


def first_native(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: str,
) -> Tensor:
    """The same by the compiled kernel, however many channels there are."""
    y = _output(x, weight, stride, padding)
    _native().first(x, weight, bias, stride, padding[0], padding[2], activation, y)
    return y


def first_by_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    activation: str,
) -> Tensor:
    """The same by torch, bfloat16 in float32.

    torch's convolution of bfloat16 is wrong on the CPU where images are two pixels wide.
    """
    dtype, left, right, top, bottom = x.dtype, *padding
    if dtype is torch.bfloat16 and x.is_cpu:
        x, weight = x.float(), weight.float()
        bias = None if bias is None else bias.float()
    if (left, top) == (right, bottom):
        z = F.conv2d(x, weight, bias, stride, (top, left))
    else:
        z = F.conv2d(F.pad(x, tuple(padding)), weight, bias, stride)
    out: Tensor = IN_PLACE[activation](z).to(dtype)
    return out


def depthwise_input_grad(
    gy: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
    channels: int | None = None,
) -> Tensor:
    """The gradient of a depthwise convolution in its images, of a size and so many channels."""
    gx = gy.new_empty(gy.shape[0], channels or gy.shape[1], *size)
    place = (stride, dilation, padding[0], padding[2])
    _native().depthwise_input_grad(gx, weight, gy, *place)
    return gx


def depthwise_weight_grad(
    gy: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
) -> Tensor:
    """The gradient of a depthwise convolution in its weights, (C, 1, kh, kw)."""
    gw = gy.new_empty(gy.shape[1], 1, *kernel)
    _native().depthwise_weight_grad(x, gw, gy, stride, dilation, padding[0], padding[2])
    return gw
