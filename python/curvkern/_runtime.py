"""What this process runs on: compiled modules, instruction set, backend."""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType
from typing import Any

import torch

_BACKENDS = ("native", "reference")
_BACKEND = os.environ.get("CURVKERN_BACKEND") or "native"


def backend() -> str:
    """Name of the backend, ``"native"`` or ``"reference"``.

    The environment variable ``CURVKERN_BACKEND``, read when curvkern is first used, chooses
    it. The reference backend is plain PyTorch: slow, differentiable, on any device.

    Raises
    ------
    ValueError
        If ``CURVKERN_BACKEND`` names neither.
    """
    if _BACKEND not in _BACKENDS:
        raise ValueError(
            f"CURVKERN_BACKEND: expected one of {', '.join(_BACKENDS)}, got {_BACKEND!r}"
        )
    return _BACKEND


@cache
def cpu_module() -> ModuleType:
    """The compiled module ``curvkern._cpu``."""
    return importlib.import_module("curvkern._cpu")


@cache
def cuda_module() -> ModuleType:
    """The compiled module ``curvkern._cuda``.

    Raises
    ------
    NotImplementedError
        If curvkern was built without CUDA.
    """
    try:
        return importlib.import_module("curvkern._cuda")
    except ModuleNotFoundError:
        status = cpu_module().build_info()["cuda"]
        raise NotImplementedError(
            f"curvkern has no CUDA kernels ({status}); reinstall with nvcc on PATH and "
            "CURVKERN_CUDA=ON, or set CURVKERN_BACKEND=reference"
        ) from None


def has_kernels(device: torch.device) -> bool:
    """Whether this build has compiled operations for tensors of a device."""
    if device.type != "cuda":
        return device.type == "cpu"
    try:
        cuda_module()
    except NotImplementedError:
        return False
    return True


def compiled(device: torch.device) -> bool:
    """Whether compiled operations are to be used for tensors of a device."""
    return backend() == "native" and has_kernels(device)


def spare_forked_child() -> None:
    """One thread in a forked child, where a parallel region of torch would hang."""
    if torch.compiler.is_compiling() or torch.get_num_threads() == 1:
        return
    if cpu_module().in_forked_child():
        torch.set_num_threads(1)


def isa() -> str:
    """Instruction set of the CPU kernels: ``"v2"``, ``"v3"`` or ``"v4"`` (x86-64 levels).

    The widest that the processor supports, or the one that the environment variable
    ``CURVKERN_ISA`` names. ``"baseline"`` on other processors.

    Raises
    ------
    ValueError
        If ``CURVKERN_ISA`` names something that is not supported here.
    """
    name: str = cpu_module().isa()
    return name


def build_info() -> dict[str, Any]:
    """How curvkern was built and what it found in this process.

    Returns
    -------
    dict
        ``version``, ``compiler``, ``isas`` (supported by this processor, narrowest first),
        ``cuda`` (a sentence: built with which version, or why not), ``threads`` (in use by
        the kernels now), ``openmp`` (path of the runtime shared with torch, or empty).
    """
    info: dict[str, Any] = cpu_module().build_info()
    return info
