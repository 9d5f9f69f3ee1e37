"""Blend four handwritten digits by transport barycenters in place of averages.

    python docs/examples/digit_barycenters.py [--digits 0 1 7 9] [--out PLOT.png]

Images are histograms of ink on the grid of pixels. Their weighted average shows all four at
once, faintly; the Wasserstein barycenter moves ink in place of fading it. The weights go from
corner to corner of a square, and all barycenters of the square are one batch. They are
debiased: at a corner the barycenter is the digit itself, without the blur that entropy brings.
"""

from __future__ import annotations

import argparse
import time

import matplotlib
import torch
from sklearn.datasets import load_digits

from curvkern import ot

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIDE = 8  # pixels


def histograms(digits: list[int], seed: int) -> torch.Tensor:
    """One image of each digit as ink that sums to 1, shape (4, 64)."""
    images, labels = (torch.from_numpy(t) for t in load_digits(return_X_y=True))
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for digit in digits:
        candidates = images[labels == digit]
        chosen.append(candidates[torch.randint(len(candidates), (), generator=generator)])
    ink = torch.stack(chosen)
    return ink / ink.sum(1, keepdim=True)


def pixel_centres() -> torch.Tensor:
    """Their places in the unit square, (64, 2)."""
    places = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE
    return torch.cartesian_prod(places, places)


def bilinear(steps: int) -> torch.Tensor:
    """Weights of the four corners at the points of a square grid, (steps^2, 4)."""
    along = torch.linspace(0, 1, steps, dtype=torch.float64)
    edge = torch.stack([1 - along, along], 1)
    return (edge[:, None, :, None] * edge[None, :, None, :]).reshape(-1, 4)


def distance(blends: torch.Tensor, digits: torch.Tensor, weights, eps: float) -> torch.Tensor:
    """sum_k w_k S(blend, digit_k), which the debiased barycenter minimises; one per blend."""
    pixels = pixel_centres()
    terms = [
        ot.sinkhorn_divergence(
            pixels, pixels, eps, a=blends, b=digit.expand_as(blends), tol=1e-3
        )
        for digit in digits
    ]
    return (weights * torch.stack(terms, 1)).sum(1)


def inked_pixels(blends: torch.Tensor) -> torch.Tensor:
    """exp(entropy): over how many pixels the ink is spread."""
    return torch.special.entr(blends.clamp_min(0)).sum(1).exp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--digits", type=int, nargs=4, default=[0, 1, 7, 9])
    parser.add_argument("--steps", type=int, default=5, help="blends along an edge")
    parser.add_argument("--eps", type=float, default=0.01, help="the side squared is 1")
    parser.add_argument("--seed", type=int, default=0, help="chooses the images")
    parser.add_argument("--out", default="digit_barycenters.png")
    args = parser.parse_args()
    digits, weights = histograms(args.digits, args.seed), bilinear(args.steps)
    costs = torch.cdist(pixel_centres(), pixel_centres()) ** 2

    grids, seconds = {"average": weights @ digits}, {"average": 0.0}
    for name, debiased in (("barycenter", False), ("debiased barycenter", True)):
        began = time.perf_counter()
        grids[name] = ot.barycenter(
            digits.expand(len(weights), -1, -1), costs, args.eps,
            weights=weights, debiased=debiased, tol=1e-3,
        )  # fmt: skip
        seconds[name] = time.perf_counter() - began
        grids[name] /= grids[name].sum(1, keepdim=True)  # the mass is right within tol only

    corners = [0, args.steps - 1, args.steps * (args.steps - 1), args.steps**2 - 1]
    inner = (weights > 0).all(1)
    print(f"{len(weights)} blends of digits {args.digits}, {int(inner.sum())} of all four")
    print(f"{'':22}{'distance':>10}{'inked pixels':>14}{'corners off by':>16}{'seconds':>9}")
    for name, blends in grids.items():
        far = 1e3 * distance(blends, digits, weights, args.eps)[inner].mean()
        spread = inked_pixels(blends)[inner].mean()
        off = (blends[corners] - digits).abs().sum(1).max()
        print(f"{name:22}{far:10.3f}{spread:14.1f}{off:16.4f}{seconds[name]:9.2f}")
    print(
        "distance: weighted sum of Sinkhorn divergences to the digits, x 1e3, mean over the "
        f"blends of all four;\ninked pixels: exp(entropy), for the digits themselves "
        f"{float(inked_pixels(digits).mean()):.1f}; corners: L1 distance from the digits"
    )
    plot(grids, args.steps, args.out)
    print(f"saved {args.out}")


def plot(grids, steps: int, path: str) -> None:
    figure = plt.figure(figsize=(11, 4), layout="constrained")
    for part, (name, blends) in zip(
        figure.subfigures(1, len(grids)), grids.items(), strict=True
    ):
        part.suptitle(name)
        for axis, blend in zip(part.subplots(steps, steps).flat, blends, strict=True):
            axis.imshow(blend.reshape(SIDE, SIDE), cmap="gray_r", interpolation="bilinear")
            axis.axis("off")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
