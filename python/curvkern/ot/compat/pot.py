"""Functions with the signatures and return values of POT, Python Optimal Transport.

A program that calls ``ot.sinkhorn`` of POT runs with
``from curvkern.ot.compat import pot as ot``. POT's objective holds minus the entropy of the
plan where ours holds KL(P | a b'); the plans are the same. The table in :mod:`curvkern.ot` has
the constants between them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import ConvergenceWarning
from .._arguments import check_choice
from .._result import OTResult
from .._sinkhorn import solve_matrix

METHODS = (
    "sinkhorn",
    "sinkhorn_log",
    "greenkhorn",
    "sinkhorn_stabilized",
    "sinkhorn_epsilon_scaling",
)


def sinkhorn(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: tuple[Any, Any] | None = None,
) -> Any:
    r"""Plan of an entropic transport problem, as ``ot.sinkhorn`` of POT returns it.

    .. math::
        \min_{P \ge 0} \; \langle P, M \rangle + reg \sum_{ij} P_{ij} \log P_{ij}
        \quad\text{subject to}\quad P 1 = a, \; P^\top 1 = b

    Parameters
    ----------
    a : Tensor or ndarray, shape (n,), or an empty list
        Source weights; the empty list stands for equal ones.
    b : Tensor or ndarray, shape (m,) or (m, h), or an empty list
        Target weights; h of them give h losses in place of a plan.
    M : Tensor or ndarray, shape (n, m)
        Costs.
    reg : float
        Regularisation, > 0.
    method : str
        One of POT's names. All are solved in one way, which is safe at any ``reg``.
    numItermax, stopThr
        Most iterations, and the goal for the marginal error, here in the L1 norm of both sides.
    verbose : bool
        Accepted; nothing is printed.
    log : bool
        Whether to return a dict, too: ``err`` (errors at the checks), ``niter``, ``u``, ``v``
        with P = diag(u) exp(-M / reg) diag(v), ``warmstart`` (their logarithms) and ``result``
        (the :class:`~curvkern.ot.OTResult`).
    warn : bool
        Whether to warn where the goal was not reached.
    warmstart : pair, optional
        Logarithms of u and v to start from.

    Returns
    -------
    Tensor or ndarray, shape (n, m), or (h,) for h targets
        The plan, or the costs <P, M>; a pair with the dict where ``log`` is true.

    Raises
    ------
    TypeError, ValueError
        As in :func:`curvkern.ot.sinkhorn`, where POT lets NaN and negative weights pass.

    Warns
    -----
    ConvergenceWarning
        Once, if ``stopThr`` was not reached and ``warn`` is true.

    References
    ----------
    .. [1] R. Flamary et al., "POT: Python Optimal Transport", JMLR 22, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from curvkern.ot.compat import pot
    >>> M = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> pot.sinkhorn(np.array([0.5, 0.5]), np.array([0.5, 0.5]), M, 1)
    array([[0.36552929, 0.13447071],
           [0.13447071, 0.36552929]])
    """
    check_choice("pot.sinkhorn", "method", method, METHODS)
    several = getattr(b, "ndim", 1) == 2
    result = _solved("pot.sinkhorn", a, b, M, reg, numItermax, stopThr, warn, warmstart)
    answer = result.cost if several else result.plan
    return (answer, _log(result, a, b, reg)) if log else answer


def sinkhorn2(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: tuple[Any, Any] | None = None,
) -> Any:
    """Cost <P, M> of an entropic transport problem, as ``ot.sinkhorn2`` of POT returns it.

    Parameters
    ----------
    a, b, M, reg, method, numItermax, stopThr, verbose, log, warn, warmstart
        As in :func:`sinkhorn`.

    Returns
    -------
    number or Tensor, shape () or (h,) for h targets
        A pair with the dict of :func:`sinkhorn` where ``log`` is true.

    Raises
    ------
    TypeError, ValueError
        As in :func:`sinkhorn`.

    Warns
    -----
    ConvergenceWarning
        As in :func:`sinkhorn`.

    References
    ----------
    .. [1] R. Flamary et al., "POT: Python Optimal Transport", JMLR 22, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from curvkern.ot.compat import pot
    >>> M = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> float(pot.sinkhorn2(np.array([0.5, 0.5]), np.array([0.5, 0.5]), M, 1))
    0.26894142
    """
    check_choice("pot.sinkhorn2", "method", method, METHODS)
    result = _solved("pot.sinkhorn2", a, b, M, reg, numItermax, stopThr, warn, warmstart)
    return (result.cost, _log(result, a, b, reg)) if log else result.cost


def _solved(
    function: str,
    a: Any,
    b: Any,
    M: Any,
    reg: Any,
    numItermax: int,
    stopThr: float,
    warn: bool,
    warmstart: Sequence[Any] | None,
) -> OTResult:
    a, b = _weights(a), _weights(b)
    if getattr(b, "ndim", 1) == 2:
        b = b.T
        if a is not None and a.ndim == 1:
            a = a[None] + 0 * b[:, :1]
    init = None if warmstart is None else _potentials(function, warmstart, a, b, M, reg)
    with warnings.catch_warnings():
        if not warn:
            warnings.simplefilter("ignore", ConvergenceWarning)
        return solve_matrix(function, a, b, M, reg, max_iter=numItermax, tol=stopThr, init=init)


def _weights(weights: Any) -> Any:
    """None for POT's empty list."""
    empty = isinstance(weights, (list, tuple)) and not weights
    return None if weights is None or empty else weights


def _potentials(
    function: str, warmstart: Sequence[Any], a: Any, b: Any, M: Any, reg: float
) -> list[Any]:
    """f and g from log u = log a + f / reg; where there is no mass the solver finds them."""
    library: Any = torch if isinstance(M, Tensor) else np
    pair = []
    for logarithm, weights, n in zip(warmstart, (a, b), M.shape, strict=True):
        logarithm = logarithm.T if logarithm.ndim == 2 else logarithm  # as _log has it
        mass = library.ones_like(logarithm) / n if weights is None else weights
        if logarithm.shape != mass.shape:
            raise ValueError(
                f"{function}: warmstart has shape {tuple(logarithm.shape)} where the weights "
                f"have {tuple(mass.shape)}"
            )
        positive = mass > 0
        safe = library.where(positive, mass, library.ones_like(mass))
        start = library.where(positive, logarithm, library.zeros_like(logarithm))
        pair.append(reg * (start - library.log(safe)))
    return pair


def _log(result: OTResult, a: Any, b: Any, reg: float) -> dict[str, Any]:
    library: Any = torch if isinstance(result.f, Tensor) else np
    logarithms = []
    for potential, weights in ((result.f, _weights(a)), (result.g, _weights(b))):
        if weights is None:
            mass = library.ones_like(potential) / potential.shape[-1]
        else:
            mass = weights.T if weights.ndim == 2 else weights
        with np.errstate(divide="ignore"):
            logarithms.append(library.log(mass) + potential / reg)
    log_u, log_v = (t.T if t.ndim == 2 else t for t in logarithms)
    return {
        "err": [error for _, error in result.history],
        "niter": result.n_iter,
        "u": library.exp(log_u),
        "v": library.exp(log_v),
        "warmstart": (log_u, log_v),
        "result": result,
    }
