"""The public solvers. Conventions, gradients and errors: :mod:`curvkern.ot`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arguments import memory_error
from .._sinkhorn import Problem
from . import _gradients
from ._arguments import Arguments, check_choice, check_count, check_method, check_number
from ._kernel import KINDS, gauged
from ._result import OTResult
from ._solving import Options, watching

Callback = Callable[[int, Tensor], object]


class Costs(NamedTuple):
    """A matrix, or points with a cost function; batched or not."""

    cost: Tensor | None
    x: Tensor | None = None
    y: Tensor | None = None
    kind: str = ""
    scale: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """The numbers n and m of points."""
        if self.cost is not None:
            return self.cost.shape[-2], self.cost.shape[-1]
        assert self.x is not None
        assert self.y is not None
        return self.x.shape[-2], self.y.shape[-2]


def sinkhorn(
    a: Any,
    b: Any,
    C: Any,
    eps: Any,
    *,
    method: str = "auto",
    rho: Any = None,
    max_iter: int = 10_000,
    tol: float = 1e-9,
    init: Any = None,
    callback: Callback | None = None,
    check_every: int = 10,
) -> OTResult:
    r"""Entropic optimal transport between weights a and b with the cost matrix C.

    .. math::
        \min_{P \ge 0} \; \langle P, C \rangle + \varepsilon\, KL(P \,|\, a \otimes b)
        \quad\text{subject to}\quad P 1 = a, \; P^\top 1 = b

    With ``rho`` the constraints become penalties
    :math:`\rho_a KL(P 1 | a) + \rho_b KL(P^\top 1 | b)`.

    Parameters
    ----------
    a, b : Tensor or ndarray, shape (n,) or (B, n), and (m,) or (B, m); or None
        Weights, >= 0; exact zeros are legal. None stands for 1/n each.
    C : Tensor or ndarray, shape (n, m) or (B, n, m)
        Costs of any sign; ``+inf`` forbids a pair.
    eps : float, or Tensor of shape () or (B,)
        Regularisation, > 0, in units of the cost.
    method : {"auto", "sinkhorn", "newton"}
        "sinkhorn": sweeps over rows and columns. "newton": steps on the dual along a path of
        falling eps, at a cost that hardly depends on eps. "auto": sweeps, and Newton steps
        with the problems for which the sweeps turn out to be slow; where those get no
        further, sweeps again.
    rho : float, Tensor of shape () or (B,), a pair of them, or None
        Penalty of the marginals, > 0; None or ``inf`` for a hard one.
    max_iter : int
        Most iterations; a sweep over rows and columns and a Newton step count as one each.
    tol : float
        Goal for the marginal error, :math:`|P1 - a|_1 + |P^\top 1 - b|_1` over the mass.
    init : OTResult or pair of potentials (f, g), optional
        Where to start.
    callback : callable, optional
        Called at each check with the iteration and the errors (B,), for Newton steps when they
        are done; what it raises propagates.
    check_every : int
        Sweeps between two checks of the error.

    Returns
    -------
    OTResult
        Value, potentials, plan and their certificates. Without a batch its numbers are 0-d.

    Raises
    ------
    TypeError
        An argument of the wrong kind or dtype.
    ValueError
        Shapes that do not fit; NaN; negative weights; eps or rho not positive; unequal masses
        in a balanced problem; a point with mass and only infinite costs.
    MemoryError
        A problem that does not fit.

    Warns
    -----
    ConvergenceWarning
        Once, if a problem has not reached ``tol`` within ``max_iter``.

    Notes
    -----
    Not converging is no error: what is returned is finite. Derivatives are explained in
    :mod:`curvkern.ot`.

    References
    ----------
    .. [1] M. Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport",
       NeurIPS 2013.
    .. [2] L. Chizat, G. Peyre, B. Schmitzer, F.-X. Vialard, "Scaling Algorithms for Unbalanced
       Optimal Transport Problems", Math. Comp. 87, 2018.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> C = torch.tensor([[0.0, 1.0, 4.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    >>> result = ot.sinkhorn(None, None, C, 0.1)
    >>> print(result.plan.sum(0))
    tensor([0.3333, 0.3333, 0.3333], dtype=torch.float64)
    >>> print(f"{float(result.cost):.6f}, converged: {bool(result.converged)}")
    0.500000, converged: True
    """
    return solve_matrix(
        "sinkhorn", a, b, C, eps, method, rho, max_iter, tol, init, callback, check_every
    )


def solve_matrix(
    function: str,
    a: Any,
    b: Any,
    C: Any,
    eps: Any,
    method: Any = "auto",
    rho: Any = None,
    max_iter: Any = 10_000,
    tol: Any = 1e-9,
    init: Any = None,
    callback: Any = None,
    check_every: Any = 10,
) -> OTResult:
    """:func:`sinkhorn` for the function that messages name."""
    arguments = Arguments(function, "C", C)
    C = arguments.tensor("C", C, (2, 3), "(n, m) or (B, n, m)")
    n, m = C.shape[-2:]
    shape = f"C has shape {tuple(C.shape)}"
    a, b = arguments.weights("a", a, n, shape), arguments.weights("b", b, m, shape)
    options = solver_options(function, method, max_iter, tol, check_every)
    return solve(arguments, Costs(arguments.costs(C)), a, b, eps, rho, options, init, callback)


def sinkhorn_points(
    x: Any,
    y: Any,
    eps: Any,
    *,
    a: Any = None,
    b: Any = None,
    cost: str = "sqeuclidean",
    scale: float = 1.0,
    method: str = "auto",
    rho: Any = None,
    max_iter: int = 10_000,
    tol: float = 1e-9,
    init: Any = None,
    callback: Callback | None = None,
    check_every: int = 10,
) -> OTResult:
    r"""Entropic optimal transport between two clouds of points.

    As :func:`sinkhorn` with :math:`C_{ij} = s\, c(x_i, y_j)`, which is not held in memory: a
    solve and all derivatives but those of ``plan`` need O(n + m), and up to 4 million pairs of
    points at most 32 MiB for each of what serves again. On the CPU Newton steps hold the costs,
    so "auto" takes them up to that number and sweeps on beyond, where "newton" is refused. On
    CUDA they hold some 3 kB a point, and "auto" takes them up to a million points.

    Parameters
    ----------
    x, y : Tensor or ndarray, shape (n, d) or (B, n, d), and (m, d) or (B, m, d)
        The points.
    eps : float, or Tensor of shape () or (B,)
        Regularisation, > 0, in units of the cost.
    a, b : Tensor or ndarray, shape (n,) or (B, n), and (m,) or (B, m), optional
        Weights, >= 0; None stands for 1/n each.
    cost : {"sqeuclidean", "half_sqeuclidean", "euclidean", "l1"}
        :math:`|x-y|^2`, :math:`|x-y|^2/2`, :math:`|x-y|` or :math:`|x-y|_1`.
    scale : float
        The factor s, > 0.
    method, rho, max_iter, tol, init, callback, check_every
        As in :func:`sinkhorn`.

    Returns
    -------
    OTResult

    Raises
    ------
    TypeError, ValueError, MemoryError
        As in :func:`sinkhorn`; points must be finite, and so must be their costs.

    Warns
    -----
    ConvergenceWarning
        Once, if a problem has not reached ``tol`` within ``max_iter``.

    Notes
    -----
    Where two points coincide the slopes of "euclidean" and "l1" are taken to be 0.

    References
    ----------
    .. [1] J. Feydy, "Geometric data analysis, beyond convolutions", PhD thesis, Universite
       Paris-Saclay, 2020, chapter 3.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64, requires_grad=True)
    >>> y = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    >>> ot.sinkhorn_points(x, y, 0.01).value.backward()
    >>> print(x.grad)
    tensor([[-0.5000],
            [-1.0000]], dtype=torch.float64)
    """
    function = "sinkhorn_points"
    arguments = Arguments(function, "x", x)
    x, y, a, b = points_and_weights(arguments, x, y, a, b)
    kind = check_choice(function, "cost", cost, KINDS)
    scale = check_number(function, "scale", scale, positive=True)
    options = solver_options(function, method, max_iter, tol, check_every)
    costs = Costs(None, x, y, kind, scale)
    return solve(arguments, costs, a, b, eps, rho, options, init, callback)


def points_and_weights(
    arguments: Arguments,
    x: Any,
    y: Any,
    a: Any,
    b: Any,
    names: tuple[str, str] = ("x", "y"),
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Two clouds of one dimension, in float64, and weights that fit them."""
    first, second = names
    x = arguments.tensor(first, x, (2, 3), "(n, d) or (B, n, d)")
    y = arguments.tensor(second, y, (2, 3), "(m, d) or (B, m, d)")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{arguments.function}: {first} has points in {x.shape[-1]} dimensions but "
            f"{second} in {y.shape[-1]}"
        )
    a = arguments.weights("a", a, x.shape[-2], f"{first} has shape {tuple(x.shape)}")
    b = arguments.weights("b", b, y.shape[-2], f"{second} has shape {tuple(y.shape)}")
    x, y = arguments.points(x, y)
    return x, y, a, b


def solver_options(
    function: str, method: Any, max_iter: Any, tol: Any, check_every: Any = 10
) -> Options:
    return Options(
        function,
        check_method(function, method),
        check_count(function, "max_iter", max_iter),
        check_number(function, "tol", tol, positive=False),
        check_count(function, "check_every", check_every),
    )


def solve(
    arguments: Arguments,
    costs: Costs,
    a: Tensor | None,
    b: Tensor | None,
    eps: Any,
    rho: Any,
    options: Options,
    init: Any = None,
    callback: Callback | None = None,
) -> OTResult:
    """The result for checked tensors, batched or not."""
    function = arguments.function
    if callback is not None and not callable(callback):
        raise TypeError(f"{function}: callback must be callable, got {type(callback).__name__}")
    eps = arguments.parameter("eps", eps)
    rho = arguments.pair("rho", rho)
    n, m = costs.size
    start = _start(arguments, init, n, m)
    options = options._replace(mass_tol=arguments.mass_tolerance, narrow=arguments.narrow)

    def batched(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else arguments.batched(tensor, 2)

    try:
        problem = Problem(
            arguments.batched_weights(a, n),
            arguments.batched_weights(b, m),
            batched(costs.cost),
            batched(costs.x),
            batched(costs.y),
            costs.kind,
            costs.scale,
            arguments.batched_parameter(eps),
            torch.stack([arguments.batched_parameter(r) for r in rho], 1),
        )
        return _solve(arguments, problem, start, callback, options)
    except RuntimeError as error:
        raise memory_error(function, (arguments.size, n, m), error) from None


def _start(
    arguments: Arguments, init: Any, n: int, m: int
) -> tuple[Tensor | None, Tensor | None]:
    """The potentials of ``init``, (B, n) and (B, m)."""
    if init is None:
        return None, None
    function = arguments.function
    pair = init._start() if isinstance(init, OTResult) else init
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(
            f"{function}: init must be an OTResult or a pair (f, g), got {type(init).__name__}"
        )
    if isinstance(init, OTResult):
        checked = [t[0] if len(t) == 1 else t for t in pair]
    else:
        checked = [arguments.potential(name, t) for name, t in zip("fg", pair, strict=True)]
    out = []
    for name, tensor, length in zip("fg", checked, (n, m), strict=True):
        if tensor.shape[-1] != length or (tensor.dim() == 2 and len(tensor) != arguments.size):
            raise ValueError(
                f"{function}: {name} of init has shape {tuple(tensor.shape)}, expected "
                f"({length},) or ({arguments.size}, {length})"
            )
        wide = tensor.detach().to(torch.float64)
        out.append(wide.expand(arguments.size, length))
    return out[0], out[1]


def _solve(
    arguments: Arguments,
    problem: Problem,
    start: tuple[Tensor | None, Tensor | None],
    callback: Callback | None,
    options: Options,
) -> OTResult:
    if torch.compiler.is_dynamo_compiling():
        from . import _compile  # noqa: F401
    with watching(callback) as watch:
        f, g, error, n_iter, converged = _gradients.potentials(*problem, *start, *options)
    f, g = gauged(f, g, problem.a, problem.b, problem.rho)
    value = _gradients.value(*problem, f, g)
    return OTResult(
        problem,
        f,
        g,
        value,
        error,
        n_iter,
        converged,
        watch.history,
        dtype=arguments.dtype or torch.float64,
        batched=arguments.batch is not None,
        numpy=arguments.numpy,
    )
