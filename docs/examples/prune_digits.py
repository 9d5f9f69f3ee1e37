"""Prune a classifier of digits in three ways, beside dropping the smallest weights.

    python docs/examples/prune_digits.py [--starts 2] [--out PLOT.png]

A network with one hidden layer learns scikit-learn's digits and then loses its weights, step by
step, without being trained again. Magnitude pruning drops the smallest. Optimal Brain Surgeon
asks the Fisher matrix of the gradients of half of these digits what the loss of a weight costs,
and lets those that are left make up for it: for each weight alone, all at once
("simultaneous"); for the same set together ("joint"); or one weight after the other ("greedy").
The Fisher matrix is made anew at every step.
"""

from __future__ import annotations

import argparse
import time

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from curvkern.fisher import StaticFisher, obs_prune

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METHODS = ("magnitude", "simultaneous", "joint", "greedy")
STEPS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.84, 0.87, 0.9, 0.925, 0.95)
SHOWN = (0.7, 0.8, 0.9, 0.95)
MATRICES = ("0.weight", "2.weight")  # biases stay


class Task:
    """A trained network, as a function of the flat vector of its weights."""

    def __init__(self, seed: int, hidden: int) -> None:
        images, labels = (torch.from_numpy(t) for t in load_digits(return_X_y=True))
        images = (images.float() - 4.9) / 6  # about the mean and deviation of a pixel
        torch.manual_seed(seed)
        order = torch.randperm(len(images))
        self.x, self.y = images[order[:1280]], labels[order[:1280]]
        self.test = images[order[1280:]], labels[order[1280:]]
        self.model = torch.nn.Sequential(
            torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10)
        )
        optimiser = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        for _ in range(40):
            for batch in torch.randperm(1280).split(64):
                optimiser.zero_grad()
                F.cross_entropy(self.model(self.x[batch]), self.y[batch]).backward()
                optimiser.step()
        self.trained = {name: p.detach() for name, p in self.model.named_parameters()}
        self.w = torch.cat([self.trained[name].flatten() for name in MATRICES])

    def __call__(self, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        parts = w.split([self.trained[name].numel() for name in MATRICES])
        matrices = {
            name: part.view_as(self.trained[name])
            for name, part in zip(MATRICES, parts, strict=True)
        }
        return functional_call(self.model, {**self.trained, **matrices}, (x,))

    def gradients(self, w: torch.Tensor) -> torch.Tensor:
        """Of the loss of each of half of the training digits, (640, d)."""

        def loss(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(self(w, x[None]), y[None])

        return vmap(grad(loss), (None, 0, 0))(w, self.x[:640], self.y[:640])

    def accuracy(self, w: torch.Tensor) -> float:
        return float((self(w, self.test[0]).argmax(1) == self.test[1]).double().mean())


def pruned(task: Task, method: str, damping: float) -> list[float]:
    """Accuracy at each of STEPS."""
    w, mask, found = task.w, None, []
    for sparsity in STEPS:
        if method == "magnitude":
            smallest = w.abs().argsort()[: round(sparsity * len(w))]
            w = w.clone()
            w[smallest] = 0
        else:
            fisher = StaticFisher.from_gradients(task.gradients(w), damping)
            w, mask, _ = obs_prune(w, fisher, sparsity=sparsity, mode=method, mask=mask)
        found.append(task.accuracy(w))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, default=24)
    parser.add_argument("--damping", type=float, default=1e-2)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--out", default="prune_digits.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # matrices are too small for more
    tasks = [Task(seed, args.hidden) for seed in range(args.starts)]
    dense = sum(task.accuracy(task.w) for task in tasks) / len(tasks)
    print(
        f"{len(tasks[0].w)} weights, {dense:.3f} of test digits right before; "
        f"mean of {args.starts} starts, pruned in {len(STEPS)} steps\n"
    )
    head = "".join(f"{sparsity:>9.0%}" for sparsity in SHOWN)
    print(f"{'weights dropped':16}{head}{'seconds':>10}")
    curves = {}
    for method in METHODS:
        began = time.perf_counter()
        runs = torch.tensor([pruned(task, method, args.damping) for task in tasks])
        curves[method] = runs.mean(0)
        row = "".join(f"{float(curves[method][STEPS.index(s)]):9.3f}" for s in SHOWN)
        print(f"{method:16}{row}{time.perf_counter() - began:10.1f}")
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for method, curve in curves.items():
        axis.plot(STEPS, curve, "o-", markersize=4, label=method)
    axis.axhline(dense, color="k", linewidth=0.8, label="before")
    axis.set(xlabel="share of weights dropped", ylabel="test accuracy")
    axis.legend()
    figure.savefig(args.out, dpi=80)
    print(f"\nsaved {args.out}")


if __name__ == "__main__":
    main()
