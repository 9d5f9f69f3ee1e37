"""The diagonal of a Hessian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _hutchinson as ops
from ..reference import hutchinson as reference
from ._hvp import Hessian, Loss
from ._probing import Probes, Sketch, check_choice

METHODS = ("hutchinson", "xdiag")


def hessian_diagonal(
    loss: Loss,
    params: Any,
    n_probes: int = 1,
    *,
    method: str = "hutchinson",
    distribution: str = "rademacher",
    generator: torch.Generator | None = None,
    probes: Any = None,
    return_variance: bool = False,
) -> Any:
    r"""An unbiased estimate of the diagonal of the Hessian of a loss.

    "hutchinson" is the mean of :math:`z \odot Hz` over n probes, whose variance is
    :math:`\sum_{j \neq i} H_{ij}^2 / n`, and :math:`2 H_{ii}^2 / n` more for Gaussian probes.
    "xdiag" [1]_ takes the part of H that the products with the other probes span, and the mean
    of :math:`z \odot (H - QQ^\top H) z` of the rest: 2n products and n vectors of memory, exact
    where the rank of H is below n.

    Parameters
    ----------
    loss
        A scalar tensor with its graph, which is kept, or a function that computes it, of no
        argument or of the list of parameters.
    params
        A tensor or several, which require grad.
    n_probes
        n; for a variance at least 2.
    method, distribution
        "hutchinson" or "xdiag"; "rademacher" or "gaussian".
    generator
        Where probes come from; by default torch's.
    probes
        Probes in place of drawn ones: n lists of tensors like params.
    return_variance
        Whether to estimate the variance of each entry of the result, too: its root is the
        standard error.

    Returns
    -------
    list of Tensor
        As params; a pair of such lists with ``return_variance``.

    Raises
    ------
    TypeError, ValueError
        For a parameter that does not require grad, a loss that is no scalar, probes of other
        shapes, an unknown method or distribution.

    References
    ----------
    .. [1] E. N. Epperly, J. A. Tropp, R. J. Webber, "XTrace: Making the Most of Every Sample in
       Stochastic Trace Estimation", SIAM J. Matrix Anal. Appl. 45 (2024), section 3.

    Examples
    --------
    >>> import torch
    >>> from curvkern.curvature import hessian_diagonal
    >>> p = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> hessian_diagonal((p**3).sum(), [p])  # a diagonal Hessian has no variance
    [tensor([ 6., 12., 18.])]
    """
    function = "hessian_diagonal"
    check_choice(function, "method", method, METHODS)
    hessian = Hessian(function, loss, params)
    drawn = Probes(hessian, n_probes, distribution, generator, probes)
    if return_variance and drawn.count < 2:
        raise ValueError(f"{function}: a variance needs n_probes of at least 2")
    if method == "hutchinson":
        diagonal, variance = _hutchinson(hessian, drawn, return_variance)
    else:
        diagonal, variance = _xdiag(hessian, drawn)
    return (diagonal, variance) if return_variance else diagonal


def _hutchinson(
    hessian: Hessian, probes: Probes, wants_variance: bool
) -> tuple[list[Tensor], list[Tensor]]:
    def zeros() -> list[Tensor]:
        return [
            torch.zeros(p.shape, dtype=ops.state_dtype(p.dtype), device=p.device)
            for p in hessian.params
        ]

    mean, square = zeros(), zeros() if wants_variance else []
    native = all(map(ops.is_native, hessian.params))
    add = torch.ops.curvkern.hutchinson_accumulate if native else reference.accumulate
    for i, z in enumerate(probes):
        hz = hessian.product(z)
        with torch.no_grad():
            drawn = probes.is_drawn and native
            add(mean, square, hz, [] if drawn else z, hessian.offsets, probes.seed, 0, i, i + 1)
    n = probes.count
    variance = [s / (n * (n - 1)) for s in square]
    return [_as(m, p) for m, p in zip(mean, hessian.params, strict=True)], variance


def _as(value: Tensor, p: Tensor) -> Tensor:
    return value.to(p.dtype)


def _xdiag(hessian: Hessian, probes: Probes) -> tuple[list[Tensor], list[Tensor]]:
    sketch = Sketch(hessian, probes.matrix())
    U, Z, W = sketch.U, sketch.Z, sketch.W
    shared = (U * Z).sum(1)  # the diagonal of U U' A
    estimates = []
    for i in range(W.shape[1]):
        gone, w = sketch.missing[:, i], W[:, i]
        a = Z.T @ w
        a = a - gone * (gone @ a)
        rest = w * (sketch.Y[:, i] - U @ a)
        estimates.append(shared - (U @ gone) * (Z @ gone) + rest)
    stacked = torch.stack(estimates)
    n = len(stacked)
    mean = stacked.mean(0)
    variance = (stacked - mean).square().sum(0) / max(1, n * (n - 1))
    return hessian.split(mean), hessian.split(variance)
