"""Train a few parameters of a network: those of the largest Fisher information.

    python docs/examples/fish_mask_digits.py [--starts 3] [--out PLOT.png]

A network that knows the digits 0 to 4 of scikit-learn's learns all ten. Only a share of its
parameters may change: those that curvature.fish_mask chooses by the Fisher information of the
new task, as many at random, or all of them.
"""

from __future__ import annotations

import argparse
import time

import matplotlib
import torch
from merge_digits import accuracy, trained
from shared.digits import Data, convolutions
from torch.nn import functional as F

from curvkern.curvature import fish_mask, fisher_diagonal

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHARES = (0.005, 0.01, 0.02, 0.05)


def with_mask(state, mask, x, y, steps: int):
    """Trained from a state, where the mask is true."""
    torch.manual_seed(1)
    model = convolutions()
    model.load_state_dict(state)
    for p, part in zip(model.parameters(), mask, strict=True):
        p.register_hook(lambda g, part=part: g * part)
    return trained(model, x, y, steps, 3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="fish_mask_digits.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are small
    began = time.perf_counter()
    data = Data()
    low = data.y < 5
    found = torch.zeros(3, len(SHARES))
    for seed in range(args.starts):
        torch.manual_seed(seed)
        model = trained(convolutions(), data.x[low], data.y[low], 150)
        params, state = list(model.parameters()), model.state_dict()
        information = fisher_diagonal(
            lambda i, m=model: F.cross_entropy(m(data.x[i]), data.y[i], reduction="none"),
            params, torch.arange(256).split(64),
        )  # fmt: skip
        everything = [torch.ones_like(p, dtype=torch.bool) for p in params]
        best = accuracy(with_mask(state, everything, data.x, data.y, args.steps), *data.test)
        for i, share in enumerate(SHARES):
            drawn = fish_mask([torch.rand_like(p) for p in params], share)
            for row, mask in enumerate((fish_mask(information, share), drawn)):
                masked = with_mask(state, mask, data.x, data.y, args.steps)
                found[row, i] += accuracy(masked, *data.test) / args.starts
        found[2] += best / args.starts
    count = sum(p.numel() for p in params)
    print(f"test accuracy on ten digits, {count} parameters, mean of {args.starts} starts\n")
    names = ("largest Fisher", "at random", "all parameters")
    print(f"{'trained':16}" + "".join(f"{share:>9.1%}" for share in SHARES))
    for name, row in zip(names, found, strict=True):
        print(f"{name:16}" + "".join(f"{float(value):9.3f}" for value in row))
        plt.semilogx(SHARES, row, marker="o", label=name)
    plt.xlabel("share of the parameters that are trained")
    plt.ylabel("test accuracy")
    plt.legend()
    plt.tight_layout()
    plt.savefig(args.out, dpi=80)
    print(f"\nsaved {args.out} after {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
