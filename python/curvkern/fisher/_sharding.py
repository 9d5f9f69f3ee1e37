"""Sums over the ranks that share the columns of a window."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def summed(t: Tensor, group: Any) -> Tensor:
    """The sum over the ranks of a group; t itself without one."""
    if group is not None:
        t = t.contiguous()
        dist.all_reduce(t, group=group)
    return t


def all_agree(holds: bool, group: Any, device: torch.device) -> bool:
    """Whether something holds on every rank; asked on a device that the group serves."""
    if group is None:
        return holds
    return int(summed(torch.tensor(int(not holds), device=device), group)) == 0
