"""The passes over a window of gradients on a GPU.

The same kernels run on the host where the window is there: so tests can compare them with the
passes of the CPU on machines without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from . import _runtime


def products(window: Tensor, slots: Sequence[int], v: Tensor, out: Tensor) -> None:
    """out (k, count) = the products of v (k, d) with the rows ``slots``."""
    _products(window, slots, 0, None, v, out)


def push(
    window: Tensor, slots: Sequence[int], into: int, gradient: Tensor, v: Tensor, out: Tensor
) -> None:
    """Write a row (1, d); out (1 + k, count) has its products, as it was rounded, first."""
    _products(window, slots, into, gradient.contiguous(), v, out)


def combine(
    window: Tensor,
    slots: Sequence[int],
    coefficient: Tensor,
    alpha: float,
    v: Tensor | None,
    out: Tensor,
) -> None:
    """out (k, d) = alpha v + coefficient (k, count) times the rows ``slots``."""
    v = None if v is None else v.contiguous()
    workspace = _float64(window, len(slots))
    _module(window).mfac_device_combine(
        window, slots, coefficient.contiguous(), alpha, v, workspace, out,
        _stream(window),
    )  # fmt: skip


def _products(
    window: Tensor,
    slots: Sequence[int],
    into: int,
    gradient: Tensor | None,
    v: Tensor,
    out: Tensor,
) -> None:
    module = _module(window)
    size = module.mfac_device_workspace(len(slots), window.shape[1], len(out))
    module.mfac_device_products(
        window, slots, into, gradient, v.contiguous(), _float64(window, size), out,
        _stream(window),
    )  # fmt: skip


def _module(window: Tensor) -> ModuleType:
    return _runtime.cuda_module() if window.is_cuda else _runtime.cpu_module()


def _stream(window: Tensor) -> int:
    return torch.cuda.current_stream(window.device).cuda_stream if window.is_cuda else 0


def _float64(window: Tensor, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float64, device=window.device)
