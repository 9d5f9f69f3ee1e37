"""Two small networks that learn scikit-learn's digits, and a race of optimizers for both."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

BATCH = 64
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


class Data:
    def __init__(self) -> None:
        images, labels = (torch.from_numpy(t) for t in load_digits(return_X_y=True))
        images = ((images.float() - 4.9) / 6).view(-1, 8, 8)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.x, self.y = images[order[:1280]], labels[order[:1280]]
        self.test = images[order[1280:]], labels[order[1280:]]

    def train(self, build, make, advance, lr: float, steps: int):
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
            advance(optimizer, loss)
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


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """A step of what needs gradients alone."""
    loss.backward()
    optimizer.step()


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "convolutions": convolutions,
    "transformer": Transformer,
}


def race(optimizers, steps: int, target: float, axes) -> None:
    """Print and plot, for both networks, the runs at the best of several rates.

    ``optimizers`` has, by name, what makes one from parameters and a rate, how it takes a step,
    and the rates.
    """
    data = Data()
    for row, (name, build) in zip(axes, NETWORKS.items(), strict=True):
        d = sum(p.numel() for p in build().parameters())
        print(f"{name}, {d} parameters, {steps} steps of {BATCH} digits")
        print(
            f"{'':11}{'rate':>8}{'last loss':>11}{'test accuracy':>15}{'ms/step':>9}"
            f"{f'steps to {target:g}':>14}{f'seconds to {target:g}':>16}"
        )
        for label, (make, advance, rates) in optimizers.items():
            data.train(build, make, advance, rates[0], 5)  # caches and thread pools
            runs = {rate: data.train(build, make, advance, rate, steps) for rate in rates}
            runs = {rate: run for rate, run in runs.items() if run is not None}
            rate = min(runs, key=lambda rate: float(smoothed(runs[rate][0])[-1]))
            losses, seconds, accuracy = runs[rate]
            curve = smoothed(losses)
            below = (curve < target).nonzero()[:, 0].tolist()
            reached = (
                f"{below[0] + 1:14}{float(seconds[below[0]]):16.2f}"
                if below
                else f"{'-':>14}{'-':>16}"
            )
            print(
                f"{label:11}{rate:8g}{float(curve[-1]):11.4f}{accuracy:15.3f}"
                f"{1e3 * float(seconds[-1]) / steps:9.2f}{reached}"
            )
            row[0].semilogy(curve, label=label)
            row[1].semilogy(seconds, curve, label=label)
        print()
        row[0].set(xlabel="step", ylabel=f"{name}: loss")
        row[1].set(xlabel="second")
        row[0].legend()
