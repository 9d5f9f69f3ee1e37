"""Differentiable sorting and ranking by entropic transport in one dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._masks import all_of
from ._arguments import Arguments, check_count
from ._result import OTResult
from ._sinkhorn import Costs, solve, solver_options

# Scale of the logistic distribution whose standard deviation is 1.
LOGISTIC = 3**0.5 / torch.pi


def soft_rank(
    x: Any, eps: Any = 1e-2, *, dim: int = -1, max_iter: int = 10_000, tol: float = 1e-9
) -> Any:
    r"""Differentiable ranks, from 1 for the smallest value to n for the largest.

    The values, squashed into (0, 1), are transported to n equidistant targets at squared
    distances; with P that plan and both weights 1/n,

    .. math:: R_i = n^2 \sum_j P_{ij} \, j / n

    As eps falls to 0 these are the ranks, as it grows they all tend to (n + 1) / 2.

    Parameters
    ----------
    x : Tensor or ndarray, shape (..., n, ...)
        Values, finite.
    eps : float, or 0-d Tensor
        Regularisation, > 0; the values span a range of about 1.
    dim : int
        Dimension along which to rank.
    max_iter, tol
        As in :func:`sinkhorn`.

    Returns
    -------
    Tensor or ndarray
        Of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        An x that is empty, not floating or not finite; a dim beyond its dimensions; an eps that
        is not positive.

    Warns
    -----
    ConvergenceWarning
        If the transport has not reached ``tol``.

    Notes
    -----
    Differentiable twice. Ranks count from 1 as in SciPy; those of OTT count from 0.

    References
    ----------
    .. [1] M. Cuturi, O. Teboul, J.-P. Vert, "Differentiable Ranking and Sorting using Optimal
       Transport", NeurIPS 2019, arXiv:1905.11885.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> print(ot.soft_rank(torch.tensor([3.0, 1.0, 2.0]), 1e-3))
    tensor([3.0000, 1.0000, 2.0000])
    """
    lines = _Lines("soft_rank", x, dim)
    result = lines.transport(lines.values.shape[1], eps, max_iter, tol)
    n = lines.values.shape[1]
    targets = torch.arange(1, n + 1, dtype=torch.float64, device=lines.values.device)
    return lines.shown(n * result.apply(targets.expand(len(lines.values), n)))


def soft_sort(
    x: Any,
    eps: Any = 1e-2,
    *,
    dim: int = -1,
    m: int | None = None,
    max_iter: int = 10_000,
    tol: float = 1e-9,
) -> Any:
    r"""Differentiable sorting in ascending order.

    With the plan P of :func:`soft_rank`, from n values to m targets,

    .. math:: S_j = m \sum_i P_{ij} \, x_i

    Parameters
    ----------
    x : Tensor or ndarray, shape (..., n, ...)
        Values, finite.
    eps : float, or 0-d Tensor
        Regularisation, > 0; the values span a range of about 1.
    dim : int
        Dimension along which to sort.
    m : int, optional
        Number of targets: fewer than n give means of neighbours, quantiles in a sense.
    max_iter, tol
        As in :func:`sinkhorn`.

    Returns
    -------
    Tensor or ndarray
        Of the dtype of x and its shape, with m in place of n.

    Raises
    ------
    TypeError, ValueError
        As for :func:`soft_rank`; an m below 1.

    Warns
    -----
    ConvergenceWarning
        If the transport has not reached ``tol``.

    References
    ----------
    .. [1] M. Cuturi, O. Teboul, J.-P. Vert, "Differentiable Ranking and Sorting using Optimal
       Transport", NeurIPS 2019, arXiv:1905.11885.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> print(ot.soft_sort(torch.tensor([3.0, 1.0, 2.0]), 1e-3))
    tensor([1.0000, 2.0000, 3.0000])
    >>> print(ot.soft_sort(torch.tensor([4.0, 1.0, 2.0, 3.0]), 1e-3, m=2))
    tensor([1.5000, 3.5000])
    """
    lines = _Lines("soft_sort", x, dim)
    m = lines.values.shape[1] if m is None else check_count("soft_sort", "m", m)
    result = lines.transport(m, eps, max_iter, tol)
    return lines.shown(m * result.apply(lines.values, transpose=True))


class _Lines:
    """The values of a call as lines (B, n), in float64."""

    def __init__(self, function: str, x: Any, dim: Any) -> None:
        self.function = function
        self.arguments = Arguments(function, "x", x)
        x = self.arguments.tensor("x", x, None, "(..., n)")
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"{function}: dim must be an integer, got {type(dim).__name__}")
        if not -x.dim() <= dim < x.dim():
            raise ValueError(f"{function}: dim {dim} is beyond an x of shape {tuple(x.shape)}")
        if all_of(torch.isfinite(x)) is False:
            raise ValueError(f"{function}: x must be finite, got nan or inf")
        self.dim = dim
        self.dtype = x.dtype
        moved = x.movedim(dim, -1)
        self.lead = moved.shape[:-1]
        self.values = moved.reshape(-1, moved.shape[-1]).to(torch.float64)

    def transport(self, m: int, eps: Any, max_iter: Any, tol: Any) -> OTResult:
        """To m targets in (0, 1)."""
        deviation = self.values - self.values.mean(1, keepdim=True)
        # Values that are all equal have no scale, and need none.
        variance = deviation.square().mean(1, keepdim=True)
        spread = torch.where(variance > 0, torch.where(variance > 0, variance, 1.0).sqrt(), 1.0)
        squashed = torch.sigmoid(deviation / (LOGISTIC * spread))
        targets = (torch.arange(m, dtype=torch.float64, device=squashed.device) + 0.5) / m
        C = (squashed[:, :, None] - targets) ** 2
        options = solver_options(self.function, "auto", max_iter, tol)
        arguments = Arguments(self.function, "x", C)
        C = arguments.tensor("x", C, (2, 3), "")
        return solve(arguments, Costs(C), None, None, eps, None, options)

    def shown(self, lines: Tensor) -> Any:
        """As x came: its shape, dtype and kind."""
        out = lines.reshape(*self.lead, lines.shape[-1]).movedim(-1, self.dim).to(self.dtype)
        return out.detach().numpy() if self.arguments.numpy else out
