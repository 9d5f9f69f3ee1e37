"""Find wrong labels by the influence of training examples.

    python docs/examples/mislabelled_digits.py [--wrong 0.1] [--out PLOT.png]

A tenth of the training labels of scikit-learn's digits is replaced by wrong ones, and a
network learns them. Two scores put the examples in the order in which someone should look at
them: what an example does for its own loss, the more the less others support it; and what
fisher.influence says that it does for the loss of a small clean set, where wrong labels do
harm. Beside them stand the loss of the example and the norm of its gradient.
"""

from __future__ import annotations

import argparse
import time

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from curvkern.fisher import StaticFisher, influence

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def split(wrong: float, seed: int):
    """Training digits, their labels, which of these are wrong, and a clean set."""
    images, labels = (torch.from_numpy(t) for t in load_digits(return_X_y=True))
    images = (images.float() - 4.9) / 6  # about the mean and deviation of a pixel
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    train, clean = order[:1200], order[1200:1400]
    y = labels[train].clone()
    changed = torch.randperm(len(y), generator=generator)[: round(wrong * len(y))]
    y[changed] = (y[changed] + torch.randint(1, 10, (len(changed),), generator=generator)) % 10
    is_wrong = torch.zeros(len(y), dtype=torch.bool)
    is_wrong[changed] = True
    return images[train], y, is_wrong, images[clean], labels[clean]


def trained(x: torch.Tensor, y: torch.Tensor, seed: int, epochs: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 24), torch.nn.Tanh(), torch.nn.Linear(24, 10)
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
    return model


def gradients(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the loss of each example, flattened, (n, d)."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, x, y):
        return F.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    each = vmap(grad(loss), (None, 0, 0))(weights, x, y)
    return torch.cat([g.flatten(1) for g in each.values()], 1)


def scores(model, x, y, x_clean, y_clean, damping: float) -> dict[str, torch.Tensor]:
    """The more suspicious the larger, (n,)."""
    G, clean = gradients(model, x, y), gradients(model, x_clean, y_clean)
    fisher = StaticFisher.from_gradients(G, damping)
    inverse = fisher.ihvp(G)
    with torch.no_grad():
        loss = F.cross_entropy(model(x), y, reduction="none")
    return {
        "influence on itself": (G * inverse).sum(1),
        "influence on clean digits": influence(clean, G, fisher).mean(0),
        "loss": loss,
        "norm of the gradient": G.norm(dim=1),
    }


def found(score: torch.Tensor, is_wrong: torch.Tensor) -> torch.Tensor:
    """The share of the wrong labels among the first k examples, for every k."""
    order = score.argsort(descending=True)
    return is_wrong[order].double().cumsum(0) / is_wrong.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wrong", type=float, default=0.1, help="share of wrong labels")
    parser.add_argument("--damping", type=float, default=1e-1)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--out", default="mislabelled_digits.png")
    args = parser.parse_args()
    began = time.perf_counter()
    curves: dict[str, list[torch.Tensor]] = {}
    for seed in range(args.starts):
        x, y, is_wrong, *clean = split(args.wrong, seed)
        model = trained(x, y, seed, args.epochs)
        for name, score in scores(model, x, y, *clean, args.damping).items():
            curves.setdefault(name, []).append(found(score, is_wrong))
    n = len(x)
    print(
        f"{args.wrong:.0%} of {n} labels are wrong; share of them that is found by looking at "
        f"the first examples, mean of {args.starts} starts\n"
    )
    looked = (args.wrong, 1.5 * args.wrong, 2 * args.wrong)
    print(f"{'looked at':28}" + "".join(f"{share:>8.0%}" for share in looked))
    for name, runs in curves.items():
        mean = torch.stack(runs).mean(0)
        row = "".join(f"{float(mean[round(share * n) - 1]):8.1%}" for share in looked)
        print(f"{name:28}{row}")
        plt.plot(torch.arange(1, n + 1) / n, mean, label=name)
    plt.plot([0, args.wrong, 1], [0, 1, 1], "k--", linewidth=0.8, label="best possible")
    plt.xlabel("share of the examples looked at")
    plt.ylabel("share of the wrong labels found")
    plt.xlim(0, 0.5)
    plt.legend()
    plt.tight_layout()
    plt.savefig(args.out, dpi=80)
    print(f"\nsaved {args.out} after {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
