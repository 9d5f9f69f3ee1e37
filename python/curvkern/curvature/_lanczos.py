"""The spectrum of a Hessian by Lanczos' method."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ConvergenceWarning
from ..fisher import _checks
from ..optim import _settings
from ._hvp import Hessian, Loss
from ._probing import Probes, check_choice

WHICH = ("magnitude", "largest", "smallest")


class Eigenpairs(NamedTuple):
    """What :func:`top_eigenpairs` returns."""

    values: Tensor  #: (k,), float64
    vectors: list[list[Tensor]]  #: k of norm 1, each as params
    residuals: Tensor  #: (k,), bounds of ``|H v - value v|``
    converged: bool
    iterations: int  #: products with H


class SpectralDensity(NamedTuple):
    """What :func:`spectral_density` returns."""

    grid: Tensor  #: (points,), float64
    density: Tensor  #: (points,), integrates to 1
    nodes: Tensor  #: (probes, steps), Ritz values
    weights: Tensor  #: (probes, steps), of which each row sums to 1


def _lanczos(
    hessian: Hessian, start: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Diagonal, off-diagonal, orthonormal basis (rows), norm of what is left.

    Every vector is made orthogonal to all before, twice: without it ghosts appear.
    """
    basis = start.new_zeros(steps, hessian.n)
    alpha: list[float] = []
    beta: list[float] = []
    q = start / start.norm()
    for k in range(steps):
        basis[k] = q
        y = hessian.times(q)
        alpha.append(float(q @ y))
        for _ in range(2):
            y = y - basis[: k + 1].T @ (basis[: k + 1] @ y)
        rest = float(y.norm())
        scale = max(map(abs, alpha + beta))
        if k + 1 == steps or rest <= 1e-14 * max(scale, 1e-300) * math.sqrt(hessian.n):
            basis = basis[: k + 1]
            break
        beta.append(rest)
        q = y / rest
    as_tensor = [
        torch.tensor(x, dtype=torch.float64, device=start.device) for x in (alpha, beta)
    ]
    return as_tensor[0], as_tensor[1], basis, rest


def _ritz(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    T = torch.diag(alpha) + torch.diag(beta, 1) + torch.diag(beta, -1)
    values, vectors = torch.linalg.eigh(T)
    return values, vectors


def top_eigenpairs(
    loss: Loss,
    params: Any,
    k: int = 1,
    *,
    which: str = "magnitude",
    max_iter: int = 100,
    tol: float = 1e-6,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """The k outermost eigenvalues of the Hessian of a loss, with their eigenvectors.

    Lanczos' method with all vectors kept orthogonal: memory of as many vectors as iterations.

    Parameters
    ----------
    loss, params, generator
        As for :func:`hessian_diagonal`; the generator draws the first vector.
    k
        How many.
    which
        Those of largest "magnitude", the "largest" or the "smallest".
    max_iter
        Products at most.
    tol
        Relative to the largest magnitude, the residual of a pair that has converged.

    Returns
    -------
    Eigenpairs
        Sorted as ``which`` says. An eigenvalue that the Hessian has several times is found
        once.

    Raises
    ------
    TypeError, ValueError
        As for :func:`hessian_diagonal`, and for a k that is not in [1, number of elements].

    Warns
    -----
    ConvergenceWarning
        If a residual is above ``tol`` after ``max_iter`` products.

    Examples
    --------
    >>> import torch
    >>> from curvkern.curvature import top_eigenpairs
    >>> p = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> top_eigenpairs(p[0] ** 2 - 3 * p[1] ** 2, p, 2).values
    tensor([-6.0000,  2.0000], dtype=torch.float64)
    """
    function = "top_eigenpairs"
    _settings.count(function, "k", k)
    _settings.count(function, "max_iter", max_iter)
    check_choice(function, "which", which, WHICH)
    tol = _checks.positive(function, "tol", tol)
    hessian = Hessian(function, loss, params)
    if k > hessian.n:
        raise ValueError(f"{function}: k must be at most {hessian.n}, got {k}")
    probe = Probes(hessian, 1, "gaussian", generator, None)
    start = hessian.flat(next(iter(probe)))
    steps = min(hessian.n, max(2 * k + 10, 20), max_iter)
    while True:
        alpha, beta, basis, rest = _lanczos(hessian, start, steps)
        values, vectors = _ritz(alpha, beta)
        key = {"magnitude": -values.abs(), "largest": -values, "smallest": values}[which]
        chosen = key.argsort()[:k]
        residuals = rest * vectors[-1, chosen].abs()
        scale = float(values.abs().max())
        converged = bool((residuals <= tol * max(scale, 1e-300)).all())
        if converged or steps >= min(hessian.n, max_iter):
            break
        steps = min(2 * steps, hessian.n, max_iter)
    if not converged:
        warnings.warn(
            f"{function}: residual {float(residuals.max()):.2g} after {len(alpha)} products, "
            f"tol {tol:g} of {scale:.2g}; raise max_iter",
            ConvergenceWarning,
            stacklevel=2,
        )
    found = (vectors[:, chosen].T @ basis) if len(chosen) else basis[:0]
    return Eigenpairs(
        values[chosen], [hessian.split(v) for v in found], residuals, converged, len(alpha)
    )


def spectral_density(
    loss: Loss,
    params: Any,
    n_probes: int = 4,
    *,
    steps: int = 64,
    points: int = 512,
    width: float | None = None,
    distribution: str = "rademacher",
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    r"""The density of a Hessian's eigenvalues, by stochastic Lanczos quadrature.

    From each probe, ``steps`` products give nodes and weights of a Gauss quadrature of
    :math:`\int f\, d\mu` with :math:`\mu` the eigenvalues, weighted by the probe's share in
    their eigenvectors. The density is the mean over probes, smoothed by a Gaussian.

    Parameters
    ----------
    loss, params, n_probes, distribution, generator
        As for :func:`hessian_diagonal`.
    steps
        Products of a probe, and vectors of memory.
    points
        Of the grid, which covers all nodes and four widths more.
    width
        Of the Gaussian, its standard deviation; by default a hundredth of the range.

    Returns
    -------
    SpectralDensity
        The mean of a function f of the eigenvalues is ``(weights * f(nodes)).sum(1).mean()``.

    Raises
    ------
    TypeError, ValueError
        As for :func:`hessian_diagonal`.

    References
    ----------
    .. [1] B. Ghorbani, S. Krishnan, Y. Xiao, "An Investigation into Neural Net Optimization via
       Hessian Eigenvalue Density", ICML 2019.

    Examples
    --------
    >>> import torch
    >>> from curvkern.curvature import spectral_density
    >>> p = torch.ones(3, requires_grad=True)
    >>> found = spectral_density((p**2 * torch.tensor([1.0, 2.0, 3.0])).sum(), p)
    >>> (found.weights * found.nodes).sum(1).mean()  # of 2, 4 and 6
    tensor(4.0000, dtype=torch.float64)
    """
    function = "spectral_density"
    _settings.count(function, "steps", steps)
    _settings.count(function, "points", points, 2)
    hessian = Hessian(function, loss, params)
    if not hessian.n:
        raise ValueError(f"{function}: params has no elements")
    probes = Probes(hessian, n_probes, distribution, generator, None)
    count = min(steps, hessian.n)
    nodes = torch.zeros(probes.count, count, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for i, z in enumerate(probes):
        alpha, beta, _, _ = _lanczos(hessian, hessian.flat(z), count)
        values, vectors = _ritz(alpha, beta)
        # Where Lanczos ended early the last node stands for those that are missing, weight 0.
        nodes[i] = values[-1].cpu()
        nodes[i, : len(values)] = values.cpu()
        weights[i, : len(values)] = vectors[0].square().cpu()
    low, high = float(nodes.min()), float(nodes.max())
    if width is None:
        width = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-12) / 100
    width = _checks.positive(function, "width", width)
    grid = torch.linspace(low - 4 * width, high + 4 * width, points, dtype=torch.float64)
    density = torch.zeros_like(grid)
    for node, weight in zip(nodes.flatten(), weights.flatten(), strict=True):
        density += weight * torch.exp(-0.5 * ((grid - node) / width) ** 2)
    density /= probes.count * width * math.sqrt(2 * math.pi)
    return SpectralDensity(grid, density, nodes, weights)
