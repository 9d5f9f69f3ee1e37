"""The plan of a solution in sparse form."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .._sinkhorn import Problem
from ._kernel import blocks, plan


def sparse(
    problem: Problem, f: Tensor, g: Tensor, threshold: float | None, k: int | None
) -> list[Tensor]:
    """The plan of each problem in CSR: entries above a threshold, or the k largest of a row."""
    rows: list[list[Tensor]] = [[] for _ in problem.a]  # counts, columns and values by problem
    for _, part, f_part in blocks(problem, f):
        plans = plan(part, f_part, g)
        kept = plans > (threshold or 0.0)
        if k is not None:
            largest = plans.topk(min(k, plans.shape[2]), dim=2).indices
            kept &= torch.zeros_like(kept).scatter_(2, largest, True)
        for found, one, mask in zip(rows, plans, kept, strict=True):
            found += [mask.sum(1), mask.nonzero()[:, 1], one[mask]]
    return [_csr(found, problem.b.shape[1]) for found in rows]


def _csr(found: list[Tensor], m: int) -> Tensor:
    counts, columns, values = (torch.cat(found[part::3]) for part in range(3))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    with warnings.catch_warnings():  # "Sparse CSR tensor support is in beta state"
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(
            starts, columns, values, (len(counts), m), check_invariants=False
        )
