"""Train a linear model to put patients in the right order, by differentiable ranks.

    python docs/examples/rank_regression.py [--distortion 2] [--out PLOT.png]

The target is the progression of diabetes in scikit-learn's 442 patients. The model maximises
the correlation of the soft ranks of its scores with the ranks of the target, in batches: a
smooth stand-in for Spearman's coefficient, after which it is judged on held-out patients. Least
squares is the rival, on the target and on exp(2 target): the scale on which a quantity was
written down changes a squared error, and no rank. Several splits train at once, as a batch.
"""

from __future__ import annotations

import argparse
import time

import matplotlib
import torch
from sklearn.datasets import load_diabetes

from curvkern import ot

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TRAINED = 300  # patients of a split; 142 are held out


def standardised(values) -> torch.Tensor:
    values = torch.from_numpy(values)
    return (values - values.mean(0)) / values.std(0)


def ranks(values: torch.Tensor) -> torch.Tensor:
    """From 1, along the last dimension; the target has few ties."""
    return values.argsort(-1).argsort(-1).to(torch.float64) + 1


def correlation(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Pearson's, along the last dimension; of ranks it is Spearman's."""
    u, v = (t - t.mean(-1, keepdim=True) for t in (u, v))
    return torch.nn.functional.cosine_similarity(u, v, dim=-1)


def scores(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Of patients (S, n, d) under the model (S, d) of each split, (S, n)."""
    return (x @ w[:, :, None])[:, :, 0]


def least_squares(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Coefficients (S, d); the intercept changes no rank."""
    ones = torch.ones_like(x[:, :, :1])
    return torch.linalg.lstsq(torch.cat([x, ones], 2), y[:, :, None]).solution[:, :-1, 0]


class SoftRankModel:
    """Linear models of all splits, by Adam on 1 - correlation of ranks in batches."""

    def __init__(self, args: argparse.Namespace, generator: torch.Generator) -> None:
        self.eps, self.batch, self.steps = args.eps, args.batch, args.steps
        self.generator = generator
        self.history: list[tuple[int, torch.Tensor]] = []

    def fit(self, x: torch.Tensor, y: torch.Tensor, judge) -> torch.Tensor:
        """Coefficients (S, d); ``judge`` is asked now and then, and decides nothing."""
        start = 0.1 * torch.randn(len(x), x.shape[2], generator=self.generator)
        w = start.double().requires_grad_()
        optimiser = torch.optim.Adam([w], lr=0.05)
        for step in range(self.steps + 1):
            if step % 5 == 0:
                self.history.append((step, judge(w.detach())))
            rows = self.minibatches(*y.shape)
            x_batch = x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))
            soft = ot.soft_rank(scores(x_batch, w), self.eps, tol=1e-3)
            loss = (1 - correlation(soft, ranks(y.gather(1, rows)))).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return w.detach()

    def minibatches(self, splits: int, n: int) -> torch.Tensor:
        """Different rows for each split, (S, batch)."""
        return torch.rand(splits, n, generator=self.generator).argsort(1)[:, : self.batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--distortion", type=float, default=2.0, help="c in exp(c target)")
    parser.add_argument("--eps", type=float, default=0.05, help="softness of the ranks")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="rank_regression.png")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    x, y = map(standardised, load_diabetes(return_X_y=True))
    order = torch.rand(args.splits, len(x), generator=generator).argsort(1)
    trained, held_out = order[:, :TRAINED], order[:, TRAINED:]
    distorted = torch.exp(args.distortion * y)

    def spearman(w: torch.Tensor) -> torch.Tensor:
        """On the held-out patients of each split."""
        return correlation(ranks(scores(x[held_out], w)), ranks(y[held_out]))

    results = {
        "least squares": spearman(least_squares(x[trained], y[trained])),
        "least squares, distorted": spearman(least_squares(x[trained], distorted[trained])),
    }
    model = SoftRankModel(args, generator)
    began = time.perf_counter()
    w = model.fit(x[trained], distorted[trained], spearman)  # the ranks are those of y
    seconds = time.perf_counter() - began
    results["soft ranks, both"] = spearman(w)

    print(f"held-out Spearman correlation, {args.splits} splits of {len(x)} patients\n")
    print(f"{'':26}{'mean':>8}{'deviation':>11}{'better than the first in':>26}")
    for name, rho in results.items():
        better = int((rho > results["least squares"]).sum())
        print(f"{name:26}{rho.mean():8.4f}{rho.std():11.4f}{better:16} of {args.splits}")
    print(
        f"\ndistorted: the target is exp({args.distortion:g} y); {args.splits} models of soft "
        f"ranks, {args.steps} steps of {args.batch} patients each: {seconds:.1f} s"
    )
    plot(model.history, results, args.out)
    print(f"saved {args.out}")


def plot(history, results, path: str) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    steps = [step for step, _ in history]
    curves = torch.stack([rho for _, rho in history])
    left.plot(steps, curves, color="tab:green", alpha=0.25, linewidth=0.8)
    left.plot(steps, curves.mean(1), color="tab:green", linewidth=2, label="soft ranks, mean")
    left.axhline(
        results["least squares"].mean(), color="k", linestyle="--", label="least squares, mean"
    )
    left.set(xlabel="step", ylabel="held-out Spearman", title="learning, one line a split")
    left.legend()

    right.boxplot(list(results.values()), widths=0.4)
    right.set_xticks(range(1, len(results) + 1), [name.replace(", ", "\n") for name in results])
    right.set(ylabel="held-out Spearman", title="all splits")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
