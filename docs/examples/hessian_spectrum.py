"""The Hessian of a convolutional network, before and after it has learned the digits.

    python docs/examples/hessian_spectrum.py [--steps 150] [--probes 3] [--out PLOT.png]

Its spectral density by stochastic Lanczos quadrature, its trace with a 95 % interval, and its
five outermost eigenpairs, from products with the Hessian of the loss on 256 digits. A network
of 133 parameters, whose Hessian can be written out, shows what these estimates are worth.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import matplotlib
import torch
from shared.digits import Data, convolutions
from torch.nn import functional as F

from curvkern.curvature import hessian_trace, spectral_density, top_eigenpairs

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def trace(loss, params, generator) -> tuple[float, float]:
    """The trace and half the width of its 95 % interval."""
    value, variance = hessian_trace(
        loss, params, 20, method="xtrace", return_variance=True, generator=generator
    )
    return float(value), 1.96 * float(variance) ** 0.5


def check() -> None:
    """A network of two layers with smooth units against its Hessian, entry by entry."""
    torch.manual_seed(0)
    x, sizes = torch.randn(256, 6, dtype=torch.float64), (6, 9, 7)
    target = x[:, :1].sin().expand(-1, 7) * torch.arange(7)
    flat = 0.5 * torch.randn(sum((a + 1) * b for a, b in pairwise(sizes)), dtype=torch.float64)
    flat.requires_grad_()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        y, start = x, 0
        for a, b in pairwise(sizes):
            W, start = flat[start : start + a * b].view(a, b), start + a * b
            y, start = torch.tanh(y @ W + flat[start : start + b]), start + b
        return (y - target).square().mean()

    H = torch.autograd.functional.hessian(loss, flat.detach())
    exact = torch.linalg.eigvalsh(H)
    generator = torch.Generator().manual_seed(0)
    found, half = trace(loss(flat), flat, generator)
    top = top_eigenpairs(loss(flat), flat, 5, generator=generator)
    wanted = exact[exact.abs().argsort(descending=True)[:5]]
    print(f"{len(flat)} parameters, all products exact:")
    print(f"  trace {found:.4f} +- {half:.4f}, exact {float(exact.sum()):.4f}")
    print(f"  five eigenvalues off by at most {float((top.values - wanted).abs().max()):.1e}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--probes", type=int, default=3)
    parser.add_argument("--out", default="hessian_spectrum.png")
    args = parser.parse_args()
    check()
    torch.manual_seed(0)
    data, model = Data(), convolutions()
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, 3e-3)
    x, y = data.x[:256], data.y[:256]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axis, when in zip(axes, ("before training", "after training"), strict=True):
        loss = F.cross_entropy(model(x), y)
        generator = torch.Generator().manual_seed(1)
        density = spectral_density(loss, params, args.probes, steps=40, generator=generator)
        value, half = trace(loss, params, generator)
        top = top_eigenpairs(loss, params, 5, tol=1e-3, generator=generator)
        negative = (density.weights * (density.nodes < 0)).sum(1).mean()
        print(f"{when}: loss {float(loss.detach()):.4f}")
        print(f"  trace {value:.1f} +- {half:.1f}, mass below zero {float(negative):.2f}")
        print("  eigenvalues", "  ".join(f"{float(v):.2f}" for v in top.values))
        axis.semilogy(density.grid, density.density.clamp_min(1e-6))
        axis.plot(top.values, torch.full_like(top.values, 2e-6), "v", label="outermost five")
        axis.set(xlabel="eigenvalue", title=when)
        axis.legend()
        for _ in range(args.steps if axis is axes[0] else 0):
            batch = torch.randint(len(data.x), (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(data.x[batch]), data.y[batch]).backward()
            optimizer.step()
    axes[0].set(ylabel="density")
    figure.savefig(args.out, dpi=80)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
