"""Train two small networks with AdaHessian, OASIS and SophiaH, beside AdamW and SGD.

    python docs/examples/adahessian_training.py [--steps 120] [--out PLOT.png]

The networks, batches and rules are those of mfac_training.py: a convolutional network and a
transformer learn scikit-learn's digits, each optimizer at the best of its rates. AdaHessian
and OASIS take one product with the Hessian a step, three to four times the time of a gradient;
SophiaH one in ten steps.
"""

from __future__ import annotations

import argparse

import matplotlib
import torch
from shared.digits import SMOOTH, descend, race
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvkern.optim import OASIS, AdaHessian, SophiaH

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def curve(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """A step of what differentiates the loss itself, twice."""
    optimizer.step(loss=loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", default="adahessian_training.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # more do not help networks as small as these
    optimizers = {
        "SGD": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), descend, (0.03, 0.1)),
        "AdamW": (lambda p, lr: torch.optim.AdamW(p, lr), descend, (3e-3, 1e-2)),
        "AdaHessian": (lambda p, lr: AdaHessian(p, lr), curve, (0.05, 0.15)),
        "OASIS": (lambda p, lr: OASIS(p, lr, alpha=0.1, adaptive=False), curve, (0.03, 0.1)),
        "SophiaH": (lambda p, lr: SophiaH(p, lr, update_every=10), curve, (3e-3, 1e-2)),
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    # The quicker kernels for attention on the CPU have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        race(optimizers, args.steps, 0.2, axes)
    print(f"loss: mean of the last {SMOOTH} steps")
    figure.savefig(args.out, dpi=80)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
