"""Give each of two photographs the colours of the other, by transport between their pixels.

    python docs/examples/colour_transfer.py [--pixels 20000] [--out PLOT.png]

20 000 pixels of scikit-learn's temple and as many of its flower are two clouds of points in the
cube of colours. Entropic transport between them costs 4e8 squared distances a sweep, of which
none is kept. The sweeps start from the potentials of a small problem, whose points are the
means of the pixels in each cell of a grid. Each pixel then moves as far as the plan takes the
sampled ones that are closest to its colour, on average.
"""

from __future__ import annotations

import argparse
import resource
import time

import matplotlib
import torch
from scipy.spatial import cKDTree
from sklearn.datasets import load_sample_image

from curvkern import ot

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def load(name: str) -> torch.Tensor:
    """A picture of shape (height, width, 3), colours in [0, 1]."""
    return torch.tensor(load_sample_image(name) / 255, dtype=torch.float32)


def sample(picture: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Some of its pixels, (count, 3)."""
    pixels = picture.reshape(-1, 3)
    return pixels[torch.randperm(len(pixels), generator=generator)[:count]]


def cells(pixels: torch.Tensor, per_side: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean colour in each cell of a grid that holds a pixel, and the cells' weights."""
    cell, count = torch.unique(
        (pixels * per_side).floor(), dim=0, return_inverse=True, return_counts=True
    )[1:]
    means = torch.zeros(len(count), 3).index_add_(0, cell, pixels) / count[:, None]
    return means, count.double() / len(pixels)


def extended(x, y, g, b, eps: float) -> torch.Tensor:
    """f(x) = -eps log sum_j b_j exp((g_j - |x - y_j|^2) / eps), a potential at new points."""
    blocks = (torch.cdist(part, y) ** 2 for part in x.split(500))
    return torch.cat([-eps * ((g - C) / eps + b.log()).logsumexp(1) for C in blocks])


def transport(x: torch.Tensor, y: torch.Tensor, eps: float, tol: float) -> ot.OTResult:
    """Between pixels, from the potentials between cells."""
    (cx, a), (cy, b) = cells(x), cells(y)
    coarse = ot.sinkhorn_points(cx, cy, eps, a=a, b=b, tol=tol / 10)
    start = extended(x, cy, coarse.g, b, eps), extended(y, cx, coarse.f, a, eps)
    print(f"between {len(cx)} and {len(cy)} cells: {coarse}")
    return ot.sinkhorn_points(x, y, eps, init=start, tol=tol, check_every=2)


def recoloured(
    picture: torch.Tensor, x: torch.Tensor, moved: torch.Tensor, neighbours: int = 8
) -> torch.Tensor:
    """The picture, each pixel displaced as the sampled pixels closest in colour."""
    nearest = torch.from_numpy(cKDTree(x).query(picture.reshape(-1, 3), neighbours)[1])
    displacement = (moved - x)[nearest].mean(1)
    return (picture + displacement.reshape(picture.shape)).clamp(0, 1)


def rescaled(picture: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The picture with the mean and standard deviation that each channel has in the other."""
    (mean, std), (goal, scale) = ((p.mean((0, 1)), p.std((0, 1))) for p in (picture, other))
    return ((picture - mean) / std * scale + goal).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pixels", type=int, default=20_000, help="sampled of each picture")
    parser.add_argument("--eps", type=float, default=0.01, help="in squared colour distance")
    parser.add_argument("--tol", type=float, default=1e-3, help="goal for the marginal error")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="colour_transfer.png")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    temple, flower = load("china.jpg"), load("flower.jpg")
    x, y = (sample(picture, args.pixels, generator) for picture in (temple, flower))

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    result = transport(x, y, args.eps, args.tol)
    to_flower = result.apply(y) * len(x)  # the mean of where the plan takes each pixel
    to_temple = result.apply(x, transpose=True) * len(y)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak

    print(f"between {len(x)} and {len(y)} pixels: {result}")
    print(
        f"{seconds:.1f} s in all; memory grew by {peak / 1024:.0f} MB, the matrix of costs "
        f"would be {8e-6 * len(x) * len(y):.0f} MB in float64\n"
    )
    rows = {}
    for name, picture, other, points, moved in (
        ("temple", temple, flower, x, to_flower),
        ("flower", flower, temple, y, to_temple),
    ):
        rows[name] = {
            "as it is": picture,
            "means and deviations": rescaled(picture, other),
            "transport": recoloured(picture, points, moved),
        }
    report(rows, {"temple": flower, "flower": temple}, args.seed)
    plot(rows, args.out)
    print(f"\nsaved {args.out}")


def report(rows, goals, seed: int, count: int = 500) -> None:
    """How far fresh pixels are from those to be imitated, and these among themselves."""
    print(f"{'Sinkhorn divergence from the other, x 1e3':42}", end="")
    print("".join(f"{title:>22}" for title in [*rows["temple"], "the other itself"]))
    for name, versions in rows.items():
        generator = torch.Generator().manual_seed(seed + 1)
        goal = sample(goals[name], count, generator)
        distances = [
            ot.sinkhorn_divergence(sample(picture, count, generator), goal, 0.01, tol=1e-2)
            for picture in (*versions.values(), goals[name])
        ]
        print(f"{name:42}" + "".join(f"{1e3 * float(d):22.1f}" for d in distances))


def plot(rows, path: str) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(10, 4.8), layout="constrained")
    for line, (name, versions) in zip(axes, rows.items(), strict=True):
        for axis, (title, picture) in zip(line, versions.items(), strict=True):
            axis.imshow(picture)
            axis.set_title(f"{name}: {title}", fontsize=9)
            axis.axis("off")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
