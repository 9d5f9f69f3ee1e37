"""Merge two networks that each know half of the digits, and make one forget a digit.

    python docs/examples/merge_digits.py [--starts 3] [--out PLOT.png]

A network that has seen a few of scikit-learn's digits is trained on, once on 0 to 4 and once on
5 to 9. curvature.merge_fisher averages the two by what matters to each, beside the plain
average of their parameters; the share of the second is moved from 0 to 1. Then
curvature.synaptic_dampening_ makes a network that was trained on all digits forget one of them.
"""

from __future__ import annotations

import argparse
import copy
import time

import matplotlib
import torch
from shared.digits import Data, convolutions
from torch.nn import functional as F

from curvkern.curvature import fisher_diagonal, merge_fisher, synaptic_dampening_

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHARES = [i / 10 for i in range(11)]


def trained(model, x, y, steps: int, lr: float = 1e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model


def fisher(model, x):
    """Of labels that are drawn from the model."""
    generator = torch.Generator().manual_seed(0)
    params = list(model.parameters())
    return fisher_diagonal(model, params, x.split(64), mode="sampled", generator=generator)


def with_parameters(model, values):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(value)
    return model


@torch.no_grad()
def accuracy(model, x, y) -> float:
    return float((model(x).argmax(1) == y).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--forget", type=int, default=7)
    parser.add_argument("--out", default="merge_digits.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are small
    began = time.perf_counter()
    data = Data()
    x, y = data.x, data.y
    test_x, test_y = data.test
    low = y < 5
    curves = {"Fisher": torch.zeros(len(SHARES)), "plain": torch.zeros(len(SHARES))}
    forgotten = torch.zeros(2, 2)
    for seed in range(args.starts):
        torch.manual_seed(seed)
        start = trained(convolutions(), x[:100], y[:100], 60)
        halves = [trained(copy.deepcopy(start), x[h], y[h], args.steps) for h in (low, ~low)]
        fishers = [fisher(m, x[h][:256]) for m, h in zip(halves, (low, ~low), strict=True)]
        ones = [[torch.ones_like(f) for f in one] for one in fishers]
        for name, weight in (("Fisher", fishers), ("plain", ones)):
            for i, share in enumerate(SHARES):
                merged = merge_fisher(halves, weight, [1 - share, share])
                model = with_parameters(start, merged)
                curves[name][i] += accuracy(model, test_x, test_y) / args.starts
        whole = trained(copy.deepcopy(start), x, y, 300)
        gone, kept = test_y == args.forget, test_y != args.forget
        for row in range(2):
            if row:
                every = fisher(whole, x[:512])
                synaptic_dampening_(
                    whole, every, fisher(whole, x[y == args.forget][:64]), 2.0, 0.5
                )
            for column, part in enumerate((gone, kept)):
                forgotten[row, column] += accuracy(whole, test_x[part], test_y[part])
    forgotten /= args.starts
    print(f"accuracy on the test digits, mean of {args.starts} starts\n")
    print(f"{'share of the second':22}{'Fisher':>9}{'plain':>9}")
    for i, share in enumerate(SHARES):
        print(f"{share:<22.1f}{curves['Fisher'][i]:9.3f}{curves['plain'][i]:9.3f}")
    print(f"\n{'':22}{args.forget:>9}{'others':>9}")
    for row, name in enumerate(("trained on all", "after dampening")):
        print(f"{name:22}{forgotten[row, 0]:9.3f}{forgotten[row, 1]:9.3f}")
    for name, curve in curves.items():
        plt.plot(SHARES, curve, label=f"{name} average")
    plt.xlabel("share of the network that was trained on 5 to 9")
    plt.ylabel("test accuracy on all digits")
    plt.legend()
    plt.tight_layout()
    plt.savefig(args.out, dpi=80)
    print(f"\nsaved {args.out} after {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
