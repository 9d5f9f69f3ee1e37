"""The steps of the Hutchinson family on a GPU.

The same kernels run on the host where the tensors are there: so tests can compare them with the
steps of the CPU on machines without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _runtime


def step(name: str, first: Sequence[Tensor], *arguments: Any) -> None:
    """Run ``hutchinson_device_<name>`` on the stream of the tensors' device."""
    if not first:
        return
    like = first[0]
    module = _runtime.cuda_module() if like.is_cuda else _runtime.cpu_module()

    def workspace(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float64, device=like.device)

    getattr(module, f"hutchinson_device_{name}")(first, *arguments, workspace, _stream(like))


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
