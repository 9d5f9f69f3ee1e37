"""Learn how smooth a function is: a Gaussian process whose Matern order nu is a parameter.

    python docs/examples/matern_gp.py [--nu 1.2] [--out PLOT.png]

A path of known smoothness is drawn and observed with noise. Smoothness, length scale, amplitude
and noise are then found by gradient ascent on the marginal likelihood: the derivative of the
Matern correlation in nu is exact, so nu is learned like any other parameter instead of being
picked from 1/2, 3/2, 5/2.
"""

from __future__ import annotations

import argparse
import math
import time

import matplotlib
import torch

from curvkern.special import matern

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TRUE_LENGTHSCALE, TRUE_NOISE = 0.15, 0.02
FIXED_ORDERS = (0.5, 1.5, 2.5, math.inf)


def observe(nu: float, count: int, generator: torch.Generator):
    """Noisy values of one path, at random points in close pairs: these show the roughness."""
    x = torch.rand(count // 2, 1, dtype=torch.float64, generator=generator)
    close = x + 0.004 * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    x = torch.cat([x, close]).sort(0).values
    covariance = matern(torch.cdist(x, x), nu, TRUE_LENGTHSCALE) + 1e-12 * torch.eye(len(x))
    path = torch.linalg.cholesky(covariance) @ torch.randn(
        len(x), dtype=x.dtype, generator=generator
    )
    return x, path + TRUE_NOISE * torch.randn(len(x), dtype=x.dtype, generator=generator)


class GaussianProcess(torch.nn.Module):
    """Zero mean, Matern covariance; positive parameters are kept as logarithms."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, nu: float | None = None) -> None:
        super().__init__()
        self.x, self.y, self.fixed_nu = x, y, nu
        self.distances = torch.cdist(x, x)
        start = torch.tensor([0.3, 1.0, 0.1, 1.0], dtype=x.dtype).log()
        self.log_parameters = torch.nn.Parameter(start if nu is None else start[:3])

    def parameters_of_kernel(self):
        lengthscale, amplitude, noise, *nu = self.log_parameters.exp()
        return lengthscale, amplitude, noise, nu[0] if nu else self.fixed_nu

    def smoothness(self) -> float:
        return self.fixed_nu or self.log_parameters[3].exp().item()

    def factor(self) -> torch.Tensor:
        lengthscale, amplitude, noise, nu = self.parameters_of_kernel()
        covariance = amplitude**2 * matern(self.distances, nu, lengthscale)
        jitter = 1e-10 * amplitude.detach() ** 2
        return torch.linalg.cholesky(
            covariance + (noise**2 + jitter) * torch.eye(len(self.x), dtype=self.x.dtype)
        )

    def log_likelihood(self) -> torch.Tensor:
        factor = self.factor()
        white = torch.linalg.solve_triangular(factor, self.y[:, None], upper=False)
        log_det = factor.diagonal().log().sum()
        return -0.5 * (white**2).sum() - log_det - 0.5 * len(self.y) * math.log(2 * math.pi)

    def fit(self, iterations: int = 60) -> list[tuple[float, float]]:
        """L-BFGS; returns the path of (nu, log-likelihood)."""
        history = []
        optimizer = torch.optim.LBFGS(
            self.parameters(), lr=0.5, max_iter=iterations, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = -self.log_likelihood()
            loss.backward()
            history.append((self.smoothness(), -loss.item()))
            return loss

        optimizer.step(closure)
        return history

    @torch.no_grad()
    def predict(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior mean and standard deviation of the path at x."""
        lengthscale, amplitude, _, nu = self.parameters_of_kernel()
        factor = self.factor()
        cross = amplitude**2 * matern(torch.cdist(self.x, x), nu, lengthscale)
        mean = cross.T @ torch.cholesky_solve(self.y[:, None], factor)
        gain = torch.linalg.solve_triangular(factor, cross, upper=False)
        return mean[:, 0], (amplitude**2 - (gain**2).sum(0)).clamp_min(0).sqrt()


def standard_error(model: GaussianProcess) -> float:
    """Of log nu, from the exact Hessian of the log-likelihood: second derivatives in nu too."""
    parameters = model.log_parameters
    gradient = torch.autograd.grad(model.log_likelihood(), parameters, create_graph=True)[0]
    rows = [torch.autograd.grad(g, parameters, retain_graph=True)[0] for g in gradient]
    return torch.linalg.inv(-torch.stack(rows))[3, 3].sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nu", type=float, default=1.2, help="smoothness of the path drawn")
    parser.add_argument("--points", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="matern_gp.png")
    args = parser.parse_args()

    x, y = observe(args.nu, args.points, torch.Generator().manual_seed(args.seed))
    print(
        f"{len(x)} observations of a path with nu = {args.nu}, "
        f"length scale {TRUE_LENGTHSCALE}, noise {TRUE_NOISE}\n"
    )
    print(
        f"{'':10}{'nu':>7}{'length scale':>14}{'noise':>9}{'log-likelihood':>16}{'seconds':>9}"
    )
    models, histories = {}, {}
    for nu in (None, *FIXED_ORDERS):
        began = time.perf_counter()
        model = GaussianProcess(x, y, nu)
        history = model.fit()
        name = "learned" if nu is None else f"nu = {nu:g}"
        models[name], histories[name] = model, history
        with torch.no_grad():
            lengthscale, _, noise, order = (float(p) for p in model.parameters_of_kernel())
        print(
            f"{name:10}{order:7.3f}{lengthscale:14.4f}{noise:9.4f}{history[-1][1]:16.2f}"
            f"{time.perf_counter() - began:9.2f}"
        )

    learned = models["learned"].smoothness()
    error = standard_error(models["learned"])
    low, high = learned * math.exp(-2 * error), learned * math.exp(2 * error)
    inside = "inside" if low <= args.nu <= high else "outside"
    print(
        f"\nlearned nu = {learned:.3f}, two standard errors [{low:.3f}, {high:.3f}]: "
        f"the true {args.nu} is {inside}"
    )
    plot(x, y, models, histories["learned"], args.nu, args.out)
    print(f"saved {args.out}")


def plot(x, y, models, history, true_nu, path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    grid = torch.linspace(0, 1, 500, dtype=x.dtype)[:, None]
    mean, deviation = models["learned"].predict(grid)
    left.fill_between(grid[:, 0], mean - 2 * deviation, mean + 2 * deviation, alpha=0.3)
    left.plot(grid, mean, label="posterior")
    left.plot(x, y, "k.", markersize=3, label="observations")
    left.set(xlabel="x", title="regression with the learned smoothness")
    left.legend()

    middle.plot([nu for nu, _ in history], marker=".", label="learned")
    middle.axhline(true_nu, color="k", linestyle="--", label="true")
    middle.set(xlabel="evaluation", ylabel=r"$\nu$", title="smoothness during the fit")
    middle.legend()

    names = list(models)
    values = [model.log_likelihood().item() for model in models.values()]
    right.barh(names, [value - max(values) for value in values])
    right.set(xlabel="log-likelihood below the best", title="against fixed orders")
    right.invert_yaxis()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
