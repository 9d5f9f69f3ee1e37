"""The debiased Sinkhorn divergence, as a function and as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._arguments import Arguments, check_choice, check_number
from ._kernel import KINDS
from ._sinkhorn import Costs, points_and_weights, solve, solver_options
from ._solving import watching


def sinkhorn_divergence(
    x: Any,
    y: Any,
    eps: Any,
    *,
    a: Any = None,
    b: Any = None,
    rho: Any = None,
    cost: str = "sqeuclidean",
    scale: float = 1.0,
    method: str = "auto",
    max_iter: int = 10_000,
    tol: float = 1e-9,
    init: Any = None,
) -> Any:
    r"""Debiased Sinkhorn divergence between two clouds of points.

    .. math::
        S = OT_\varepsilon(\alpha, \beta) - \tfrac12 OT_\varepsilon(\alpha, \alpha)
            - \tfrac12 OT_\varepsilon(\beta, \beta)
            + \tfrac{\varepsilon}{2} (m_\alpha - m_\beta)^2

    with the values of :func:`sinkhorn_points`. For the four costs it is not negative, and 0
    only where the two measures agree. The last term, of the masses, is 0 in balanced problems.

    Parameters
    ----------
    x, y : Tensor or ndarray, shape (n, d) or (B, n, d), and (m, d) or (B, m, d)
        The points.
    eps : float, or Tensor of shape () or (B,)
        Regularisation, > 0, in units of the cost.
    a, b : Tensor or ndarray, shape (n,) or (B, n), and (m,) or (B, m), optional
        Weights, >= 0; None stands for equal ones that sum to 1.
    rho : float, or Tensor of shape () or (B,), optional
        Penalty of both marginals, > 0; None for hard ones.
    cost : {"sqeuclidean", "half_sqeuclidean", "euclidean", "l1"}
        The cost, times ``scale``.
    scale : float
        Factor of the cost, > 0.
    method
        Of the problem between x and y, as in :func:`sinkhorn`; those of a measure and itself
        take averaged updates.
    max_iter, tol
        Of each of the three problems, as in :func:`sinkhorn`.
    init : OTResult or pair of potentials (f, g), optional
        Where to start the problem between x and y, say with those of :func:`sinkhorn_points`
        before the points moved. The others take a few averaged updates from anywhere.

    Returns
    -------
    Tensor or number, shape () or (B,)

    Raises
    ------
    TypeError, ValueError, MemoryError
        As in :func:`sinkhorn_points`.

    Warns
    -----
    ConvergenceWarning
        Once, if one of the problems has not reached ``tol``.

    References
    ----------
    .. [1] J. Feydy, T. Sejourne, F.-X. Vialard, S. Amari, A. Trouve, G. Peyre, "Interpolating
       between Optimal Transport and MMD using Sinkhorn Divergences", AISTATS 2019.
    .. [2] T. Sejourne, J. Feydy, F.-X. Vialard, A. Trouve, G. Peyre, "Sinkhorn Divergences for
       Unbalanced Optimal Transport", 2019, arXiv:1910.12958.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    >>> print(f"{float(ot.sinkhorn_divergence(x, x + 2, 0.1)):.6f}")
    4.000000
    >>> abs(float(ot.sinkhorn_divergence(x, x, 0.1))) < 1e-9
    True
    """
    return _divergence(
        "sinkhorn_divergence", x, y, eps, a, b, rho, cost, scale, True, method, max_iter, tol,
        init,
    )  # fmt: skip


def _divergence(
    function: str,
    x: Any,
    y: Any,
    eps: Any,
    a: Any,
    b: Any,
    rho: Any,
    cost: Any,
    scale: Any,
    debias: bool,
    method: Any,
    max_iter: Any,
    tol: Any,
    init: Any,
) -> Any:
    arguments = Arguments(function, "x", x)
    x, y, a, b = points_and_weights(arguments, x, y, a, b)
    kind = check_choice(function, "cost", cost, KINDS)
    scale = check_number(function, "scale", scale, positive=True)
    options = solver_options(function, method, max_iter, tol)
    if isinstance(rho, (tuple, list)):
        raise TypeError(f"{function}: rho must be one penalty for both sides, got a pair")

    averaged = options._replace(method="symmetric")

    def itself(weights: Tensor | None, points: Tensor) -> Tensor:
        costs = Costs(None, points, points, kind, scale)
        return solve(arguments, costs, weights, weights, eps, rho, averaged)._value

    with watching():
        costs = Costs(None, x, y, kind, scale)
        result = solve(arguments, costs, a, b, eps, rho, options, init)
        if not debias:
            return result.value
        own = itself(a, x), itself(b, y)
    # In float64 until all is summed: near 0 the parts cancel.
    value = result._value - (own[0] + own[1]) / 2
    return result._shown(value if rho is None else value + result._mass_term())


class SamplesLoss(torch.nn.Module):
    r"""Sinkhorn loss between samples, with GeomLoss's interface and exact gradients.

    The cost is :math:`|x-y|^p / p`, the regularisation :math:`\varepsilon = blur^p`, the
    penalty of the marginals :math:`\rho = reach^p`.

    Parameters
    ----------
    loss : {"sinkhorn"}
        The kind of loss.
    p : {1, 2}
        Exponent of the cost.
    blur : float
        Length below which details do not count, > 0.
    reach : float, optional
        Length beyond which mass is destroyed and created in place of being moved; None or
        ``inf`` for balanced transport.
    debias : bool
        Whether to return :func:`sinkhorn_divergence` or the plain value of the transport.
    method, max_iter, tol
        As in :func:`sinkhorn`. Other than GeomLoss, which anneals for a fixed number of steps,
        this iterates to convergence.

    Raises
    ------
    TypeError, ValueError
        A parameter of the wrong kind or beyond its range.

    Notes
    -----
    GeomLoss's losses without transport ("energy", "gaussian", "laplacian", "hausdorff") and its
    options ``scaling``, ``truncate``, ``kernel``, ``cluster_scale``, ``potentials`` and
    ``backend`` are not offered.

    References
    ----------
    .. [1] J. Feydy, T. Sejourne, F.-X. Vialard, S. Amari, A. Trouve, G. Peyre, "Interpolating
       between Optimal Transport and MMD using Sinkhorn Divergences", AISTATS 2019.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> loss = ot.SamplesLoss(p=2, blur=0.1)
    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    >>> value = loss(x, x.detach() + torch.tensor([0.0, 1.0]))
    >>> value.backward()
    >>> print(f"{float(value.detach()):.4f}", x.grad)
    0.5000 tensor([[ 0.0000, -0.5000],
                   [ 0.0000, -0.5000]])
    """

    def __init__(
        self,
        loss: str = "sinkhorn",
        p: int = 2,
        blur: float = 0.05,
        reach: float | None = None,
        debias: bool = True,
        *,
        method: str = "auto",
        max_iter: int = 10_000,
        tol: float = 1e-9,
    ) -> None:
        super().__init__()
        name = "SamplesLoss"
        self.loss = check_choice(name, "loss", loss, ("sinkhorn",))
        if check_number(name, "p", p, positive=True) not in (1, 2):
            raise ValueError(f"{name}: p must be 1 or 2, got {p!r}")
        self.p = int(p)
        self.blur = check_number(name, "blur", blur, positive=True)
        _check_power(name, "blur", self.blur, self.p)
        if reach is not None:
            reach = check_number(name, "reach", reach, positive=True, finite=False)
            _check_power(name, "reach", reach, self.p)
        self.reach = reach
        if not isinstance(debias, bool):
            raise TypeError(f"{name}: debias must be a bool, got {type(debias).__name__}")
        self.debias = debias
        options = solver_options(name, method, max_iter, tol)
        self.method, self.max_iter, self.tol = options.method, options.max_iter, options.tol

    def forward(self, *arguments: Tensor, init: Any = None) -> Tensor:
        """The loss of (x, y), or of (a, x, b, y) with weights, as in GeomLoss.

        Parameters
        ----------
        *arguments : Tensor
            Points (n, d) and (m, d) or with a batch (B, n, d) and (B, m, d); weights (n,) and
            (m,) or (B, n) and (B, m).
        init : OTResult or pair of potentials (f, g), optional
            Where to start, as in :func:`sinkhorn_divergence`.

        Returns
        -------
        Tensor, shape () or (B,)
        """
        if len(arguments) not in (2, 4):
            raise TypeError(
                f"SamplesLoss: expected (x, y) or (a, x, b, y), got {len(arguments)} arguments"
            )
        a, x, b, y = (
            arguments if len(arguments) == 4 else (None, arguments[0], None, arguments[1])
        )
        value: Tensor = _divergence(
            "SamplesLoss",
            x,
            y,
            self.blur**self.p,
            a,
            b,
            None if self.reach is None else self.reach**self.p,
            "half_sqeuclidean" if self.p == 2 else "euclidean",
            1.0,
            self.debias,
            self.method,
            self.max_iter,
            self.tol,
            init,
        )
        return value

    def extra_repr(self) -> str:
        return f"p={self.p}, blur={self.blur}, reach={self.reach}, debias={self.debias}"


def _check_power(function: str, name: str, length: float, p: int) -> None:
    try:
        is_lost = length**p == 0
    except OverflowError:
        is_lost = True
    if is_lost:
        raise ValueError(
            f"{function}: {name}^{p} must be within float64, got {name} = {length}"
        )
