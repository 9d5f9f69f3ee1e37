"""Operations of the Hutchinson family: ``torch.ops.curvkern.hutchinson_*``.

They take lists of tensors. An element's place in parameter space is its offset: the number of
elements before it, of all tensors in their order. From it, a seed, a step and a probe follows
the element's sign, whatever else is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _hutchinson_device, _operands, _runtime
from ._ops import _contiguous, define
from .reference import hutchinson as reference

STORAGES = (torch.float64, torch.float32, torch.bfloat16)
OPTIONAL = ("stale", "last_p", "last_g")  # states that a step may be without


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of m and v: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def spatial_block(shape: Sequence[int], spatial: str | Sequence[int]) -> int:
    """The length of the flat blocks that a spatial mode takes means of; 1 where of none.

    Means over trailing dimensions are means of flat blocks, and so all modes are.
    """
    n = len(shape)
    trailing = 0
    if n == 0 or spatial == "none" or (n < 3 and spatial == "conv"):
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


def is_storable(tensor: Tensor) -> bool:
    """Whether kernels take it where there are some: they do not copy what they write."""
    return (
        tensor.dtype in STORAGES and tensor.layout is torch.strided and tensor.is_contiguous()
    )


def is_native(tensor: Tensor) -> bool:
    """Whether compiled steps take it."""
    return is_storable(tensor) and _runtime.compiled(tensor.device)


def _counts_lists() -> bool:
    """Whether this torch counts the versions of a list of tensors in one call."""
    try:
        torch.autograd.graph.increment_version([])
    except (TypeError, RuntimeError, AttributeError):
        return False
    return True


COUNTS_LISTS = _counts_lists()


def _written(tensors: Sequence[Tensor]) -> None:
    """Tell autograd, which then refuses to differentiate what had been saved before."""
    written = [t for t in tensors if not t.is_inference()]
    for one in [written] if COUNTS_LISTS else written:
        torch.autograd.graph.increment_version(one)


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
    return [t if t.is_contiguous() else _contiguous(t) for t in tensors]


def _offsets(op: str, offsets: Sequence[int]) -> None:
    for offset in offsets:
        if offset < 0:
            raise ValueError(f"{op}: offsets must not be negative")


def _rows(op: str, rows: Sequence[int], settings: Sequence[float], columns: int) -> None:
    if len(settings) % columns:
        raise ValueError(f"{op}: settings must have rows of {columns} numbers")
    for row in rows:
        if not 0 <= row < len(settings) // columns:
            raise ValueError(f"{op}: rows must be those of settings, got {row}")


def _check_lists(
    op: str,
    params: Sequence[Tensor],
    alike: dict[str, Sequence[Tensor]],
    states: dict[str, Sequence[Tensor]],
    lengths: dict[str, Sequence[Any]],
) -> None:
    """Tensors like the parameters, for each probe; states of them; and other lists."""
    n = len(params)
    for name, entries in {**lengths, **states}.items():
        if entries or name not in OPTIONAL:
            _length(op, name, len(entries), n)
    if n == 0:
        return
    hz, z = alike.get("hz", []), alike.get("z", [])
    if len(hz) % n:
        raise ValueError(f"{op}: hz must have an entry for each parameter and probe")
    if z:
        _length(op, "z", len(z), len(hz))
    _stored(op, "params", params)
    for name, tensors in alike.items():
        _alike(op, name, tensors, "params", params)
    for name, tensors in states.items():
        if tensors:
            _state(op, name, tensors, "params", params)


def _define_step() -> None:
    op = "hutchinson_step"

    def check(*arguments: Any) -> None:
        params, grads, hz, z, m, v, stale, blocks, offsets, rows, settings, *_ = arguments
        _check_lists(
            op, params, {"grads": grads, "hz": hz, "z": z},
            {"m": m, "v": v, "stale": stale},
            {"grads": grads, "blocks": blocks, "offsets": offsets, "rows": rows},
        )  # fmt: skip
        _rows(op, rows, settings, len(reference.Row._fields))
        for block in blocks:
            if block < 1:
                raise ValueError(f"{op}: blocks must be at least 1")
        _offsets(op, offsets)

    def run(step: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        params, grads, hz, z, *rest = arguments
        step(params, *map(_dense, (grads, hz, z)), *rest)
        _written(params)

    def cpu(*arguments: Any) -> None:
        run(_native().hutchinson_step, arguments)

    def cuda(*arguments: Any) -> None:
        run(partial(_hutchinson_device.step, "step"), arguments)

    schema = (
        "hutchinson_step(Tensor(a!)[] params, Tensor[] grads, Tensor[] hz, Tensor[] z, "
        "Tensor(b!)[] m, Tensor(c!)[] v, Tensor(d!)[] stale, int[] blocks, int[] offsets, "
        "int[] rows, float[] settings, float scale, bool draws, int seed, int step) -> ()"
    )
    define(schema, cpu=cpu, cuda=cuda, fake=check)


def _define_sophia() -> None:
    op = "hutchinson_sophia"

    def check(*arguments: Any) -> None:
        params, grads, hz, z, m, h, offsets, rows, settings, *_ = arguments
        _check_lists(
            op, params, {"grads": grads, "hz": hz, "z": z}, {"m": m, "h": h},
            {"grads": grads, "offsets": offsets, "rows": rows},
        )  # fmt: skip
        _rows(op, rows, settings, len(reference.SophiaRow._fields))
        _offsets(op, offsets)

    def run(step: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        params, grads, hz, z, *rest = arguments
        step(params, *map(_dense, (grads, hz, z)), *rest)
        _written(params)

    def cpu(*arguments: Any) -> None:
        run(_native().hutchinson_sophia, arguments)

    def cuda(*arguments: Any) -> None:
        run(partial(_hutchinson_device.step, "sophia"), arguments)

    schema = (
        "hutchinson_sophia(Tensor(a!)[] params, Tensor[] grads, Tensor[] hz, Tensor[] z, "
        "Tensor(b!)[] m, Tensor(c!)[] h, int[] offsets, int[] rows, float[] settings, "
        "float scale, float weight, bool draws, int seed, int step) -> ()"
    )
    define(schema, cpu=cpu, cuda=cuda, fake=check)


def _define_metric() -> None:
    op = "hutchinson_metric"

    def allocate(params: Sequence[Tensor]) -> Tensor:
        """Zeros, for no parameter at all."""
        device = params[0].device if params else None
        return torch.zeros(3, dtype=torch.float64, device=device)

    def fake(*arguments: Any) -> Tensor:
        params, grads, hz, z, D, last_p, last_g, offsets, rows, settings, *_ = arguments
        _length(op, "last_g", len(last_g), len(last_p))
        if params and not hz:
            raise ValueError(f"{op}: hz must have an entry for each parameter and probe")
        _check_lists(
            op, params, {"grads": grads, "hz": hz, "z": z},
            {"D": D, "last_p": last_p, "last_g": last_g},
            {"grads": grads, "offsets": offsets, "rows": rows},
        )  # fmt: skip
        _rows(op, rows, settings, len(reference.MetricRow._fields))
        _offsets(op, offsets)
        return allocate(params)

    def run(step: Callable[..., None], arguments: tuple[Any, ...]) -> Tensor:
        params, grads, hz, z, D, last_p, last_g, *rest = arguments
        sums = allocate(params)
        read = map(_dense, (params, grads, hz, z))
        step(*read, D, *map(_dense, (last_p, last_g)), *rest, sums)
        return sums

    def cpu(*arguments: Any) -> Tensor:
        return run(_native().hutchinson_metric, arguments)

    def cuda(*arguments: Any) -> Tensor:
        return run(partial(_hutchinson_device.step, "metric"), arguments)

    schema = (
        "hutchinson_metric(Tensor[] params, Tensor[] grads, Tensor[] hz, Tensor[] z, "
        "Tensor(a!)[] D, Tensor[] last_p, Tensor[] last_g, int[] offsets, int[] rows, "
        "float[] settings, float scale, bool draws, int seed, int step, int probe) -> Tensor"
    )
    define(schema, cpu=cpu, cuda=cuda, fake=fake)


def _define_descent() -> None:
    op = "hutchinson_descent"

    def check(*arguments: Any) -> None:
        params, grads, D, last_p, last_g, rows, settings, *_ = arguments
        _length(op, "last_g", len(last_g), len(last_p))
        _check_lists(
            op, params, {"grads": grads}, {"D": D, "last_p": last_p, "last_g": last_g},
            {"grads": grads, "rows": rows},
        )  # fmt: skip
        _rows(op, rows, settings, len(reference.DescentRow._fields))

    def run(step: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        params, grads, D, *rest = arguments
        step(params, *map(_dense, (grads, D)), *rest)
        _written(params)

    def cpu(*arguments: Any) -> None:
        run(_native().hutchinson_descent, arguments)

    def cuda(*arguments: Any) -> None:
        run(partial(_hutchinson_device.step, "descent"), arguments)

    schema = (
        "hutchinson_descent(Tensor(a!)[] params, Tensor[] grads, Tensor[] D, "
        "Tensor(b!)[] last_p, Tensor(c!)[] last_g, int[] rows, float[] settings, "
        "float scale) -> ()"
    )
    define(schema, cpu=cpu, cuda=cuda, fake=check)


def _define_signs() -> None:
    op = "hutchinson_signs"

    def check(out: Sequence[Tensor], offsets: Sequence[int], *_: int) -> None:
        _length(op, "offsets", len(offsets), len(out))
        _stored(op, "out", out)
        _offsets(op, offsets)

    def cpu(*arguments: Any) -> None:
        _native().hutchinson_signs(*arguments)
        _written(arguments[0])

    def cuda(*arguments: Any) -> None:
        _hutchinson_device.step("signs", *arguments)
        _written(arguments[0])

    schema = (
        "hutchinson_signs(Tensor(a!)[] out, int[] offsets, int seed, int step, int probe) -> ()"
    )
    define(schema, cpu=cpu, cuda=cuda, fake=check)


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

    def cuda(
        mean: list[Tensor], square: list[Tensor], hz: list[Tensor], z: list[Tensor], *rest: Any
    ) -> None:
        _hutchinson_device.step("accumulate", mean, square, *map(_dense, (hz, z)), *rest)
        _written(mean)

    schema = (
        "hutchinson_accumulate(Tensor(a!)[] mean, Tensor(b!)[] square, Tensor[] hz, "
        "Tensor[] z, int[] offsets, int seed, int step, int probe, int count) -> ()"
    )
    define(schema, cpu=cpu, cuda=cuda, fake=check)


def is_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every element of all of them is."""
    if all(t.is_cpu and t.dtype in STORAGES and _runtime.compiled(t.device) for t in tensors):
        return bool(_native().hutchinson_is_finite(_dense(tensors)))
    return all(bool(torch.isfinite(t).all()) for t in tensors)


_define_step()
_define_sophia()
_define_metric()
_define_descent()
_define_signs()
_define_accumulate()
