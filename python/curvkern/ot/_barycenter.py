r"""Entropic barycenters of histograms, by iterative Bregman projections in log domain.

State of the iteration: log v (B, K, m) and log d (B, m). With K_k = exp(-C_k / eps)

    u_k = a_k / (K_k v_k),    q_k = K_k' u_k,    b = d prod_k q_k^{w_k},    v_k = b / q_k
    d <- sqrt(d b / (K d))                                                  (debiased; else 1)

Its derivatives are those of a fixed point, see :mod:`._fixed_point`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arguments import memory_error
from ..reference.costs import cost_matrix
from ._arguments import Arguments, check_choice, check_count, check_number
from ._checks import check_finite, check_positive, check_weights
from ._fixed_point import fixed_point
from ._kernel import KINDS, LARGEST_EXPONENT
from ._solving import warn

TOL = 1e-9
DEBIASED_TOL = 1e-4


def barycenter(
    a: Any,
    C: Any,
    eps: Any,
    *,
    x: Any = None,
    y: Any = None,
    cost: str = "sqeuclidean",
    weights: Any = None,
    debiased: bool = False,
    max_iter: int = 10_000,
    tol: float | None = None,
    check_every: int = 10,
) -> Any:
    r"""Wasserstein barycenter of histograms on a fixed support.

    .. math::
        \min_b \sum_k w_k \min_{P_k}\; \langle P_k, C_k \rangle
        + \varepsilon \sum_{ij} P_{k,ij} (\log P_{k,ij} - 1)
        \quad\text{with}\quad P_k 1 = a_k, \; P_k^\top 1 = b

    Debiased, the Sinkhorn divergence takes the place of the transport, and the blur of width
    :math:`\sqrt\varepsilon` is gone.

    Parameters
    ----------
    a : Tensor or ndarray, shape (K, n) or (B, K, n)
        The histograms, >= 0, of equal masses.
    C : Tensor or ndarray, shape (n, m), (K, n, m) or (B, K, n, m); None
        Costs from their bins to those of the barycenter, finite. Debiased: (n, n), symmetric.
        None if points take its place.
    eps : float, or Tensor of shape () or (B,)
        Regularisation, > 0, in units of the cost.
    x : Tensor or ndarray, shape (n, d) or (B, n, d), optional
        Points at which the histograms' bins lie.
    y : Tensor or ndarray, shape (m, d) or (B, m, d), optional
        Those of the barycenter; x unless given, and always x debiased.
    cost : {"sqeuclidean", "half_sqeuclidean", "euclidean", "l1"}
        The cost between points. They are held as a matrix.
    weights : Tensor or ndarray, shape (K,) or (B, K), optional
        Weights w of the histograms, >= 0, taken relative to their sum; None for equal ones.
    debiased : bool
        Whether to take the Sinkhorn divergence.
    max_iter : int
        Most iterations.
    tol : float, optional
        Goal for the largest error of a marginal, :math:`|P_k 1 - a_k|_1` over the mass; for the
        debiased one also for the change of the barycenter in an iteration. 1e-9 unless given;
        1e-4 debiased, where bins that empty make the convergence sublinear.
    check_every : int
        Iterations between two checks.

    Returns
    -------
    Tensor or ndarray, shape (m,) or (B, m)
        The barycenter, of the mass of the histograms.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Wrong kinds, dtypes and shapes; NaN or infinite costs; negative or unequal masses.

    Warns
    -----
    ConvergenceWarning
        If ``tol`` was not reached.

    Notes
    -----
    Differentiable in a, C or the points, eps and weights, any number of times, in reverse
    mode. ``vmap``, forward mode (both ``NotImplementedError``) and
    ``torch.compile(fullgraph=True)`` are refused; a batch takes the place of the first. The
    derivatives of the debiased barycenter are as exact as its convergence: a small ``tol``
    helps them.

    References
    ----------
    .. [1] J.-D. Benamou, G. Carlier, M. Cuturi, L. Nenna, G. Peyre, "Iterative Bregman
       Projections for Regularized Transportation Problems", SIAM J. Sci. Comput. 37, 2015.
    .. [2] H. Janati, M. Cuturi, A. Gramfort, "Debiased Sinkhorn Barycenters", ICML 2020,
       arXiv:2006.02575.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> grid = torch.linspace(0, 1, 5, dtype=torch.float64)
    >>> C = (grid[:, None] - grid) ** 2
    >>> a = torch.eye(5, dtype=torch.float64)[[0, 4]]  # all mass on the left, or on the right
    >>> for debiased in (False, True):
    ...     b = ot.barycenter(a, C, 0.02, debiased=debiased)
    ...     print([round(x, 3) for x in b.tolist()])
    [0.0, 0.04, 0.919, 0.04, 0.0]
    [0.0, 0.0, 1.0, 0.0, 0.0]
    """
    function = "barycenter"
    arguments = Arguments(function, "a", a)
    a = arguments.tensor("a", a, (2, 3), "(K, n) or (B, K, n)")
    kind = check_choice(function, "cost", cost, KINDS)
    if C is None:
        C = _between(arguments, a, x, y, kind, debiased)
    elif x is not None or y is not None:
        raise ValueError(f"{function}: expected C or points x, got both")
    else:
        C = _costs(arguments, a, C, debiased)
    K = a.shape[-2]
    if weights is not None:
        weights = arguments.tensor("weights", weights, (1, 2), "(K,) or (B, K)")
        if weights.shape[-1] != K:
            raise ValueError(
                f"{function}: a has {K} histograms but weights has length {weights.shape[-1]}"
            )
    eps = arguments.parameter("eps", eps)
    max_iter = check_count(function, "max_iter", max_iter)
    if tol is None:
        tol = DEBIASED_TOL if debiased else TOL
    tol = check_number(function, "tol", tol, positive=False)
    check_every = check_count(function, "check_every", check_every)
    if not isinstance(debiased, bool):
        raise TypeError(f"{function}: debiased must be a bool, got {type(debiased).__name__}")
    costs = "C" if x is None else "the cost between x and y"
    options = _Options(debiased, max_iter, tol, check_every, costs)
    try:
        b = _barycenter(
            arguments.batched(a, 2).to(torch.float64),
            C.to(torch.float64).expand(arguments.size, *C.shape[-3:]),
            arguments.batched_parameter(eps),
            arguments.batched_weights(weights, K),
            options,
            arguments.mass_tolerance,
        )
    except RuntimeError as error:
        raise memory_error(function, (arguments.size, *C.shape[-3:]), error) from None
    b = b.to(arguments.dtype)
    b = b if arguments.batch is not None else b[0]
    return b.detach().numpy() if arguments.numpy else b


def _costs(arguments: Arguments, a: Tensor, C: Any, debiased: bool) -> Tensor:
    """C as (B or 1, K or 1, n, m)."""
    function = arguments.function
    C = arguments.tensor("C", C, (2, 3, 4), "(n, m), (K, n, m) or (B, K, n, m)")
    if C.shape[-2] != a.shape[-1]:
        raise ValueError(
            f"{function}: C has shape {tuple(C.shape)} but a histograms of {a.shape[-1]} bins"
        )
    if C.dim() > 2 and C.shape[-3] != a.shape[-2]:
        raise ValueError(
            f"{function}: C has shape {tuple(C.shape)} but a has {a.shape[-2]} histograms"
        )
    if debiased and (C.dim() > 2 or C.shape[0] != C.shape[1]):
        raise ValueError(
            f"{function}: debiased, C must have shape (n, n), got {tuple(C.shape)}"
        )
    return C[(None,) * (4 - C.dim())]


def _between(
    arguments: Arguments, a: Tensor, x: Any, y: Any, kind: str, debiased: bool
) -> Tensor:
    """The costs between points, (B or 1, 1, n, m)."""
    function = arguments.function
    if x is None:
        raise ValueError(f"{function}: expected C, or points x, got neither")
    if debiased and y is not None:
        raise ValueError(f"{function}: debiased, the barycenter lies at x; expected no y")
    x = arguments.tensor("x", x, (2, 3), "(n, d) or (B, n, d)")
    (x,) = arguments.points(x)  # once: its gradients are summed before they are rounded
    if y is None:
        y = x
    else:
        (y,) = arguments.points(arguments.tensor("y", y, (2, 3), "(m, d) or (B, m, d)"))
    if x.shape[-2] != a.shape[-1]:
        raise ValueError(
            f"{function}: x has {x.shape[-2]} points but a histograms of {a.shape[-1]} bins"
        )
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{function}: x has points of {x.shape[-1]} coordinates but y of {y.shape[-1]}"
        )
    x, y = (t if t.dim() == 3 else t[None] for t in (x, y))
    return cost_matrix(x, y, kind)[:, None]


class _Options(NamedTuple):
    debiased: bool
    max_iter: int
    tol: float
    check_every: int
    costs: str  # what they are called


def _barycenter(
    a: Tensor, C: Tensor, eps: Tensor, w: Tensor, options: _Options, mass_tol: float
) -> Tensor:
    """The barycenter (B, m) of tensors a (B, K, n), C (B, K or 1, n, m), eps (B,), w (B, K)."""

    def solve(a: Tensor, C: Tensor, eps: Tensor, w: Tensor) -> Tensor:
        if a.is_meta:
            return a.new_empty(len(a), a.shape[1] + 1, C.shape[-1])
        _check_values(a, C, eps, w, mass_tol, options.costs)
        if options.debiased:
            _check_symmetric(C, mass_tol)
        return _solved(a, C, eps, w, options)

    def step(state: Tensor, *parameters: Tensor) -> Tensor:
        a, C, eps, w = parameters
        return _step(state, a, C, eps, w, options.debiased)[1]

    state = fixed_point(solve, step, options.max_iter, a, C, eps, w)
    b = _step(state, a, C, eps, w, options.debiased)[0]
    return b * (a.sum(2).mean(1, keepdim=True) / b.sum(1, keepdim=True))


def _solved(a: Tensor, C: Tensor, eps: Tensor, w: Tensor, options: _Options) -> Tensor:
    """The state at which the iteration stops, (B, K + 1, m)."""
    state = a.new_zeros(len(a), a.shape[1] + 1, C.shape[-1])
    target = a / a.sum(2, keepdim=True)
    b = before = torch.zeros_like(state[:, 0])
    state_before = state
    iteration, error = 0, float("inf")
    while iteration < options.max_iter and not error <= options.tol:
        for _ in range(min(options.check_every, options.max_iter - iteration)):
            before, state_before = b, state
            b, state = _step(state, a, C, eps, w, options.debiased)
            iteration += 1
        # The rows of diag(u) K diag(v): u made them a for the v before.
        sums, log_v = _log_sums(C, eps, state[:, :-1]), state[:, :-1]
        log_ratio = sums - _log_sums(C, eps, state_before[:, :-1])
        error = float((target * torch.expm1(log_ratio)).abs().sum(2).max())
        error = max(error, _rounding(target, sums), _rounding(b[:, None], log_v))
        if options.debiased:
            error = max(error, float((b - before).abs().sum(1).max()))
    if not error <= options.tol:
        warn(
            f"barycenter: not converged after {iteration} iterations: the marginal error "
            f"is {error:.3g} but tol {options.tol:.3g}; raise max_iter, tol or eps"
        )
    return state


def _check_values(
    a: Tensor, C: Tensor, eps: Tensor, w: Tensor, mass_tol: float, costs: str
) -> None:
    function = "barycenter"
    check_positive(function, "eps", eps, finite=True)
    check_weights(function, "a", a.flatten(0, 1))
    check_weights(function, "weights", w)
    check_finite(function, costs, C)
    sums = a.sum(2)
    if bool(((sums - sums[:, :1]).abs() > mass_tol * sums[:, :1]).any()):
        raise ValueError(
            f"{function}: the histograms need equal masses, but those of a are "
            f"{', '.join(f'{float(s):.6g}' for s in sums[0])}"
        )


def _check_symmetric(C: Tensor, tolerance: float) -> None:
    """To rounding: the debiasing measure d with d K d = b is of symmetric kernels."""
    off = (C - C.mT).abs()
    if bool((off > tolerance * C.abs().amax((2, 3), keepdim=True)).any()):
        i, j = divmod(int(off[0, 0].argmax()), C.shape[3])
        raise ValueError(
            f"barycenter: debiased, C must be symmetric, got C[{i}, {j}] = "
            f"{float(C[0, 0, i, j]):.6g} and C[{j}, {i}] = {float(C[0, 0, j, i]):.6g}"
        )


def _log_sums(C: Tensor, eps: Tensor, log_v: Tensor) -> Tensor:
    """log(K v), (B, K, n)."""
    return torch.logsumexp(-C / eps[:, None, None, None] + log_v[..., None, :], 3)


def _rounding(weights: Tensor, logarithms: Tensor) -> float:
    """The share of the mass that rounded logarithms leave open: equal ones tell nothing."""
    off = -torch.expm1(-logarithms.abs() * (torch.finfo(torch.float64).eps / 2))
    return float((weights * off).sum(2).max())


def _log_weighted_sum(a: Tensor, terms: Tensor) -> Tensor:
    """log sum_i a_i exp(terms_ij), differentiable where a is 0, too."""
    shift = torch.where(a[..., None] > 0, terms, -torch.inf).amax(2, keepdim=True).detach()
    powers = torch.exp((terms - shift).clamp_max(LARGEST_EXPONENT))
    return torch.log((a[..., None] * powers).sum(2)) + shift[:, :, 0]


def _step(
    state: Tensor, a: Tensor, C: Tensor, eps: Tensor, w: Tensor, debiased: bool
) -> tuple[Tensor, Tensor]:
    """One iteration: the barycenter of mass 1, and the next state, log v and then log d."""
    log_v, log_d = state[:, :-1], state[:, -1]
    log_K = -C / eps[:, None, None, None]
    a, w = a / a.sum(2, keepdim=True), w / w.sum(1, keepdim=True)
    log_q = _log_weighted_sum(a, log_K - _log_sums(C, eps, log_v)[..., None])
    log_b = (w[:, :, None] * log_q).sum(1) + log_d
    if debiased:
        log_Kd = torch.logsumexp(log_K[:, 0] + log_d[:, None, :], 2)
        log_d = (log_d + log_b - log_Kd) / 2
    else:  # not handed on: sums over all iterations of its gradient would never end
        log_d = torch.zeros_like(log_d)
    new = torch.cat([log_b[:, None] - log_q, log_d[:, None]], 1)
    return torch.exp(log_b), new
