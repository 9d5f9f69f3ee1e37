"""The Monge gap of a map."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..reference.costs import cost_between
from ._arguments import Arguments, check_choice, check_number
from ._kernel import KINDS
from ._sinkhorn import Costs, points_and_weights, solve, solver_options


def monge_gap(
    x: Any,
    Tx: Any,
    eps: Any,
    *,
    a: Any = None,
    cost: str = "sqeuclidean",
    scale: float = 1.0,
    method: str = "auto",
    max_iter: int = 10_000,
    tol: float = 1e-9,
) -> Any:
    r"""How far the map x -> Tx is from moving its points at least cost.

    .. math::
        M = \sum_i a_i \, c(x_i, T x_i) - OT_\varepsilon(x, T x)

    As a penalty it makes a fitted map optimal for the cost c, without a form imposed on it.

    Parameters
    ----------
    x, Tx : Tensor or ndarray, shape (n, d) or (B, n, d)
        Points, and where the map takes them.
    eps : float, or Tensor of shape () or (B,)
        Regularisation, > 0, in units of the cost.
    a : Tensor or ndarray, shape (n,) or (B, n), optional
        Weights of the points, >= 0; None stands for 1/n each.
    cost, scale, method, max_iter, tol
        As in :func:`sinkhorn_points`.

    Returns
    -------
    Tensor or number, shape () or (B,)

    Raises
    ------
    TypeError, ValueError, MemoryError
        As in :func:`sinkhorn_points`; x and Tx must have the same shape.

    Warns
    -----
    ConvergenceWarning
        If the transport has not reached ``tol``.

    Notes
    -----
    The value of the transport holds KL(P | a a'), as everywhere in :mod:`curvkern.ot` and in
    OTT. The paper's holds minus the entropy of P, and its gap, never negative, is larger by
    2 eps H(a), a constant of 2 eps log n for equal weights. Ours tends to a number >= 0 as eps
    falls to 0, and is never below -eps H(a).

    References
    ----------
    .. [1] T. Uscidda, M. Cuturi, "The Monge Gap: A Regularizer to Learn All Transport Maps",
       ICML 2023, arXiv:2302.04953.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    >>> float(ot.monge_gap(x, x.flip(0), 0.01))  # a swap costs 1, staying nothing
    0.993
    """
    function = "monge_gap"
    arguments = Arguments(function, "x", x)
    x, Tx, a, _ = points_and_weights(arguments, x, Tx, a, None, ("x", "Tx"))
    if x.shape != Tx.shape:
        raise ValueError(
            f"{function}: x has shape {tuple(x.shape)} but Tx has {tuple(Tx.shape)}"
        )
    kind = check_choice(function, "cost", cost, KINDS)
    scale = check_number(function, "scale", scale, positive=True)
    options = solver_options(function, method, max_iter, tol)
    costs = Costs(None, x, Tx, kind, scale)
    result = solve(arguments, costs, a, a, eps, None, options)
    weights = arguments.batched_weights(a, x.shape[-2])
    moved: Tensor = scale * cost_between(
        arguments.batched(x, 2), arguments.batched(Tx, 2), kind
    )
    return result._shown((weights * moved).sum(1) - result._value)
