"""Self-test of the Hutchinson family: steps, probes, products, and a Hessian that is known."""

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
    """Steps and products against plain PyTorch, signs bit by bit, XDiag against low rank."""
    for dtype in (torch.float64, torch.float32):
        yield _step(dtype)
        yield _relatives(dtype)
        yield _product(dtype)
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


def _relatives(dtype: torch.dtype) -> Row:
    """A step of Sophia's; then a metric, of D = h, and the descent in it."""

    def errors() -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        p, g, hz = ([torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES]
                    for _ in range(3))  # fmt: skip
        sizes = [t.numel() for t in p]
        offsets, rows = [sum(sizes[:i]) for i in range(len(sizes))], [0] * len(sizes)
        sophia = reference.SophiaRow(0.05, 0.9, 0.8, 0.5, 1e-3, 0.1)
        metric, descent = reference.MetricRow(0.9, 0.1, 1.0), reference.DescentRow(0.1, 0.1)
        ops_of = torch.ops.curvkern
        results = []
        for steps in (
            (ops_of.hutchinson_sophia, ops_of.hutchinson_metric, ops_of.hutchinson_descent),
            (reference.sophia, reference.metric, reference.descent),
        ):
            x, m, h = [t.clone() for t in p], *([torch.zeros_like(t) for t in p] for _ in "mh")
            steps[0](x, g, hz, [], m, h, offsets, rows, list(sophia), 1.0, 2.0, True, SEED, 1)
            sums = steps[1](
                x, g, hz, [], h, p, m, offsets, rows, list(metric), 1.0, True, SEED, 2, 1
            )
            steps[2](x, g, h, [], [], rows, list(descent), 1.0)
            every = [t.reshape(-1) for tensors in (x, m, h) for t in tensors]
            results.append(torch.cat([*every, sums.to(dtype)]))
        off = (results[0] - results[1]).abs() / results[1].abs().clamp_min(1)
        return off.numpy() / torch.finfo(dtype).eps

    name = str(dtype).removeprefix("torch.")
    names = ("Sophia, OASIS", "step", name, "reference")
    count = 3 * sum(torch.Size(s).numel() for s in SHAPES) + 3
    return measured(names, count, 64, errors, lambda at: f"entry {at}")


def _product(dtype: torch.dtype) -> Row:
    """Native, through a network with both normalizations, against double backward."""

    def network() -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return torch.nn.Sequential(
                torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.GELU(),
                torch.nn.Flatten(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 5),
            ).to(dtype)  # fmt: skip

    def errors() -> np.ndarray:
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(8, 2, 6, 6, generator=generator, dtype=dtype)
        model, y = network(), torch.arange(8) % 5
        params = list(model.parameters())
        v = [torch.randn(p.shape, generator=generator, dtype=dtype) for p in params]

        def loss() -> Tensor:
            return torch.nn.functional.cross_entropy(model(x), y)

        native, twice = (
            torch.cat([t.reshape(-1) for t in curvature.hvp(loss, params, v, mode=mode)])
            for mode in ("native", "reverse")
        )
        return ((native - twice).abs() / twice.abs().max() / torch.finfo(dtype).eps).numpy()

    name = str(dtype).removeprefix("torch.")
    names = ("hvp", "native", name, "double backward")
    count = sum(p.numel() for p in network().parameters())
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
