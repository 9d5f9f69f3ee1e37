"""Tune hundreds of example weights and the weight decay by the gradient of a validation loss.

    python docs/examples/tune_by_hypergradient.py [--steps 15] [--out PLOT.png]

Four in ten training labels of scikit-learn's digits are wrong, and 200 digits have labels that
were checked. Softmax regression is trained with a weight for each training digit, in (0, 1),
and a weight decay; the loss on the checked digits decides all of these. fisher.hypergradient
differentiates it through the optimum of training, with a product by the inverse of the training
loss's Hessian. For that stands in the Fisher matrix of the training gradients, whose damping is
the weight decay; beside it, the exact Hessian.
"""

from __future__ import annotations

import argparse
import time

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch.func import grad, hessian, vmap
from torch.nn import functional as F

from curvkern.fisher import StaticFisher, hypergradient

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TRAIN, CHECKED, WRONG = 500, 200, 0.4
START = (0.0, -4.0)  # logits of all example weights, log of the decay


class Data:
    """Images with a constant as their last pixel, and labels, many of training wrong."""

    def __init__(self, seed: int) -> None:
        images, labels = (torch.from_numpy(t) for t in load_digits(return_X_y=True))
        images = torch.cat([images / 16, torch.ones(len(images), 1)], 1)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(images), generator=generator)
        self.x, x_val, x_test = images[order].split([TRAIN, CHECKED, len(order) - 700])
        y, y_val, y_test = labels[order].split([TRAIN, CHECKED, len(order) - 700])
        self.val, self.test = (x_val, y_val), (x_test, y_test)
        self.is_wrong = torch.rand(TRAIN, generator=generator) < WRONG
        other = (y + torch.randint(1, 10, (TRAIN,), generator=generator)) % 10
        self.y = torch.where(self.is_wrong, other, y)

    def loss(self, w: torch.Tensor, logits: torch.Tensor, decay: torch.Tensor):
        each = F.cross_entropy(self.x @ w, self.y, reduction="none")
        return (logits.sigmoid() * each).mean() + decay.exp() * w.square().sum() / 2

    def trained(self, w: torch.Tensor, *h: torch.Tensor) -> torch.Tensor:
        """The optimum, by L-BFGS from w."""
        w = w.clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [w], max_iter=100, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            loss = self.loss(w, *h)
            loss.backward()
            return loss

        optimiser.step(closure)
        return w.detach()

    def fisher(self, w: torch.Tensor, logits: torch.Tensor, decay: torch.Tensor):
        """Of the gradients of the weighted losses: w_i g g' is that of sqrt(w_i) g."""

        def loss(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy((x @ w)[None], y[None])

        G = vmap(grad(loss), (None, 0, 0))(w, self.x, self.y).flatten(1)
        return StaticFisher.from_gradients(
            logits.sigmoid().sqrt()[:, None] * G, decay.exp().item()
        )

    def solver(self, exact: bool, w: torch.Tensor, *h: torch.Tensor):
        if not exact:
            return self.fisher(w, *h)
        H = hessian(lambda v: self.loss(v.view_as(w), *h))(w.flatten())
        return lambda v: torch.linalg.solve(H, v)


def accuracy(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
    return float(((x @ w).argmax(1) == y).double().mean())


def tuned(data: Data, steps: int, exact: bool):
    """Hyperparameters after so many steps, with loss and test accuracy before each."""
    logits = torch.full((TRAIN,), START[0], requires_grad=True)
    decay = torch.tensor(START[1], requires_grad=True)
    optimiser = torch.optim.Adam(
        [{"params": [logits], "lr": 0.5}, {"params": [decay], "lr": 0.2}]
    )
    w, history = torch.zeros(65, 10), []
    for _ in range(steps):
        h = logits.detach(), decay.detach()
        w = data.trained(w, *h).requires_grad_()
        val = F.cross_entropy(data.val[0] @ w, data.val[1])
        solve = data.solver(exact, w.detach(), *h)
        logits.grad, decay.grad = hypergradient(
            val, data.loss(w, logits, decay), w, (logits, decay), ihvp=solve
        )
        optimiser.step()
        w = w.detach()
        history.append([float(val.detach()), accuracy(w, *data.test)])
    return (logits.detach(), decay.detach()), history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--out", default="tune_by_hypergradient.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # matrices are too small for more
    torch.set_default_dtype(torch.float64)
    table: dict[str, list[list[float]]] = {}
    curves: dict[str, list[list[list[float]]]] = {}
    for seed in range(args.starts):
        data = Data(seed)
        decay = torch.tensor(START[1])
        same = torch.full((TRAIN,), START[0])
        right = torch.where(data.is_wrong, -40.0, 0.0)
        rows = {"equal weights": (same, decay), "right labels only": (right, decay)}
        spent = dict.fromkeys(rows, 0.0)
        for name, exact in (("tuned, Fisher matrix", False), ("tuned, exact Hessian", True)):
            began = time.perf_counter()
            rows[name], history = tuned(data, args.steps, exact)
            spent[name] = time.perf_counter() - began
            curves.setdefault(name, []).append(history)
        for name, h in rows.items():
            w = data.trained(torch.zeros(65, 10), *h)
            low = h[0] < h[0].quantile(WRONG)
            hit = float((low & data.is_wrong).sum() / data.is_wrong.sum())
            row = [accuracy(w, *data.test), float(h[1].exp()), hit, spent[name]]
            table.setdefault(name, []).append(row)
    print(
        f"{TRAIN} training digits, {WRONG:.0%} of their labels wrong, {CHECKED} checked ones; "
        f"means of {args.starts} splits, {args.steps} steps of the hyperparameters\n"
    )
    print(f"{'':24}{'accuracy':>9}{'decay':>9}{'wrong labels found':>20}{'seconds':>9}")
    for name, runs in table.items():
        right, decay, hit, seconds = torch.tensor(runs).mean(0).tolist()
        shown = f"{hit:20.0%}" if name.startswith("tuned") else f"{'-':>20}"
        print(f"{name:24}{right:9.3f}{decay:9.4f}{shown}{seconds:9.1f}")
    print(f"\nfound: among the {WRONG:.0%} of lowest weight")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, runs in curves.items():
        mean = torch.tensor(runs).mean(0)
        for axis, curve in zip(axes, mean.T, strict=True):
            axis.plot(curve, label=name)
    axes[0].set(xlabel="step of the hyperparameters", ylabel="loss on checked digits")
    axes[1].set(xlabel="step of the hyperparameters", ylabel="test accuracy")
    axes[0].legend()
    figure.savefig(args.out, dpi=80)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
