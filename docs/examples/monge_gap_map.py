"""Fit maps between two clouds of points, with and without a wish to move little.

    python docs/examples/monge_gap_map.py [--source 3 --target 8] [--out PLOT.png]

The clouds are two classes of scikit-learn's digits, on the first two principal components. A
small network T is fitted such that T(x) is distributed as y: the loss is a Sinkhorn divergence.
Many maps do that, and which one is found depends on the start. The Monge gap, what T moves its
points at beyond the least cost of moving them to the same places, chooses the shortest
(Uscidda and Cuturi, ICML 2023). All networks train at once: the losses are a batch.
"""

from __future__ import annotations

import argparse
import time

import matplotlib
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch.func import functional_call, stack_module_state, vmap

from curvkern import ot

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EPS = 0.1  # of both losses; a component has a variance of about 1
EXACT = 2e-3  # stands for no regularisation in what is reported


def clouds(source: int, target: int, generator: torch.Generator):
    """Training and held-out points of both classes, (n, 2) each."""
    images, labels = load_digits(return_X_y=True)
    points = torch.tensor(PCA(2).fit_transform(images), dtype=torch.float32)
    points /= points.std()
    halves = []
    for label in (source, target):
        cloud = points[torch.from_numpy(labels == label)]
        cloud = cloud[torch.randperm(len(cloud), generator=generator)]
        halves.append((cloud[: len(cloud) * 3 // 5], cloud[len(cloud) * 3 // 5 :]))
    (x, x_new), (y, y_new) = halves
    return x, y, x_new, y_new


def network() -> torch.nn.Module:
    """From the plane to the plane, smooth."""
    return torch.nn.Sequential(
        torch.nn.Linear(2, 64),
        torch.nn.SiLU(),
        torch.nn.Linear(64, 64),
        torch.nn.SiLU(),
        torch.nn.Linear(64, 2),
    )


class Maps:
    """Networks that start alike, one for each weight of the gap, and so for several starts."""

    def __init__(self, strengths: list[float], starts: int, seed: int) -> None:
        torch.manual_seed(seed)
        networks = [network() for _ in range(starts)]
        self.one = networks[0]
        self.strength = torch.tensor(strengths).repeat_interleave(starts)
        self.parameters = stack_module_state(networks * len(strengths))[0]
        self.history: list[list[float]] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Where each network takes the points, (B, n, 2)."""
        return vmap(lambda p: functional_call(self.one, p, (x,)))(self.parameters)

    def fit(self, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
        optimiser = torch.optim.Adam(self.parameters.values(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        x, y = (cloud.expand(len(self.strength), *cloud.shape) for cloud in (x, y))
        for _ in range(steps):
            moved = self(x[0])
            fit = ot.sinkhorn_divergence(moved, y, EPS, tol=1e-3)
            gap = ot.monge_gap(x, moved, EPS, tol=1e-3)
            optimiser.zero_grad()
            (fit + self.strength * gap).sum().backward()
            optimiser.step()
            schedule.step()
            self.history.append(fit.tolist())


def least_cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of moving one cloud to the other, for a batch of them."""
    return ot.sinkhorn_points(x, y, EXACT, tol=1e-4).cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=int, default=3, help="the digit to start from")
    parser.add_argument("--target", type=int, default=8, help="the digit to go to")
    parser.add_argument("--strength", type=float, default=0.5, help="weight of the Monge gap")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", default="monge_gap_map.png")
    args = parser.parse_args()
    x, y, x_new, y_new = clouds(
        args.source, args.target, torch.Generator().manual_seed(args.seed)
    )
    maps = Maps([0.0, args.strength], args.starts, args.seed)
    began = time.perf_counter()
    maps.fit(x, y, args.steps)
    print(
        f"{len(maps.strength)} maps of {len(x)} digits {args.source} to {len(y)} digits "
        f"{args.target}, {args.steps} steps: {time.perf_counter() - began:.1f} s\n"
    )

    with torch.no_grad():
        moved = maps(x_new)
        batch = x_new.expand_as(moved), y_new.expand(len(moved), *y_new.shape)
        fit = ot.sinkhorn_divergence(moved, batch[1], EPS, tol=1e-3)
        cost = (moved - x_new).square().sum(2).mean(1)
        excess = cost - least_cost(batch[0], moved)
    print("on held-out points")
    print(f"{'':14}{'start':>6}{'divergence':>12}{'cost of the map':>17}{'excess cost':>13}")
    for k, strength in enumerate(maps.strength):
        print(
            f"gap times {float(strength):<4g}{k % args.starts:6}{float(fit[k]):12.4f}"
            f"{float(cost[k]):17.3f}{float(excess[k]):13.3f}"
        )
    floor = ot.sinkhorn_divergence(y, y_new, EPS, tol=1e-3)
    print(
        f"\nthe divergence of the target's training points is {float(floor):.4f}\nleast cost "
        f"to the target: {float(least_cost(x, y)):.3f} for training points, "
        f"{float(least_cost(x_new, y_new)):.3f} for held-out ones"
    )
    plot(maps, x_new, y_new, moved, excess, args)
    print(f"saved {args.out}")


def plot(maps, x, y, moved, excess, args) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    worst = int(excess[: args.starts].argmax())  # the start that needs the gap most
    for axis, k in zip(axes, (worst, worst + args.starts), strict=False):
        axis.scatter(*y.T, s=12, color="tab:orange", label=f"digits {args.target}")
        axis.scatter(*x.T, s=12, color="tab:blue", label=f"digits {args.source}")
        axis.quiver(
            *x.T, *(moved[k] - x).T, angles="xy", scale_units="xy", scale=1, width=2.5e-3,
            color="0.3",
        )  # fmt: skip
        strength = float(maps.strength[k])
        axis.set_title(f"gap times {strength:g}, start {worst}: excess cost {excess[k]:.3f}")
        axis.set_aspect("equal")
        axis.legend(fontsize=8)
    for k, history in enumerate(zip(*maps.history, strict=True)):
        colour = "tab:red" if maps.strength[k] == 0 else "tab:green"
        name = f"gap times {float(maps.strength[k]):g}" if k % args.starts == 0 else None
        axes[2].semilogy(history, color=colour, label=name)
    axes[2].set(xlabel="step", ylabel="Sinkhorn divergence", title="fit of the training points")
    axes[2].legend()
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
