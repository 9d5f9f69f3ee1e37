"""Benchmark cases of the projection onto the simplex and of sparse transport plans.

Rows are standard normal scores, as logits of attention or of a router are, and scores of a
hundredth of that, where a large part of a row stays in the support. The yardstick is what a
user would call instead: one softmax of the same tensor. The twin sorts; the package entmax,
where it is installed, selects the largest. Plans stand against POT's smooth solvers, on squared
distances of Gaussian points.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from importlib.util import find_spec

import torch

from curvkern import ot, reference
from curvkern._bench.case import OURS, REFERENCE, Bar, Case, Contestants

YARDSTICK = "torch.softmax"
LENGTHS = (32, 1000, 32000)
SCALES = {"logits": 1.0, "flat": 0.01}
SIZE = {"float64": 8, "float32": 4}
SIDE = 300  # points on either side of a plan
DENSE = 1.0  # gamma where a plan has about 4 nonzeros a column


def cases() -> list[Case]:
    """Rows of three lengths, with their gradients, and plans."""
    grid = [(n, dtype) for n in LENGTHS for dtype in SIZE]
    listed = [_rows("sparsemax", n, dtype, where) for where in SCALES for n, dtype in grid]
    listed += [_rows("topk_sparsemax", n, dtype, "logits") for n, dtype in grid]
    listed += [_gradients(n, dtype) for n, dtype in grid]
    return [*listed, _plan("quadratic_ot", None), _plan("sparsity_constrained_ot", 5)]


def inputs(n: int, length: int, dtype: str, scale: float = 1.0) -> torch.Tensor:
    """Rows of normal scores, n numbers together."""
    generator = torch.Generator().manual_seed(0)
    rows = max(1, n // length)
    return scale * torch.randn(rows, length, generator=generator, dtype=getattr(torch, dtype))


def _rows(op: str, length: int, dtype: str, where: str) -> Case:
    def setup(n: int) -> Contestants:
        z = inputs(n, length, dtype, SCALES[where])
        if op == "topk_sparsemax":
            return {
                OURS: lambda: ot.topk_sparsemax(z, 4),
                YARDSTICK: lambda: torch.softmax(z, -1),
                REFERENCE: lambda: reference.sparsemax.sparsemax(z, k=4),
                "torch.topk": lambda: torch.topk(z, 4).values,
            }
        calls: dict[str, Callable[[], object]] = {
            OURS: lambda: ot.sparsemax(z),
            YARDSTICK: lambda: torch.softmax(z, -1),
            REFERENCE: lambda: reference.sparsemax.sparsemax(z),
        }
        if find_spec("entmax"):
            import entmax

            calls["entmax"] = lambda: entmax.sparsemax(z, -1)
        return calls

    bars = (Bar(YARDSTICK, slower=1.0), Bar(REFERENCE, faster=10))
    return Case(
        family="sparsemax",
        op=op,
        region=f"{where} {length}",
        mode="value",
        dtype=dtype,
        where=f"rows of {length} normal numbers times {SCALES[where]:g}",
        setup=setup,
        yardstick=YARDSTICK,
        bytes=2 * SIZE[dtype],
        flops=2,  # a comparison for the largest entry, one with the threshold
        bars=bars if where == "logits" and length > 32 else (),
        elements=2**20,
        quick=op == "sparsemax" and length == 1000,
    )


def _gradients(length: int, dtype: str) -> Case:
    def setup(n: int) -> Contestants:
        z = inputs(n, length, dtype).requires_grad_()
        w = inputs(n, length, dtype, 2.0)

        def forward_and_backward(function: Callable[..., torch.Tensor]) -> torch.Tensor:
            return torch.autograd.grad(function(z), z, w)[0]

        return {
            OURS: lambda: forward_and_backward(ot.sparsemax),
            YARDSTICK: lambda: forward_and_backward(lambda z: torch.softmax(z, -1)),
            REFERENCE: lambda: forward_and_backward(reference.sparsemax.sparsemax),
        }

    return Case(
        family="sparsemax",
        op="sparsemax",
        region=f"logits {length}",
        mode="value+grad",
        dtype=dtype,
        where=f"rows of {length} normal numbers times {SCALES['logits']:g}",
        setup=setup,
        yardstick=YARDSTICK,
        bytes=5 * SIZE[dtype],
        flops=5,
        bars=(Bar(YARDSTICK, slower=1.0),) if length > 32 else (),
        elements=2**20,
    )


def _plan(op: str, k: int | None) -> Case:
    def setup(n: int) -> Contestants:
        side = min(math.isqrt(n), SIDE)
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, side, 2, generator=generator, dtype=torch.float64)
        C = torch.cdist(x, 0.7 * y + 1) ** 2
        C /= C.max()
        calls: dict[str, Callable[[], object]] = {
            OURS: lambda: (
                (
                    ot.quadratic_ot(None, None, C, DENSE)
                    if k is None
                    else ot.sparsity_constrained_ot(None, None, C, DENSE, k)
                ).plan
            ),
            YARDSTICK: lambda: torch.softmax(C, -1),
        }
        if find_spec("ot"):
            calls |= {f"POT {name}": _pot(name, C, k) for name in ("dual", "semi-dual")}
        return calls

    return Case(
        family="sparsemax",
        op=op,
        region=f"gaussians {SIDE}",
        mode="value",
        dtype="float64",
        where=f"{SIDE} points to {SIDE}, squared distances of at most 1, gamma = {DENSE:g}",
        setup=setup,
        yardstick=YARDSTICK,
        bytes=SIZE["float64"],
        flops=2,
        bars=tuple(Bar(f"POT {name}", faster=1) for name in ("dual", "semi-dual")),
        elements=SIDE**2,
        note=(
            "POT's smooth solvers stop at their default criterion, with marginal errors near "
            "1e-5, under k = 5 near 1e-2; ours meet them to 1e-9"
        ),
    )


def _pot(name: str, C: torch.Tensor, k: int | None) -> Callable[[], object]:
    from ot import smooth

    solver = smooth.smooth_ot_dual if name == "dual" else smooth.smooth_ot_semi_dual
    cost = C.numpy()
    a, b = (torch.full((size,), 1 / size, dtype=torch.float64).numpy() for size in C.shape)
    options = {"reg_type": "l2"} if k is None else {
        "reg_type": "sparsity_constrained", "max_nz": k
    }  # fmt: skip

    def call() -> object:
        with contextlib.redirect_stdout(io.StringIO()):  # POT prints shapes
            return solver(a, b, cost, DENSE, **options)

    return call
