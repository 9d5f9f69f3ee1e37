"""Route tokens to experts of equal load, by transport plans with at most k experts a token.

    python docs/examples/moe_routing.py [--experts 8] [-k 2] [--out PLOT.png]

A small mixture of experts classifies scikit-learn's digits. Plainly, a token goes to the k
experts of highest score, gated by their softmax, and nothing keeps a few experts from getting
all tokens; the remedy in use is a loss on the loads. Here the gates are a sparse transport plan
from tokens to experts (Liu, Puigcerver and Blondel, ICLR 2023): it has at most k nonzeros a
token, and each expert gets its share. The dual potentials f are the experts' prices; given
these, the gates of a token are topk_sparsemax((scores + f) / temperature, k), which is what is
differentiated in training, and what routes new tokens one by one.
"""

from __future__ import annotations

import argparse
import time

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from curvkern import ot

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HIDDEN = 8  # units of an expert: one alone is too small for the task
ROUTERS = ("softmax", "softmax + load loss", "sparse plan")


class MixtureOfExperts(torch.nn.Module):
    """Experts with one hidden layer behind a linear router, as one of ROUTERS."""

    def __init__(self, router: str, experts: int, k: int, inputs: int, classes: int) -> None:
        super().__init__()
        self.router, self.k = router, k
        self.score = torch.nn.Linear(inputs, experts)
        self.first = torch.nn.Parameter(torch.randn(experts, inputs, HIDDEN) / inputs**0.5)
        self.second = torch.nn.Parameter(torch.randn(experts, HIDDEN, classes) / HIDDEN**0.5)
        self.register_buffer("prices", torch.zeros(experts))

    def settle_prices(self, scores: torch.Tensor, tol: float = 1e-4) -> None:
        """Those at which the plan of these tokens at temperature 1 gives equal loads."""
        tokens = len(scores)
        plan = ot.sparsity_constrained_ot(
            None, None, -scores.detach().T, float(tokens), self.k, tol=tol
        )
        self.prices.copy_(plan.f)

    def gates(self, scores: torch.Tensor) -> torch.Tensor:
        """(tokens, experts), at most k nonzeros in a row, which sums to 1."""
        if self.router == "sparse plan":
            return ot.topk_sparsemax(scores + self.prices, self.k)
        top, index = scores.topk(self.k)
        return torch.zeros_like(scores).scatter(1, index, top.softmax(1))

    def forward(self, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        # All experts see all tokens, and zeros drop out: digits are too few to save time.
        hidden = F.relu(torch.einsum("td,edh->teh", x, self.first))
        return torch.einsum("te,teh,ehc->tc", gates, hidden, self.second)

    def loss(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        scores = self.score(x)
        if self.router == "sparse plan":
            self.settle_prices(scores)
        gates = self.gates(scores)
        loss = F.cross_entropy(self(x, gates), labels)
        if self.router == "softmax + load loss":  # Fedus, Zoph and Shazeer, JMLR 2022, eq. 4
            share = loads(gates).detach()
            loss = loss + 0.05 * scores.shape[1] * share @ scores.softmax(1).mean(0)
        return loss


def loads(gates: torch.Tensor) -> torch.Tensor:
    """The share of all assignments of tokens that each expert gets."""
    assigned = (gates > 0).sum(0).to(gates.dtype)
    return assigned / assigned.sum()


def split(seed: int):
    """Inputs and labels for training and testing."""
    images, labels = (torch.from_numpy(t) for t in load_digits(return_X_y=True))
    x = (images.float() - 4.9) / 6  # about the mean and deviation of a pixel
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:1280]], labels[order[:1280]], x[order[1280:]], labels[order[1280:]]


def train(router: str, x: torch.Tensor, labels: torch.Tensor, args, seed: int):
    torch.manual_seed(seed)
    model = MixtureOfExperts(router, args.experts, args.k, x.shape[1], 10)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(args.epochs):
        for batch in torch.randperm(len(x)).split(256):
            optimiser.zero_grad()
            model.loss(x[batch], labels[batch]).backward()
            optimiser.step()
    if router == "sparse plan":
        with torch.no_grad():
            model.settle_prices(model.score(x))  # of all training tokens, for new ones
    return model


@torch.no_grad()
def judge(model: MixtureOfExperts, x: torch.Tensor, labels: torch.Tensor, capacity: float):
    """Accuracy, loads, share of assignments beyond the capacity, experts per token."""
    gates = model.gates(model.score(x))
    share = loads(gates)
    accuracy = (model(x, gates).argmax(1) == labels).double().mean()
    dropped = (share - capacity / len(share)).clamp_min(0).sum()
    return float(accuracy), share.sort(descending=True).values, float(dropped), gates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("-k", type=int, default=2, help="most experts of a token")
    parser.add_argument("--capacity", type=float, default=1.25, help="over an equal load")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--out", default="moe_routing.png")
    args = parser.parse_args()
    print(
        f"{args.experts} experts, at most {args.k} a token, mean of {args.starts} starts; "
        f"on test digits, routed one by one\n"
    )
    print(
        f"{'':22}{'accuracy':>9}{'largest load':>14}{'smallest':>10}"
        f"{'over capacity':>15}{'experts/token':>15}{'seconds':>9}"
    )
    sorted_loads = {}
    for router in ROUTERS:
        began = time.perf_counter()
        rows, curves = [], []
        for seed in range(args.starts):
            x, labels, x_test, labels_test = split(seed)
            model = train(router, x, labels, args, seed)
            accuracy, share, dropped, gates = judge(model, x_test, labels_test, args.capacity)
            relative = share * args.experts
            per_token = float((gates > 0).sum(1).double().mean())
            rows.append([accuracy, float(relative[0]), float(relative[-1]), dropped, per_token])
            curves.append(relative)
        sorted_loads[router] = torch.stack(curves)
        mean = torch.tensor(rows).mean(0).tolist()
        print(
            f"{router:22}{mean[0]:9.4f}{mean[1]:14.2f}{mean[2]:10.2f}{mean[3]:14.1%} "
            f"{mean[4]:15.2f}{time.perf_counter() - began:9.1f}"
        )
    print(
        "\nloads: assignments of the expert over those of an equal share; over capacity: "
        f"assignments beyond {args.capacity:g} times that"
    )
    plot(sorted_loads, args)
    print(f"saved {args.out}")


def plot(sorted_loads, args) -> None:
    figure, axes = plt.subplots(
        1, len(sorted_loads), figsize=(11, 3.4), sharey=True, layout="constrained"
    )
    for axis, (router, curves) in zip(axes, sorted_loads.items(), strict=True):
        place = range(1, args.experts + 1)
        axis.bar(place, curves.mean(0), color="tab:blue", alpha=0.6)
        axis.plot(place, curves.T, "k.", markersize=4)
        axis.axhline(1, color="k", linewidth=0.8)
        axis.axhline(args.capacity, color="tab:red", linestyle="--", linewidth=0.8)
        axis.set(title=router, xlabel="expert, by load")
    axes[0].set_ylabel("load over an equal share")
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
