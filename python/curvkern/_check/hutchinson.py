"""Self-test of the Hutchinson family: the step, its probes, and a Hessian that is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .. import _hutchinson as ops
from .. import curvature
from ..reference import hutchinson as reference
from . import Row, measured

SHAPES = [(300, 7), (40, 3, 3, 3), (9001,), ()]
SEED = 1 << 40 | 7


def rows() -> Iterator[Row]:
    """Steps against plain PyTorch, signs bit by bit, XDiag against a matrix of low rank."""
    for dtype in (torch.float64, torch.float32):
        yield _step(dtype)
    yield _signs()
    yield _diagonal()


def _step(dtype: torch.dtype) -> Row:
    def errors() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        p, g, *hz = ([torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES]
                     for _ in range(4))  # fmt: skip
        m, v = ([torch.zeros_like(t) for t in p] for _ in "mv")
        blocks = [ops.spatial_block(s, "conv") for s in SHAPES]
        sizes = [t.numel() for t in p]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        row = reference.Row(0.05, 0.9, 0.99, 1e-2, 0.01, 1.0, 0.1, 0.01, signed=1.0)
        results = []
        for step in (torch.ops.curvkern.hutchinson_step, reference.step):
            state = [[t.clone() for t in tensors] for tensors in (p, m, v)]
            step(
                state[0], g, hz[0] + hz[1], [], state[1], state[2], [], blocks, offsets,
                [0] * len(p), list(row), 1.0, True, SEED, 3,
            )  # fmt: skip
            results.append(torch.cat([t.reshape(-1) for tensors in state for t in tensors]))
        off = (results[0] - results[1]).abs() / results[1].abs().clamp_min(1)
        return off.numpy() / torch.finfo(dtype).eps

    name = str(dtype).removeprefix("torch.")
    names = ("AdaHessian", "step", name, "reference")
    count = 3 * sum(torch.Size(s).numel() for s in SHAPES)
    return measured(names, count, 64, errors, lambda at: f"entry {at}")


def _signs() -> Row:
    def errors() -> np.ndarray:
        out = [torch.empty(s) for s in SHAPES]
        sizes = [t.numel() for t in out]
        offsets = [77 + sum(sizes[:i]) for i in range(len(sizes))]
        torch.ops.curvkern.hutchinson_signs(out, offsets, SEED, 5, 2)
        drawn = torch.cat([t.reshape(-1) for t in out])
        return (drawn - reference.signs(len(drawn), 77, SEED, 5, 2)).abs().numpy()

    count = sum(torch.Size(s).numel() for s in SHAPES)
    names = ("probes", "sign", "float32", "reference")
    return measured(names, count, 0, errors, lambda at: f"element {at}")


def _diagonal() -> Row:
    def errors() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        G = torch.randn(3, 30, generator=generator, dtype=torch.float64)
        p = torch.zeros(30, dtype=torch.float64, requires_grad=True)

        def loss() -> Tensor:
            return (G @ p).square().sum() / 2

        (found,) = curvature.hessian_diagonal(loss, [p], 5, method="xdiag", generator=generator)
        truth = G.square().sum(0)
        return ((found - truth).abs() / truth.max() / torch.finfo(torch.float64).eps).numpy()

    names = ("hessian_diagonal", "xdiag", "float64", "closed form")
    return measured(names, 30, 1000, errors, lambda at: f"entry {at}")
