"""Ranks: means over them, and parameters of which each holds some rows (``fully_shard``).

An element's place in parameter space, from which its sign follows, is that in the whole
parameter: ranks draw what one process would.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _hutchinson as ops

_AVAILABLE = dist.is_available()
_PLAIN = (torch.nn.Parameter, Tensor)

if _AVAILABLE:
    from torch.distributed.tensor import DTensor, Replicate, Shard


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a ``DTensor``."""
    return type(tensor) not in _PLAIN and _AVAILABLE and isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds, sharing its memory."""
    if not is_sharded(tensor):
        return tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part.detach()


def like(part: Tensor, p: Tensor) -> Tensor:
    """A rank's part as one of a tensor that is sharded as p is."""
    if not is_sharded(p):
        return part
    mesh, placements = p.device_mesh, p.placements  # type: ignore[attr-defined]
    whole: Tensor = DTensor.from_local(
        part, mesh, placements, shape=p.shape, stride=p.stride(), run_check=False
    )
    return whole


def check(name: str, p: Tensor) -> None:
    """Refuse what is not rows on the ranks of one dimension of a mesh."""
    if not is_sharded(p):
        return
    placements = p.placements  # type: ignore[attr-defined]
    cut = [at for at in placements if not isinstance(at, Replicate)]
    if len(cut) > 1 or any(type(at) is not Shard or at.dim != 0 for at in cut):
        raise NotImplementedError(
            f"{name}: parameters may be sharded by rows over one dimension of a mesh, got "
            f"{tuple(placements)}"
        )


def rows(p: Tensor) -> tuple[int, int, int]:
    """The first row of p that this rank has, how many, and how many the largest part has."""
    n = int(p.shape[0]) if p.dim() else 1
    if is_sharded(p):
        mesh = p.device_mesh  # type: ignore[attr-defined]
        for dim, at in enumerate(p.placements):  # type: ignore[attr-defined]
            if isinstance(at, Shard):
                most = -(-n // mesh.size(dim))  # as torch.chunk cuts
                first = min(n, mesh.get_local_rank(dim) * most)
                return first, min(most, n - first), most
    return 0, n, n


def elements(p: Tensor, count: int) -> int:
    """Of so many rows."""
    return count * (p.numel() // max(1, int(p.shape[0]) if p.dim() else 1))


def block(name: str, p: Tensor, spatial: Any) -> int:
    """The length of the blocks that a mean runs over, none of which lies on two ranks."""
    length = ops.spatial_block(p.shape, spatial)
    if length > 1 and is_sharded(p):
        most = rows(p)[2]
        if most < (p.shape[0] if p.dim() else 1) and elements(p, most) % length:
            raise ValueError(
                f"{name}: blocks of {length} elements of a parameter of shape "
                f"{tuple(p.shape)} would lie across shards of {most} rows; choose another "
                "spatial mode or other lengths"
            )
    return length


def cut(tensor: Tensor, p: Tensor) -> Tensor:
    """Of a tensor like p, sharded in the same way or whole, what this rank holds."""
    if is_sharded(tensor):
        if is_sharded(p) and tensor.placements != p.placements:  # type: ignore[attr-defined]
            tensor = tensor.redistribute(p.device_mesh, p.placements)  # type: ignore[attr-defined]
        return local(tensor)
    if not is_sharded(p):
        return tensor.detach()
    first, count, _ = rows(p)
    part = tensor.detach()
    return part[first : first + count] if p.dim() else part


def groups(params: list[Tensor]) -> list[Any]:
    """The process groups that hold parts of some parameters, each once."""
    found: dict[str, Any] = {}
    for p in params:
        if is_sharded(p):
            mesh = p.device_mesh  # type: ignore[attr-defined]
            for dim, at in enumerate(p.placements):  # type: ignore[attr-defined]
                if isinstance(at, Shard):
                    group = mesh.get_group(dim)
                    found.setdefault(group.group_name, group)
    return [found[key] for key in sorted(found)]


def add_over(params: list[Tensor], sums: Tensor) -> Tensor:
    """Sums over parts of sharded parameters, over all ranks that hold one."""
    for group in groups(params):
        dist.all_reduce(sums, group=group)
    return sums


def any_over(params: list[Tensor], flag: bool) -> bool:
    """Whether it is so on any of the ranks that hold parts: all have to decide alike."""
    found = groups(params)
    if not found:
        return flag
    word = torch.tensor([float(flag)], device=local(params[0]).device)
    for group in found:
        dist.all_reduce(word, op=dist.ReduceOp.MAX, group=group)
    return bool(word)


def mean_over(group: Any, tensors: list[Tensor]) -> None:
    """The mean over the ranks of a process group, in one message for each dtype."""
    if group is None:
        return
    ranks = dist.get_world_size(group)
    for dtype in sorted({t.dtype for t in tensors}, key=str):
        index = [i for i, t in enumerate(tensors) if t.dtype is dtype]
        flat = torch.cat([tensors[i].reshape(-1) for i in index])
        dist.all_reduce(flat, group=group)
        flat /= ranks
        parts = flat.split([tensors[i].numel() for i in index])
        for i, part in zip(index, parts, strict=True):
            tensors[i] = part.view(tensors[i].shape)
