"""Train two small networks with M-FAC, SGD and AdamW: loss by step and by second.

    python docs/examples/mfac_training.py [--steps 200] [--window 64] [--out PLOT.png]

A convolutional network and a transformer that reads the rows of an image one by one learn
scikit-learn's digits. Each optimizer has three learning rates, a factor of three apart, of
which the one with the lowest last loss is shown. All see the same batches, and start from the
same weights. M-FAC's rates are in units of its damping: where gradients of the window do not
reach, it is gradient descent with that rate.
"""

from __future__ import annotations

import argparse

import matplotlib
import torch
from shared.digits import SMOOTH, descend, race

from curvkern.optim import MFAC

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DAMPING = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--out", default="mfac_training.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # more do not help networks as small as these

    def mfac(params, lr):
        return MFAC(params, lr * DAMPING, damping=DAMPING, window=args.window, warmup=10)

    optimizers = {
        "SGD": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), descend, (0.03, 0.1, 0.3)),
        "AdamW": (lambda p, lr: torch.optim.AdamW(p, lr), descend, (1e-3, 3e-3, 1e-2)),
        "M-FAC": (mfac, descend, (0.03, 0.1, 0.3)),
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    race(optimizers, args.steps, 0.1, axes)
    print(f"rate of M-FAC: lr over the damping; loss: mean of the last {SMOOTH} steps")
    figure.savefig(args.out, dpi=80)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
