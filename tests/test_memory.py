"""Sizes, leaks, and the memory around tensors: nothing beyond their ends is touched.

Cases of the reliability list are named in the docstrings.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.testing import assert_close

from curvkern import _ops, _runtime
from operations import OPERATIONS, Elementwise, both_dtypes, every_operation, requiring_grad

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE = mmap.PAGESIZE
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MAP_FIXED = 0x10

# Ends of tensors ----------------------------------------------------------------------------

SIZES = (*range(1, 34), 64, 512, 520)


@every_operation
@pytest.mark.parametrize("order", [0, 1, 2])
@both_dtypes
@pytest.mark.parametrize("end", ["front", "back"])
def test_no_access_beyond_the_ends(
    op: Elementwise, order: int, dtype: torch.dtype, end: str
) -> None:
    """R54: inputs and outputs lie against a page that is inaccessible."""
    outputs = len(_ops.DERIVATIVES[order][1])
    kernel = getattr(_runtime.cpu_module(), op.name + _ops.DERIVATIVES[order][0])
    guarded = [Guarded() for _ in range(2 + outputs)]
    for size in SIZES:
        inputs = op.sample(size, dtype=dtype)
        tensors = [memory.tensor(size, dtype, end) for memory in guarded]
        for tensor, values in zip(tensors, inputs, strict=False):
            tensor.copy_(values)
        kernel(*tensors)
        expected = op.operation(order)(*inputs)
        results = tensors[2] if order == 0 else tuple(tensors[2:])
        assert_close(results, expected, rtol=0, atol=0)


class Guarded:
    """Two pages between two that may be neither read nor written."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 4 * PAGE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._protect(0)

    def __del__(self) -> None:
        self._protect(READ_WRITE)

    def _protect(self, access: int) -> None:
        for page in (0, 3):
            assert LIBC.mprotect(self._address + page * PAGE, PAGE, access) == 0

    def tensor(self, size: int, dtype: torch.dtype, end: str) -> torch.Tensor:
        offset = PAGE if end == "front" else 3 * PAGE - size * dtype.itemsize
        return torch.frombuffer(self._map, dtype=dtype, count=size, offset=offset)


# Sizes --------------------------------------------------------------------------------------


class Claim:
    """An array that says through DLPack that it has a shape; there is no memory behind it."""

    class Tensor(ctypes.Structure):
        _fields_ = [
            ("data", ctypes.c_void_p),
            ("device", ctypes.c_int32 * 2),
            ("ndim", ctypes.c_int32),
            ("dtype", ctypes.c_uint8 * 4),
            ("shape", ctypes.POINTER(ctypes.c_int64)),
            ("strides", ctypes.c_void_p),
            ("byte_offset", ctypes.c_uint64),
        ]

    def __init__(self, *shape: int) -> None:
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        cpu, float64 = (1, 0), (2, 64, 1, 0)
        fields = (None, cpu, len(shape), float64, self._shape, None, 0)
        self._tensor = Claim.Tensor(*fields)

    def __dlpack__(self) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self._tensor), b"dltensor", None)


@every_operation
def test_sizes_that_overflow(op: Elementwise) -> None:
    """R31: a number of elements beyond 64 bits is refused, and the next call works."""
    huge = Claim(2**62, 2**10)
    with pytest.raises(
        ValueError, match=f"^{op.name}: v is too large: {2**62} x {2**10} elements$"
    ):
        getattr(_runtime.cpu_module(), op.name)(huge, huge, huge)
    assert op(*op.sample(3)).isfinite().all()


@every_operation
@pytest.mark.parametrize("order", [0, 1, 2])
def test_sizes_beyond_memory(op: Elementwise, order: int) -> None:
    """R31: so is one that no machine holds, in words of ours."""
    one = torch.ones((), dtype=torch.float64).expand(10**13, 1024)
    with pytest.raises(
        MemoryError,
        match=rf"^{op.name}\w*: a result of shape \(10000000000000, 1024\) is too large",
    ):
        op.operation(order)(one, one)
    assert op(*op.sample(3)).isfinite().all()


class Repeated:
    """float32 numbers that repeat every 4 MiB, but for the last: they take 8 MiB of memory."""

    PERIOD = 2**20

    def __init__(self, periods: int) -> None:
        self.size = periods * self.PERIOD
        step, bytes_ = 4 * self.PERIOD, 4 * self.size
        self._address = LIBC.mmap(None, bytes_, READ_WRITE, ANONYMOUS, -1, 0)
        file = os.memfd_create("repeated")
        os.ftruncate(file, step)
        for at in range(self._address, self._address + bytes_ - step, step):
            flags = mmap.MAP_SHARED | MAP_FIXED
            assert LIBC.mmap(at, step, READ_WRITE, flags, file, 0) == at
        os.close(file)
        memory = (ctypes.c_float * self.size).from_address(self._address)
        self.array = np.frombuffer(memory, dtype=np.float32)
        self.last = self.array[-self.PERIOD :]

    def close(self) -> None:
        assert LIBC.munmap(self._address, 4 * self.size) == 0


@pytest.mark.skipif(
    "CURVKERN_SLOW_TESTS" not in os.environ,
    reason="takes half a minute: set CURVKERN_SLOW_TESTS=1 to run it",
)
def test_log_iv_of_more_than_2_to_the_31() -> None:
    """R32, for an operation itself."""
    log_iv = _runtime.cpu_module().log_iv
    check_beyond_2_to_the_31(lambda x, out: log_iv(x, x, out))


def test_exp_of_more_than_2_to_the_31() -> None:
    """R32: what all operations share, checks and chunks, about a cheap function."""
    elementary = _runtime.cpu_module().elementary
    check_beyond_2_to_the_31(lambda x, out: elementary("exp", x, out))


def check_beyond_2_to_the_31(function: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """In place, for speed: it is the last elements that matter."""
    memory = Repeated(2**31 // Repeated.PERIOD + 1)
    memory.last[:] = np.linspace(1, 2, Repeated.PERIOD)
    expected = np.empty_like(memory.last)
    function(memory.last.copy(), expected)
    function(memory.array, memory.array)
    assert memory.size - 2**31 == len(expected)
    np.testing.assert_array_equal(memory.last, expected)
    memory.close()


# Leaks --------------------------------------------------------------------------------------


N = 20_000


def third_derivative(op: Elementwise) -> None:
    v, x = requiring_grad(*op.sample(N // 4))
    (slope,) = torch.autograd.grad(op(v, x).sum(), v, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), v, create_graph=True)
    curvature.sum().backward()


RAISING: dict[str, Callable[[Elementwise], Any]] = {
    "dtype": lambda op: op(torch.ones(N), torch.ones(N, dtype=torch.bool)),
    "shape": lambda op: op(torch.ones(N), torch.ones(N - 1)),
    "native shape": lambda op: getattr(_runtime.cpu_module(), op.name)(
        np.ones(N), np.ones(N - 1), np.ones(N)
    ),
    "native tensor": lambda op: getattr(_runtime.cpu_module(), op.name)(
        torch.ones(N), torch.ones(2 * N)[::2], torch.ones(N)
    ),
    "third derivative": third_derivative,
}


@pytest.mark.parametrize("way", RAISING)
def test_raising_calls_leak_nothing(way: str) -> None:
    """R37: 300 of them, each with tensors of its own and no help from the garbage collector."""
    op, process = OPERATIONS[0], psutil.Process()

    def raise_(times: int) -> tuple[int, int]:
        for _ in range(times):
            with pytest.raises((TypeError, ValueError, RuntimeError)):
                RAISING[way](op)
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        return tensors, process.memory_info().rss

    gc.collect()
    gc.disable()
    try:
        tensors, memory = raise_(20)
        tensors_after, memory_after = raise_(300)
    finally:
        gc.enable()
    assert tensors_after <= tensors
    assert memory_after - memory < 300 * N  # a leaked tensor has at least N bytes
