"""Benchmark cases of M-FAC for a given set of gradients: its factor and the diagonal of F^-1.

Both together, as a pruning step takes them. The yardstick is reading the gradients twice, once
for the Gram matrix and once for the diagonal, as two sums by torch. Beside it stand the same
algebra as three products in torch, at float32 (wrong at a small damping) and at float64 (as
accurate as ours); the published recursion; and for blocks the rank-1 updates of their inverses
as oBERT makes them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvkern._bench.case import OURS, Bar, Case, Contestants
from curvkern.fisher import StaticFisher
from curvkern.reference.mfac import StaticRecursion

READS = "two reads"
PRODUCTS, WIDE = "torch products", "torch products, float64"
RECURSION = "recursion"
UPDATES = "rank-1 updates"
DAMPING = 1e-2
BLOCK = 50


def cases() -> list[Case]:
    """The diagonal for few and for many gradients, whole and in blocks."""
    bars = (Bar(RECURSION, faster=7), Bar(PRODUCTS, faster=1.2))
    whole = [_whole(m, d, bars) for m, d in ((32, 10**6), (128, 10**6), (512, 10**5))]
    return [*whole, _blocks(128, 10**5)]


def gradients(m: int, d: int) -> Tensor:
    """Rows of normal numbers."""
    return torch.randn(m, d, generator=torch.Generator().manual_seed(0))


def products(G: Tensor) -> Tensor:
    """The diagonal by three matrix products."""
    K = G @ G.T
    K.diagonal().add_(len(G) * DAMPING)
    W = torch.linalg.solve_triangular(torch.linalg.cholesky(K), G, upper=False)
    return (1 - W.square_().sum(0)) / DAMPING


def block_recursion(G: Tensor) -> Tensor:
    """The recursion of StaticRecursion for each block of columns."""
    m = len(G)
    rows = G.view(m, -1, BLOCK)
    V = torch.empty_like(rows)
    denominator = torch.empty(rows.shape[:2])
    diagonal = torch.full_like(rows[0], 1 / DAMPING)
    for i, g in enumerate(rows):
        shares = (V[:i] * g).sum(-1) / denominator[:i]
        V[i] = g / DAMPING - torch.einsum("kb,kbj->bj", shares, V[:i])
        denominator[i] = m + (V[i] * g).sum(-1)
        diagonal -= V[i].square() / denominator[i][:, None]
    return diagonal.flatten()


def block_updates(G: Tensor) -> Tensor:
    """One Sherman-Morrison update of all blocks of F^-1 a gradient."""
    m = len(G)
    inverse = (torch.eye(BLOCK) / DAMPING).repeat(G.shape[1] // BLOCK, 1, 1)
    for g in G:
        right = g.view(-1, BLOCK, 1)
        product = inverse @ right
        inverse.baddbmm_(product / (m + right.mT @ product), product.mT, alpha=-1)
    return inverse.diagonal(dim1=1, dim2=2).flatten()


def _case(
    m: int, d: int, setup: Callable[[int], Contestants], mode: str, bars: tuple[Bar, ...]
) -> Case:
    is_whole = mode == "whole"
    return Case(
        family="mfac_static",
        op="diag_inverse",
        region=f"m={m} d={d:g}",
        mode=mode,
        dtype="float32",
        where=f"{m} gradients of length {d}" + ("" if is_whole else f", blocks of {BLOCK}"),
        setup=setup,
        yardstick=READS,
        bytes=2 * 4,
        # Half of K and half of a triangular product; half of each block's system.
        flops=2 * m if is_whole else BLOCK,
        bars=bars,
        elements=m * d,
        memory=is_whole,
        note="sums in float64; with many gradients arithmetic binds, half that of float32",
    )


def _whole(m: int, d: int, bars: tuple[Bar, ...]) -> Case:
    def setup(n: int) -> Contestants:
        G = gradients(m, n // m)
        return {
            OURS: lambda: StaticFisher.from_gradients(G, DAMPING).diag_inverse(),
            READS: lambda: (G.sum(), G.sum()),
            PRODUCTS: lambda: products(G),
            WIDE: lambda: products(G.double()),
            RECURSION: lambda: StaticRecursion(G, DAMPING).diag_inverse(),
        }

    return _case(m, d, setup, "whole", bars)


def _blocks(m: int, d: int) -> Case:
    def setup(n: int) -> Contestants:
        G = gradients(m, n // m // BLOCK * BLOCK)
        make = StaticFisher.from_gradients
        return {
            OURS: lambda: make(G, DAMPING, block_size=BLOCK).diag_inverse(),
            READS: lambda: (G.sum(), G.sum()),
            RECURSION: lambda: block_recursion(G),
            UPDATES: lambda: block_updates(G),
        }

    bars = (Bar(RECURSION, faster=20), Bar(UPDATES, faster=5))
    return _case(m, d, setup, f"blocks of {BLOCK}", bars)
