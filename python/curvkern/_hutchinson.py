"""Operations of the Hutchinson family: ``torch.ops.curvkern.hutchinson_*``.

They take lists of tensors. An element's place in parameter space is its offset: the number of
elements before it, of all tensors in their order. From it, a seed, a step and a probe follows
the element's sign, whatever else is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _operands, _runtime
from ._ops import _contiguous, define
from .reference import hutchinson as reference

STORAGES = (torch.float64, torch.float32, torch.bfloat16)
COLUMNS = len(reference.Row._fields)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of m and v: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def spatial_block(shape: Sequence[int], spatial: str | Sequence[int]) -> int:
    """The length of the flat blocks that a spatial mode takes means of; 1 where of none.

    Means over trailing dimensions are means of flat blocks, and so all modes are.
    """
    n = len(shape)
    trailing = 0
    if n == 0 or spatial == "none":
        return 1
    if spatial == "conv":
        trailing = max(0, n - 2)
    elif spatial == "row":
        trailing = int(n > 1)
    else:
        size = int(spatial[min(n, 4) - 1])
        if size >= 0:
            return size
        trailing = n - 2 if n > 3 else int(n > 1)
    block = 1
    for size in shape[n - trailing :]:
        block *= int(size)
    return max(1, block)


def _native() -> Any:
    torch.get_num_threads()  # hands the setting of torch.set_num_threads to a new thread
    return _runtime.cpu_module()


def _written(tensors: Sequence[Tensor]) -> None:
    """Tell autograd, which then refuses to differentiate what had been saved before."""
    for tensor in tensors:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def _length(op: str, name: str, got: int, expected: int) -> None:
    if got != expected:
        raise ValueError(f"{op}: {name} has {got} entries, expected {expected}")


def _stored(op: str, name: str, tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        if tensor.dtype not in STORAGES:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise TypeError(f"{op}: {name} must be float32, float64 or bfloat16, got {dtype}")


def _alike(
    op: str, name: str, tensors: Sequence[Tensor], other_name: str, others: Sequence[Tensor]
) -> None:
    for i, tensor in enumerate(tensors):
        other = others[i % len(others)]
        _stored(op, name, [tensor])
        _operands.same_dtype(op, name, tensor, other_name, other)
        _operands.same_shape(op, name, tensor, other_name, other)


def _state(
    op: str, name: str, tensors: Sequence[Tensor], other_name: str, others: Sequence[Tensor]
) -> None:
    for tensor, other in zip(tensors, others, strict=True):
        _operands.floating(op, name, tensor)
        if tensor.dtype is not state_dtype(other.dtype):
            raise TypeError(f"{op}: {name} must be float64 of float64 and else float32")
        _operands.same_shape(op, name, tensor, other_name, other)


def _dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [_contiguous(tensor) for tensor in tensors]


def _offsets(op: str, offsets: Sequence[int]) -> None:
    for offset in offsets:
        if offset < 0:
            raise ValueError(f"{op}: offsets must not be negative")


def _define_step() -> None:
    op = "hutchinson_step"

    def check(*arguments: Any) -> None:
        params, grads, hz, z, m, v, stale, blocks, offsets, rows, settings, *_ = arguments
        n = len(params)
        lists = {"grads": grads, "m": m, "v": v}
        lists |= {"blocks": blocks, "offsets": offsets, "rows": rows}
        for name, entries in lists.items():
            _length(op, name, len(entries), n)
        if n == 0:
            return
        if len(hz) % n:
            raise ValueError(f"{op}: hz must have an entry for each parameter and probe")
        if z:
            _length(op, "z", len(z), len(hz))
        if stale:
            _length(op, "stale", len(stale), n)
        if len(settings) % COLUMNS:
            raise ValueError(f"{op}: settings must have rows of {COLUMNS} numbers")
        _stored(op, "params", params)
        for name, tensors in (("grads", grads), ("hz", hz), ("z", z)):
            _alike(op, name, tensors, "params", params)
        for name, tensors in (("m", m), ("v", v), ("stale", stale)):
            _state(op, name, tensors, "params", params)
        for row, block in zip(rows, blocks, strict=True):
            if not 0 <= row < len(settings) // COLUMNS:
                raise ValueError(f"{op}: rows must be those of settings, got {row}")
            if block < 1:
                raise ValueError(f"{op}: blocks must be at least 1")
        _offsets(op, offsets)

    def cpu(*arguments: Any) -> None:
        params, grads, hz, z, m, v, stale, *rest = arguments
        _native().hutchinson_step(params, *map(_dense, (grads, hz, z)), m, v, stale, *rest)
        _written(params)

    def elsewhere(*arguments: Any) -> None:
        check(*arguments)
        reference.step(*arguments)

    schema = (
        "hutchinson_step(Tensor(a!)[] params, Tensor[] grads, Tensor[] hz, Tensor[] z, "
        "Tensor(b!)[] m, Tensor(c!)[] v, Tensor(d!)[] stale, int[] blocks, int[] offsets, "
        "int[] rows, float[] settings, float scale, bool draws, int seed, int step) -> ()"
    )
    define(schema, cpu=cpu, cuda=elsewhere, fake=check)


def _define_signs() -> None:
    op = "hutchinson_signs"

    def check(out: Sequence[Tensor], offsets: Sequence[int], *_: int) -> None:
        _length(op, "offsets", len(offsets), len(out))
        _stored(op, "out", out)
        _offsets(op, offsets)

    def cpu(*arguments: Any) -> None:
        _native().hutchinson_signs(*arguments)
        _written(arguments[0])

    def elsewhere(*arguments: Any) -> None:
        check(*arguments)
        reference.fill_signs(*arguments)

    schema = (
        "hutchinson_signs(Tensor(a!)[] out, int[] offsets, int seed, int step, int probe) -> ()"
    )
    define(schema, cpu=cpu, cuda=elsewhere, fake=check)


def _define_accumulate() -> None:
    op = "hutchinson_accumulate"

    def check(
        mean: Sequence[Tensor],
        square: Sequence[Tensor],
        hz: Sequence[Tensor],
        z: Sequence[Tensor],
        offsets: Sequence[int],
        *rest: int,
    ) -> None:
        n = len(hz)
        _length(op, "mean", len(mean), n)
        _length(op, "offsets", len(offsets), n)
        if square:
            _length(op, "square", len(square), n)
        if z:
            _length(op, "z", len(z), n)
        _operands.at_least(op, "count", rest[-1], 1)
        if n == 0:
            return
        _stored(op, "hz", hz)
        _alike(op, "z", z, "hz", hz)
        _state(op, "mean", mean, "hz", hz)
        if square:
            _state(op, "square", square, "hz", hz)
        _offsets(op, offsets)

    def cpu(
        mean: list[Tensor], square: list[Tensor], hz: list[Tensor], z: list[Tensor], *rest: Any
    ) -> None:
        _native().hutchinson_accumulate(mean, square, *map(_dense, (hz, z)), *rest)
        _written(mean)

    def elsewhere(*arguments: Any) -> None:
        check(*arguments)
        reference.accumulate(*arguments)

    schema = (
        "hutchinson_accumulate(Tensor(a!)[] mean, Tensor(b!)[] square, Tensor[] hz, "
        "Tensor[] z, int[] offsets, int seed, int step, int probe, int count) -> ()"
    )
    define(schema, cpu=cpu, cuda=elsewhere, fake=check)


def is_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every element of all of them is."""
    if all(t.device.type == "cpu" and t.dtype in STORAGES for t in tensors):
        return bool(_native().hutchinson_is_finite(_dense(tensors)))
    return all(bool(torch.isfinite(t).all()) for t in tensors)


_define_step()
_define_signs()
_define_accumulate()
