"""Cluster handwritten digits with a mixture of von Mises-Fisher laws, fitted by EM.

    python docs/examples/vmf_mixture_digits.py [--embeddings FILE.npy] [--out PLOT.png]

Only the direction of a feature vector is used: the 64 pixels of scikit-learn's digits are
centred and normalised. The mixture learns a mean direction and a concentration for each
cluster. The table compares it with k-means on the same vectors and with spherical k-means, that
is the same mixture with one shared, infinite concentration.
"""

from __future__ import annotations

import argparse
import time

import matplotlib
import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from curvkern.distributions import VonMisesFisher

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def load(path: str | None) -> tuple[torch.Tensor, np.ndarray | None]:
    """Unit vectors (n, d), and labels where they are known."""
    features, labels = (np.load(path), None) if path else load_digits(return_X_y=True)
    x = torch.from_numpy(np.asarray(features, np.float64))
    x = x - x.mean(0)
    return x / x.norm(dim=-1, keepdim=True), labels


def log_joint(x: torch.Tensor, weights: torch.Tensor, parts: VonMisesFisher) -> torch.Tensor:
    """log w_k + log p_k(x), shape (n, k): one matrix product, whatever the dimension."""
    cosines = x @ parts.loc.T
    return weights.log() + parts.concentration * cosines + parts.log_normalizer


def start(x: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++ seeding with the distance 1 - cosine; returns hard responsibilities."""
    centres = x[torch.randint(len(x), (1,), generator=generator)]
    for _ in range(k - 1):
        distance = (1 - x @ centres.T).min(1).values.clamp_min(0)
        centres = torch.cat([centres, x[torch.multinomial(distance, 1, generator=generator)]])
    return torch.nn.functional.one_hot((x @ centres.T).argmax(1), k).to(x.dtype)


def fit_mixture(x: torch.Tensor, k: int, generator: torch.Generator, iterations: int = 200):
    """Weights, components and the log-likelihood after each iteration."""
    responsibility = start(x, k, generator)
    history: list[float] = []
    for _ in range(iterations):
        # M-step: all components in one call, weights of shape (k, n)
        mass = responsibility.sum(0) + 1e-9
        weights = mass / mass.sum()
        parts = VonMisesFisher.fit(x, responsibility.T + 1e-9 / len(x))
        # E-step
        joint = log_joint(x, weights, parts)
        history.append(joint.logsumexp(1).sum().item())
        responsibility = joint.softmax(1)
        if len(history) > 1 and history[-1] - history[-2] < 1e-6 * abs(history[-1]):
            break
    return weights, parts, history


def spherical_k_means(x: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """Cluster of each point; the mixture's limit at infinite concentration."""
    responsibility = start(x, k, generator)
    for _ in range(200):
        centres = torch.nn.functional.normalize(responsibility.T @ x, dim=-1)
        updated = torch.nn.functional.one_hot((x @ centres.T).argmax(1), k).to(x.dtype)
        if torch.equal(updated, responsibility):
            break
        responsibility = updated
    return responsibility.argmax(1)


def log_likelihood(x: torch.Tensor, clusters: torch.Tensor, k: int) -> float:
    """Of the mixture whose components are fitted to given clusters."""
    one_hot = torch.nn.functional.one_hot(clusters.long(), k).to(x.dtype)
    mass = one_hot.sum(0).clamp_min(1e-9)
    parts = VonMisesFisher.fit(x, one_hot.T + 1e-9 / len(x))
    return log_joint(x, mass / mass.sum(), parts).logsumexp(1).sum().item()


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of points that carry the commonest label of their cluster."""
    return sum(np.bincount(labels[clusters == c]).max() for c in np.unique(clusters)) / len(
        labels
    )


def best_of(restarts: int, run, score):
    """The run of highest score."""
    return max((run() for _ in range(restarts)), key=score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--embeddings", help="an (n, d) array of your own, saved with numpy.save"
    )
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="vmf_mixture.png")
    args = parser.parse_args()
    k = args.clusters
    x, labels = load(args.embeddings)
    generator = torch.Generator().manual_seed(args.seed)
    print(
        f"{len(x)} unit vectors in {x.shape[1]} dimensions, {k} clusters, "
        f"best of {args.restarts} starts\n"
    )

    results = {}
    began = time.perf_counter()
    weights, parts, history = best_of(
        args.restarts, lambda: fit_mixture(x, k, generator), score=lambda run: run[2][-1]
    )
    clusters = log_joint(x, weights, parts).argmax(1)
    results["von Mises-Fisher mixture"] = clusters, history[-1], time.perf_counter() - began

    for name, run in {
        "spherical k-means": lambda: spherical_k_means(x, k, generator),
        "k-means (scikit-learn)": lambda: torch.from_numpy(
            KMeans(
                k, n_init=1, random_state=int(torch.randint(2**31, (1,), generator=generator))
            ).fit_predict(x.numpy())
        ),
    }.items():
        began = time.perf_counter()
        found = best_of(args.restarts, run, score=lambda c: log_likelihood(x, c, k))
        results[name] = found, log_likelihood(x, found, k), time.perf_counter() - began

    print(f"{'':26}{'log-likelihood':>15}{'purity':>8}{'ARI':>7}{'seconds':>9}")
    for name, (found, likelihood, seconds) in results.items():
        scores = f"{'-':>8}{'-':>7}"
        if labels is not None:
            rand = adjusted_rand_score(labels, found.numpy())
            scores = f"{purity(found.numpy(), labels):8.3f}{rand:7.3f}"
        print(f"{name:26}{likelihood:15.1f}{scores}{seconds:9.2f}")

    plot(x, labels, weights, parts, history, clusters, args.out)
    print(f"\nsaved {args.out}")


def plot(x, labels, weights, parts, history, clusters, path) -> None:
    k, dim = parts.loc.shape
    side = int(dim**0.5)
    figure = plt.figure(figsize=(11, 6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.4])

    top.suptitle("mean directions, by concentration")
    for axis, c in zip(
        top.subplots(1, k), parts.concentration.argsort(descending=True), strict=True
    ):
        if side * side == dim:
            axis.imshow(parts.loc[c].reshape(side, side), cmap="RdBu_r", vmin=-0.4, vmax=0.4)
        else:
            axis.plot(parts.loc[c], linewidth=0.5)
        axis.set_title(
            f"$\\kappa$ = {parts.concentration[c]:.0f}\nshare {weights[c]:.2f}", fontsize=8
        )
        axis.set_xticks([])
        axis.set_yticks([])

    left, right = bottom.subplots(1, 2)
    left.plot(history)
    left.set(xlabel="iteration", ylabel="log-likelihood", title="expectation-maximisation")
    cosine = (x * parts.loc[clusters]).sum(-1)
    for c in parts.concentration.argsort(descending=True)[:3]:
        angle = torch.acos(cosine[clusters == c].clamp(-1, 1)).rad2deg()
        name = f"cluster with $\\kappa$ = {parts.concentration[c]:.0f}"
        right.hist(angle, bins=25, density=True, alpha=0.4, label=name)
    right.set(
        xlabel="angle to the mean direction, degrees",
        ylabel="density",
        title="the three tightest clusters",
    )
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
