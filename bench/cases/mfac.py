"""Benchmark cases of M-FAC: steps of a window of gradients, products, the slide of its factor.

The yardstick of a step is what no exact one can do without: reading the window twice, as two
sums of it by torch. Beside it stand the same algebra in plain torch at the window's own
precision, which loses its digits at a small damping, and the published recursion.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from curvkern._bench.case import OURS, Bar, Case, Contestants
from curvkern.fisher import SlidingWindowFisher
from curvkern.reference.mfac import DynamicRecursion

FLOOR = "two reads"
GRAM = "torch Gram"
RECURSION = "recursion"
REFACTOR = "torch.linalg.cholesky"
DAMPING = 1e-3
SIZES = {"large": (128, 10**6), "small": (32, 10**5)}
BYTES = {"float32": 4, "bfloat16": 2}


def cases() -> list[Case]:
    """Steps with either vector, several right-hand sides, and a slide."""
    return [
        _step("large", "float32", "newest", (Bar(FLOOR, slower=1.25), Bar(GRAM, slower=1.15))),
        _step("large", "bfloat16", "newest", (Bar(FLOOR, slower=0.75),)),
        _step("large", "float32", "v", (Bar(FLOOR, slower=1.25),)),
        _step("small", "float32", "newest", (Bar(GRAM, faster=1.4), Bar(RECURSION, faster=3))),
        _many(32),
        _slide(1024, 10**4),
    ]


class TorchGram:
    """The window, its Gram matrix and a solve in plain float32 torch."""

    def __init__(self, G: Tensor) -> None:
        self.G, self.slot, self.m = G.clone(), 0, len(G)
        self.K = G @ G.T

    def step(self, g: Tensor, v: Tensor | None = None) -> Tensor:
        self.G[self.slot] = g
        right = (
            (self.G @ g)[:, None] if v is None else (torch.stack([g, v]) @ self.G.T).T
        )  # the better form of each
        self.K[self.slot] = self.K[:, self.slot] = right[:, 0]
        system = self.K + self.m * DAMPING * torch.eye(self.m)
        c = torch.linalg.solve(system, right[:, -1])
        self.slot = (self.slot + 1) % self.m
        return ((g if v is None else v) - c @ self.G) / DAMPING


def gradients(m: int, d: int) -> tuple[Tensor, Iterator[Tensor]]:
    """A window's worth of rows, and an endless stream of others."""
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(m, d, generator=generator)
    return G, itertools.cycle(torch.randn(4, d, generator=generator))


def _window(G: Tensor, dtype: str = "float32") -> SlidingWindowFisher:
    m, d = G.shape
    fisher = SlidingWindowFisher(d, m, DAMPING, dtype=getattr(torch, dtype))
    for g in G:
        fisher.push(g)
    return fisher


def _two_reads(G: Tensor) -> Callable[[], object]:
    return lambda: (G.sum(), G.sum())


def _step(size: str, dtype: str, vector: str, bars: tuple[Bar, ...]) -> Case:
    m, d = SIZES[size]

    def setup(n: int) -> Contestants:
        G, stream = gradients(m, n // m)
        v = torch.randn(n // m, generator=torch.Generator().manual_seed(1))
        right = v if vector == "v" else None
        fisher, plain = _window(G, dtype), TorchGram(G)
        calls: dict[str, Callable[[], object]] = {
            OURS: lambda: fisher.push_ihvp(next(stream), right),
            FLOOR: _two_reads(G),
            GRAM: lambda: plain.step(next(stream), right),
        }
        if size == "small":
            published = DynamicRecursion(G, DAMPING)

            def recursion() -> Tensor:
                g = next(stream)
                published.push(g)
                return published.ihvp(g)

            calls[RECURSION] = recursion
        return calls

    return Case(
        family="mfac",
        op="push_ihvp",
        region=f"m={m} d={d:g}",
        mode=vector,
        dtype=dtype,
        where=f"a window of {m} gradients of length {d}, sums in float64",
        setup=setup,
        yardstick=FLOOR,
        bytes=2 * BYTES[dtype],
        flops=4 if vector == "newest" else 6,
        bars=bars,
        elements=m * d,
        note="the two reads are always those of a float32 window",
    )


def _many(k: int) -> Case:
    m, d = SIZES["large"]

    def setup(n: int) -> Contestants:
        G, _ = gradients(m, n // m)
        V = torch.randn(k, n // m, generator=torch.Generator().manual_seed(1))
        fisher = _window(G)
        return {
            OURS: lambda: fisher.ihvp(V),
            FLOOR: _two_reads(G),
            "one at a time": lambda: [fisher.ihvp(v) for v in V],
        }

    return Case(
        family="mfac",
        op="ihvp",
        region=f"m={m} d={d:g}",
        mode=f"{k} vectors",
        dtype="float32",
        where=f"a window of {m} gradients of length {d}",
        setup=setup,
        yardstick=FLOOR,
        bytes=2 * 4,
        flops=4 * k,
        bars=(Bar("one at a time", slower=0.12),),
        elements=m * d,
    )


def _slide(m: int, d: int) -> Case:
    def setup(n: int) -> Contestants:
        G, _ = gradients(m, n // m)
        fisher = _window(G)
        fisher.ihvp(G[0])
        factor, K = fisher._factor, fisher.gram()
        system = K + m * DAMPING * torch.eye(m, dtype=torch.float64)
        column = K[-1].clone()

        def slide() -> Tensor:
            factor.slide(column, m * DAMPING, True)
            return column

        return {
            OURS: slide,
            FLOOR: _two_reads(G),
            REFACTOR: lambda: torch.linalg.cholesky(system),
        }

    return Case(
        family="mfac",
        op="slide",
        region=f"m={m} d={d:g}",
        mode="factor",
        dtype="float64",
        where=f"the factor of {m} x {m} when a row leaves and one comes",
        setup=setup,
        yardstick=FLOOR,
        bytes=2 * 8 * m / (2 * d),  # half of the factor is read and written
        flops=4 * m / d,
        bars=(Bar(REFACTOR, faster=4),),
        elements=m * d,
    )
