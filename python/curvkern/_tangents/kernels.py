"""Which tensors the compiled passes of ``csrc/hutchinson/tangents.hpp`` take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _runtime

DTYPES = (torch.float32, torch.float64)
ROWS = 64  # of a sum over rows, as row_chunk there


def takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all of them are of one kind that is compiled, and x is contiguous."""
    if x.device.type != "cpu" or x.dtype not in DTYPES or not x.is_contiguous():
        return False
    if _runtime.backend() == "reference" or x.numel() == 0:
        return False
    return all(t is None or t.dtype is x.dtype for t in others)


def module() -> Any:
    torch.get_num_threads()  # hands the setting of torch.set_num_threads to a new thread
    return _runtime.cpu_module()


def dense(t: Tensor) -> Tensor:
    return t.detach().contiguous()


def maybe_dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().contiguous()
