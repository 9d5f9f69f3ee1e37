"""Operations of the M-FAC family: ``torch.ops.curvkern.mfac_*``.

A window is a matrix (m, d) in float64, float32 or bfloat16, of which the rows ``slots`` take
part, in their order; some columns of one are a window, too, and are not copied. Vectors are
rows of float64 or float32; sums are float64. CPU and CUDA have compiled passes; under the
reference backend, and for CUDA tensors in a build without its kernels, tiles in plain PyTorch
take their place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _mfac_device, _mfac_tiles, _operands, _runtime
from ._ops import _contiguous, define
from .reference import mfac_factor

STORAGES = (torch.float64, torch.float32, torch.bfloat16)


def _check(op: str, window: Tensor, slots: Sequence[int], **rows: Tensor) -> None:
    if window.dtype not in STORAGES:
        dtype = str(window.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: window must be float32, float64 or bfloat16, got {dtype}")
    if window.dim() != 2:
        raise ValueError(f"{op}: window must have 2 dimensions, got {window.dim()}")
    for slot in slots:
        if not 0 <= slot < window.shape[0]:
            raise ValueError(
                f"{op}: slots must be rows of window, which has {window.shape[0]}, got {slot}"
            )
    for name, tensor in rows.items():
        _operands.floating(op, name, tensor)
    for name, tensor in rows.items():
        if tensor.dim() != 2 or tensor.shape[1] != window.shape[1]:
            raise ValueError(f"{op}: {name} must have rows of {window.shape[1]} elements")


def _passes(window: Tensor) -> Any:
    """Who passes over a window, unless it is the compiled module for the CPU."""
    return _mfac_device if _runtime.compiled(window.device) else _mfac_tiles


def _products_out(window: Tensor, slots: Sequence[int], v: Tensor, more: int = 0) -> Tensor:
    return window.new_zeros(v.shape[0] + more, len(slots), dtype=torch.float64)


def _rows(window: Tensor) -> Tensor:
    """A window that the passes take: as it is, where elements of a row follow each other."""
    wider = window.stride(1) == 1 and window.stride(0) >= window.shape[1]
    return window if wider else _contiguous(window)


def _define_products() -> None:
    def cpu(window: Tensor, slots: Sequence[int], v: Tensor) -> Tensor:
        if not _runtime.compiled(window.device):
            return cuda(window, slots, v)
        torch.get_num_threads()  # hands the setting to a new thread
        _check("mfac_products", window, slots, v=v)
        out = _products_out(window, slots, v)
        _runtime.cpu_module().mfac_products(_rows(window), slots, _contiguous(v), out)
        return out

    def cuda(window: Tensor, slots: Sequence[int], v: Tensor) -> Tensor:
        _check("mfac_products", window, slots, v=v)
        out = _products_out(window, slots, v)
        _passes(window).products(_rows(window), slots, v, out)
        return out

    def fake(window: Tensor, slots: Sequence[int], v: Tensor) -> Tensor:
        _check("mfac_products", window, slots, v=v)
        return _products_out(window, slots, v)

    schema = "mfac_products(Tensor window, int[] slots, Tensor v) -> Tensor"
    define(schema, cpu=cpu, cuda=cuda, fake=fake)


def _define_push() -> None:
    def check(
        window: Tensor, slots: Sequence[int], into: int, gradient: Tensor, v: Tensor
    ) -> None:
        _check("mfac_push", window, slots, gradient=gradient, v=v)
        if gradient.shape[0] != 1:
            raise ValueError("mfac_push: gradient must have one row")
        if not 0 <= into < len(slots):
            raise ValueError("mfac_push: into must be the place of a slot")

    def cpu(*arguments: Any) -> Tensor:
        if not _runtime.compiled(arguments[0].device):
            return cuda(*arguments)
        torch.get_num_threads()
        window, slots, into, gradient, v = arguments
        out = fake(*arguments)
        _runtime.cpu_module().mfac_push(
            window, slots, into, _contiguous(gradient), _contiguous(v), out
        )
        return out

    def cuda(*arguments: Any) -> Tensor:
        out = fake(*arguments)
        _passes(arguments[0]).push(*arguments, out)
        return out

    def fake(
        window: Tensor, slots: Sequence[int], into: int, gradient: Tensor, v: Tensor
    ) -> Tensor:
        check(window, slots, into, gradient, v)
        return _products_out(window, slots, v, 1)

    schema = (
        "mfac_push(Tensor(a!) window, int[] slots, int into, Tensor gradient, Tensor v) "
        "-> Tensor"
    )
    define(schema, cpu=cpu, cuda=cuda, fake=fake)


def _define_combine() -> None:
    op = "mfac_combine"

    def allocate(
        window: Tensor,
        slots: Sequence[int],
        coefficient: Tensor,
        alpha: float,
        v: Tensor | None,
        wide: bool,
    ) -> Tensor:
        _check(op, window, slots, **({} if v is None else {"v": v}))
        _operands.float64(op, "coefficient", coefficient)
        k = coefficient.shape[0] if coefficient.dim() == 2 else 0
        if tuple(coefficient.shape) != (k, len(slots)):
            raise ValueError(f"{op}: coefficient must have shape ({k}, {len(slots)})")
        if v is not None and v.shape[0] != k:
            raise ValueError(f"{op}: v has {v.shape[0]} rows but coefficient has {k}")
        dtype = torch.float64 if wide else torch.float32
        return window.new_empty(k, window.shape[1], dtype=dtype)

    def cpu(*arguments: Any) -> Tensor:
        if not _runtime.compiled(arguments[0].device):
            return cuda(*arguments)
        torch.get_num_threads()
        window, slots, coefficient, alpha, v, _ = arguments
        out = allocate(*arguments)
        v = None if v is None else _contiguous(v)
        _runtime.cpu_module().mfac_combine(
            _rows(window), slots, _contiguous(coefficient), alpha, v, out
        )
        return out

    def cuda(*arguments: Any) -> Tensor:
        out = allocate(*arguments)
        _passes(arguments[0]).combine(_rows(arguments[0]), *arguments[1:-1], out)
        return out

    schema = (
        "mfac_combine(Tensor window, int[] slots, Tensor coefficient, float alpha, Tensor? v, "
        "bool wide) -> Tensor"
    )
    define(schema, cpu=cpu, cuda=cuda, fake=allocate)


def is_finite(window: Tensor, gradient: Tensor) -> bool:
    """Whether every element of a row is finite, also once rounded to the window's storage."""
    if window.device.type == "cpu" and _runtime.compiled(window.device):
        return bool(_runtime.cpu_module().mfac_is_finite(window, gradient))
    # One reduction: the largest is NaN or infinite where any is.
    largest = torch.linalg.vector_norm(gradient.to(window.dtype), torch.inf)
    return math.isfinite(float(largest))


_define_products()
_define_push()
_define_combine()


def factors() -> Any:
    """The small algebra; factors lie on the CPU, whatever the window's device."""
    return _runtime.cpu_module() if _runtime.backend() == "native" else mfac_factor
