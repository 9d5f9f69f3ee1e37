"""The trace of a Hessian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._hvp import Hessian, Loss
from ._probing import Probes, Sketch, check_choice

METHODS = ("hutchinson", "hutchpp", "xtrace")


def hessian_trace(
    loss: Loss,
    params: Any,
    n_probes: int = 10,
    *,
    method: str = "hutchinson",
    distribution: str = "rademacher",
    generator: torch.Generator | None = None,
    probes: Any = None,
    return_variance: bool = False,
) -> Any:
    r"""An unbiased estimate of the trace of the Hessian of a loss.

    "hutchinson" is the mean of :math:`z^\top H z` over n probes (n products). "hutchpp" [1]_
    takes the trace over the range of H times n probes exactly and samples the rest with n
    others (3n products). "xtrace" [2]_ has every probe sample what the others do not span (2n
    products).

    Parameters
    ----------
    loss, params, n_probes, distribution, generator
        As for :func:`hessian_diagonal`.
    method
        "hutchinson", "hutchpp" or "xtrace".
    probes
        Probes in place of drawn ones; for "hutchpp" 2n, those of the rest last.
    return_variance
        Whether to estimate the variance of the result, too, from n of at least 2.

    Returns
    -------
    Tensor
        0-dim, float64; a pair with ``return_variance``.

    Raises
    ------
    TypeError, ValueError
        As for :func:`hessian_diagonal`.

    References
    ----------
    .. [1] R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff, "Hutch++: Optimal Stochastic Trace
       Estimation", SOSA 2021.
    .. [2] E. N. Epperly, J. A. Tropp, R. J. Webber, "XTrace: Making the Most of Every Sample in
       Stochastic Trace Estimation", SIAM J. Matrix Anal. Appl. 45 (2024), section 2.

    Examples
    --------
    >>> import torch
    >>> from curvkern.curvature import hessian_trace
    >>> p = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> hessian_trace((p**3).sum(), p, 4, return_variance=True)
    (tensor(36., dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    function = "hessian_trace"
    check_choice(function, "method", method, METHODS)
    hessian = Hessian(function, loss, params)
    count = 2 * n_probes if method == "hutchpp" and type(n_probes) is int else n_probes
    drawn = Probes(hessian, count, distribution, generator, probes)
    if method == "hutchpp" and drawn.count % 2:
        raise ValueError(f"{function}: 'hutchpp' takes an even number of probes")
    if return_variance and drawn.count < (4 if method == "hutchpp" else 2):
        raise ValueError(f"{function}: a variance needs n_probes of at least 2")
    samples = {"hutchinson": _hutchinson, "hutchpp": _hutchpp, "xtrace": _xtrace}[method](
        hessian, drawn
    )
    n = len(samples)
    mean = samples.mean()
    if not return_variance:
        return mean
    return mean, (samples - mean).square().sum() / (n * (n - 1))


def _hutchinson(hessian: Hessian, probes: Probes) -> Tensor:
    found = []
    for z in probes:
        products = zip(z, hessian.product(z), strict=True)
        found.append(sum((a.double() * b.double()).sum() for a, b in products))
    return torch.stack([torch.as_tensor(one) for one in found])


def _hutchpp(hessian: Hessian, probes: Probes) -> Tensor:
    first, rest = probes.matrix().chunk(2, dim=1)
    Q = Sketch(hessian, first)
    G = rest - Q.U @ (Q.U.T @ rest)
    return (Q.U * Q.Z).sum() + (G * hessian.times_columns(G)).sum(0)


def _xtrace(hessian: Hessian, probes: Probes) -> Tensor:
    sketch = Sketch(hessian, probes.matrix())
    T = sketch.U.T @ sketch.Z
    T = (T + T.T) / 2
    estimates = []
    for i in range(sketch.W.shape[1]):
        gone, w, y = sketch.missing[:, i], sketch.W[:, i], sketch.Y[:, i]
        a = sketch.U.T @ w
        a = a - gone * (gone @ a)
        rest = w @ y - 2 * a @ (sketch.U.T @ y) + a @ (T @ a)
        estimates.append(T.trace() - gone @ (T @ gone) + rest)
    return torch.stack(estimates)
