"""The machine of a measurement: what it is, and how fast it moves and multiplies numbers."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from .. import __version__, _runtime


def describe(repository: Path | None = None) -> dict:
    """CPU, software and commit, as they go into the JSON."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": _runtime.isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "curvkern": __version__,
        "backend": _runtime.backend(),
        "commit": _commit(repository),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch, and curvkern with it, use this many threads inside the block.

    So do the other libraries that are loaded by then, where threadpoolctl is installed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        if find_spec("threadpoolctl") is None:
            yield
        else:
            from threadpoolctl import threadpool_limits

            with threadpool_limits(count):
                yield
    finally:
        torch.set_num_threads(before)


def peak_MiB(call: Callable[[], object]) -> float | None:
    """How far resident memory rises during a call; None where Linux's /proc does not tell."""
    try:
        with _freed_memory_given_back():
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
            before = _status("VmHWM")
            call()
            return (_status("VmHWM") - before) / 1024
    except OSError:
        return None


@contextmanager
def _freed_memory_given_back() -> Iterator[None]:
    """Of glibc: what earlier calls have freed is resident, and would serve this one unseen."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        yield
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
    MiB = 1 << 20
    libc.mallopt(trim_threshold, MiB // 16)
    libc.mallopt(mmap_threshold, MiB // 16)
    libc.mallopt(top_pad, 0)
    libc.malloc_trim(0)
    try:
        yield
    finally:  # what these grow to while a process frees large blocks
        libc.mallopt(mmap_threshold, 32 * MiB)
        libc.mallopt(trim_threshold, 64 * MiB)
        libc.mallopt(top_pad, MiB // 8)


def _status(field: str) -> int:
    """A field of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def limits() -> dict[str, float]:
    """Measured limits of one thread, each the best of several tries.

    ``copy_GBps``: bytes read and written by ``Tensor.copy_`` between two buffers of 64 MiB.
    ``matmul_GFLOPS_<dtype>``: a 1024 x 1024 matrix product, the nearest to the FMA peak that
    torch reaches. ``exp_ns_<dtype>``: ``torch.exp`` of 2^16 numbers in [-1, 1], per element.
    """
    with threads(1):
        return _limits()


def _limits() -> dict[str, float]:
    source = torch.ones(2**23, dtype=torch.float64)
    target = torch.empty_like(source)
    seconds = _best(partial(target.copy_, source))
    found = {"copy_GBps": 2 * source.nbytes / seconds / 1e9}
    for dtype in (torch.float64, torch.float32):
        name = str(dtype).removeprefix("torch.")
        square = torch.rand(1024, 1024, dtype=dtype)
        product = torch.empty_like(square)
        seconds = _best(partial(torch.mm, square, square, out=product))
        found[f"matmul_GFLOPS_{name}"] = 2 * 1024**3 / seconds / 1e9
        line = torch.linspace(-1, 1, 2**16, dtype=dtype)
        result = torch.empty_like(line)
        seconds = _best(partial(torch.exp, line, out=result))
        found[f"exp_ns_{name}"] = seconds / line.numel() * 1e9
    return found


def floor_ns(case_bytes: float, flops: float, dtype: str, found: dict) -> tuple[float, str]:
    """The least time per element by the measured limits, and which one binds."""
    memory = case_bytes / found["copy_GBps"]
    # No case computes in a narrower dtype than float32.
    wide = dtype if dtype == "float64" else "float32"
    compute = flops / found[f"matmul_GFLOPS_{wide}"]
    return (memory, "memory") if memory > compute else (compute, "compute")


def _best(call: Callable[[], object], tries: int = 7) -> float:
    call()
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit(repository: Path | None) -> str | None:
    """The commit of a checkout, marked when tracked files differ from it; else None."""
    if repository is None:
        return None
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
