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
import time

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from curvkern.optim import MFAC

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH = 64
DAMPING = 0.03
SMOOTH = 20  # steps that a reported loss is the mean of


def convolutions() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8)),
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 10),
    )


class Transformer(torch.nn.Module):
    """Two layers of width 32 over the eight rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(8, 32)
        self.place = torch.nn.Parameter(torch.randn(8, 32) / 8)
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(self.embed(x) + self.place).mean(1))


def optimizers(window: int):
    """By name, what makes an optimizer from parameters and a rate, and three rates."""
    return {
        "SGD": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), (0.03, 0.1, 0.3)),
        "AdamW": (lambda p, lr: torch.optim.AdamW(p, lr), (1e-3, 3e-3, 1e-2)),
        "M-FAC": (
            lambda p, lr: MFAC(p, lr * DAMPING, damping=DAMPING, window=window, warmup=10),
            (0.03, 0.1, 0.3),
        ),
    }


class Data:
    def __init__(self) -> None:
        images, labels = (torch.from_numpy(t) for t in load_digits(return_X_y=True))
        images = ((images.float() - 4.9) / 6).view(-1, 8, 8)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.x, self.y = images[order[:1280]], labels[order[:1280]]
        self.test = images[order[1280:]], labels[order[1280:]]

    def train(self, build, make, lr: float, steps: int):
        """Loss and seconds after each step, and the test accuracy at the end."""
        torch.manual_seed(0)
        model = build()
        optimizer = make(model.parameters(), lr)
        losses, seconds = [], []
        began = time.perf_counter()
        for _ in range(steps):
            batch = torch.randint(len(self.x), (BATCH,))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(self.x[batch]), self.y[batch])
            if not torch.isfinite(loss):
                return None
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            seconds.append(time.perf_counter() - began)
        with torch.no_grad():
            right = (model(self.test[0]).argmax(1) == self.test[1]).double().mean()
        return torch.tensor(losses), torch.tensor(seconds), float(right)


def smoothed(losses: torch.Tensor) -> torch.Tensor:
    """Mean of the last SMOOTH losses at each step."""
    total = F.pad(losses.double().cumsum(0), (SMOOTH, 0))
    count = torch.arange(1, len(losses) + 1).clamp_max(SMOOTH)
    return (total[SMOOTH:] - total[:-SMOOTH]) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--out", default="mfac_training.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # more do not help networks as small as these
    data = Data()
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    for row, (name, build) in zip(
        axes, (("convolutions", convolutions), ("transformer", Transformer)), strict=True
    ):
        d = sum(p.numel() for p in build().parameters())
        print(f"{name}, {d} parameters, {args.steps} steps of {BATCH} digits")
        print(
            f"{'':8}{'rate':>8}{'last loss':>11}{'test accuracy':>15}{'ms/step':>9}"
            f"{'steps to 0.1':>14}{'seconds to 0.1':>16}"
        )
        for label, (make, rates) in optimizers(args.window).items():
            data.train(build, make, rates[0], 10)  # caches and thread pools
            runs = {rate: data.train(build, make, rate, args.steps) for rate in rates}
            runs = {rate: run for rate, run in runs.items() if run is not None}
            rate = min(runs, key=lambda rate: float(smoothed(runs[rate][0])[-1]))
            losses, seconds, accuracy = runs[rate]
            curve = smoothed(losses)
            below = (curve < 0.1).nonzero()[:, 0].tolist()
            reached = (
                f"{below[0] + 1:14}{float(seconds[below[0]]):16.2f}"
                if below
                else f"{'-':>14}{'-':>16}"
            )
            print(
                f"{label:8}{rate:8g}{float(curve[-1]):11.4f}{accuracy:15.3f}"
                f"{1e3 * float(seconds[-1]) / args.steps:9.2f}{reached}"
            )
            row[0].semilogy(curve, label=label)
            row[1].semilogy(seconds, curve, label=label)
        print()
        row[0].set(xlabel="step", ylabel=f"{name}: loss")
        row[1].set(xlabel="second")
        row[0].legend()
    print(f"rate of M-FAC: lr over the damping; loss: mean of the last {SMOOTH} steps")
    figure.savefig(args.out, dpi=80)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
