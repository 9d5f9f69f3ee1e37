"""The plan of a solution: dense, sparse, and applied to vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from ._kernel import Problem


def dense(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """P, (B, n, m)."""
    parts = [block.plan() for block in problem.blocks(f, g)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def applied(problem: Problem, f: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """P v for v (B, m, k)."""
    parts = [
        block.problem.a[:, :, None] * (block.e @ (problem.b[:, :, None] * v))
        for block in problem.blocks(f, g)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def applied_transposed(problem: Problem, f: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """P' v for v (B, n, k)."""
    total = torch.zeros_like(problem.b[:, :, None] * v[:, :1])
    for block in problem.blocks(f, g):
        total = total + block.e.mT @ (block.problem.a[:, :, None] * v[:, block.at])
    return problem.b[:, :, None] * total


def sparse(
    problem: Problem, f: Tensor, g: Tensor, threshold: float | None, k: int | None
) -> list[Tensor]:
    """The plan of each problem in CSR: entries above a threshold, or the k largest of a row."""
    rows: list[list[Tensor]] = [[] for _ in problem.a]  # counts, columns and values by problem
    for block in problem.blocks(f, g):
        plans = block.plan()
        kept = plans > (threshold or 0.0)
        if k is not None:
            largest = plans.topk(min(k, plans.shape[2]), dim=2).indices
            kept &= torch.zeros_like(kept).scatter_(2, largest, True)
        for found, plan, mask in zip(rows, plans, kept, strict=True):
            found += [mask.sum(1), mask.nonzero()[:, 1], plan[mask]]
    return [_csr(found, problem.b.shape[1]) for found in rows]


def _csr(found: list[Tensor], m: int) -> Tensor:
    counts, columns, values = (torch.cat(found[part::3]) for part in range(3))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return torch.sparse_csr_tensor(
        starts, columns, values, (len(counts), m), check_invariants=False
    )
