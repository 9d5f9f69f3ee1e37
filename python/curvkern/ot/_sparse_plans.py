"""Transport plans with exact zeros: quadratic regularisation, and k nonzeros a column."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ConvergenceWarning
from . import _plan_arguments as arguments
from . import _plan_newton as plans
from ._sparsemax import check_k, integer


@dataclass(frozen=True)
class SparsePlanResult:
    """A plan with exact zeros, its potentials, and how well it meets the marginals.

    For a batch of costs all tensors have a leading B, and numbers are tensors (B,).

    Attributes
    ----------
    f, g : Tensor
        Potentials, (n,) and (m,): P_ij = max(f_i + g_j - C_ij, 0) / gamma, under a limit k
        on the support. Shifted so that sum a f = sum b g; where a mass is zero, the largest
        that keep the plan zero there.
    value : Tensor
        <P, C> + gamma/2 sum P^2, 0-d and differentiable in a, b and C by the envelope theorem:
        the gradients are f, g and P. A second derivative is refused.
    lower_bound : float
        No plan has a smaller value: the best dual value found. Within rounding of `value` where
        the plan is known to be the optimum.
    marginal_error : float
        L1 error of the row marginals over the total mass; the columns' are exact.
    converged : bool
        Whether `marginal_error` is at most `tol`.
    n_iter : int
        Newton steps, those at larger gamma included.
    k : int or None
        The most nonzeros of a column; None without a limit.
    history : list of (int, float)
        Step and error after it, relative to the problem of that step; of a batch the largest.
    """

    f: Tensor
    g: Tensor
    value: Tensor
    lower_bound: Any
    marginal_error: Any
    converged: Any
    n_iter: Any
    k: int | None
    history: list[tuple[int, float]] = field(repr=False)
    _entries: list[Tensor] = field(repr=False)  # COO, coalesced

    @property
    def plan(self) -> Tensor:
        """The plan as a dense (n, m) tensor, without gradients."""
        dense = [entries.to_dense() for entries in self._entries]
        return torch.stack(dense) if self.f.dim() == 2 else dense[0]

    def plan_sparse(self) -> Tensor | list[Tensor]:
        """The plan as an (n, m) tensor of layout ``torch.sparse_csr``; of a batch a list."""
        with warnings.catch_warnings():  # "Sparse CSR tensor support is in beta state"
            warnings.simplefilter("ignore", UserWarning)
            sparse = [entries.to_sparse_csr() for entries in self._entries]
        return sparse if self.f.dim() == 2 else sparse[0]


def quadratic_ot(
    a: Any,
    b: Any,
    C: Any,
    gamma: float,
    *,
    max_iter: int = 1000,
    tol: float = 1e-9,
    callback: Callable[[int, Tensor], Any] | None = None,
) -> SparsePlanResult:
    r"""Quadratically regularised optimal transport: a sparse plan, and a smooth value.

    .. math::
        \min_{P \ge 0,\ P 1 = a,\ P^\top 1 = b} \langle P, C \rangle
        + \frac{\gamma}{2} \sum_{ij} P_{ij}^2

    Parameters
    ----------
    a, b : Tensor, ndarray or None
        Masses, (n,) and (m,), or (B, n) and (B, m), non-negative and of equal sum; None is
        uniform of sum 1.
    C : Tensor or ndarray
        Costs, (n, m) or (B, n, m); ``+inf`` bars an entry. A batch is solved one problem after
        the other.
    gamma : float
        Strength of the regularisation, > 0. At unit costs and n = m uniform masses the plan is
        dense about from n on, and near the unregularised one from 1 down.
    max_iter : int
        The most Newton steps, over all values of gamma that lead to this one.
    tol : float
        Of ``marginal_error``.
    callback : callable, optional
        Called with the number and the error of each step, for each problem of a batch in turn;
        what it raises propagates.

    Returns
    -------
    SparsePlanResult
        In the dtype of C, computed in float64 on the CPU; tensors lie where C does.

    Raises
    ------
    TypeError
        A wrong kind or dtype: masses and costs have one floating dtype.
    ValueError
        Shapes that do not fit, an empty problem, NaN, a negative or infinite mass, unequal or
        zero total masses, a row or column with mass and no finite cost, devices that differ,
        gamma, tol or max_iter out of range.
    MemoryError
        A problem that does not fit.

    Warns
    -----
    curvkern.ConvergenceWarning
        Once, if the marginals are not met within `tol`.

    Notes
    -----
    Semismooth Newton on the semi-dual [1]_, whose Hessian is the Laplacian of the plan's own
    support; its products cost one pass over the nonzeros. Scaling costs (with gamma) or masses
    (with 1 / gamma) by constants scales the result.

    References
    ----------
    .. [1] M. Blondel, V. Seguy, A. Rolet, "Smooth and Sparse Optimal Transport", AISTATS 2018.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    >>> ot.quadratic_ot(None, None, C, 1.0).plan
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.float64)
    >>> ot.quadratic_ot(None, None, C, 4.0).plan
    tensor([[0.3750, 0.1250],
            [0.1250, 0.3750]], dtype=torch.float64)
    """
    return _solve("quadratic_ot", a, b, C, gamma, None, max_iter, tol, callback)


def sparsity_constrained_ot(
    a: Any,
    b: Any,
    C: Any,
    gamma: float,
    k: int,
    *,
    max_iter: int = 1000,
    tol: float = 1e-9,
    callback: Callable[[int, Tensor], Any] | None = None,
) -> SparsePlanResult:
    r"""Quadratically regularised transport with at most ``k`` nonzeros in each column.

    .. math::
        \min_{P \ge 0,\ P 1 = a,\ P^\top 1 = b,\ \|P_{:j}\|_0 \le k} \langle P, C \rangle
        + \frac{\gamma}{2} \sum_{ij} P_{ij}^2

    A nonconvex problem [1]_. Where the plan of :func:`quadratic_ot` has at most ``k`` nonzeros
    a column it is the solution; elsewhere the result is a plan that is optimal on its support,
    found by pruning, and ``lower_bound`` tells how far from the optimum it can be at most.

    Parameters
    ----------
    a, b, C, gamma, max_iter, tol, callback
        As of :func:`quadratic_ot`.
    k : int
        The most nonzeros of a column, at least 1.

    Returns
    -------
    SparsePlanResult
        Always with at most ``k`` nonzeros a column and exact column marginals. Where no plan
        was found that meets the row marginals too (there may be none: ``k = 1`` forbids to
        split a column), ``converged`` is False, and the plan is that of the dual potentials.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As of :func:`quadratic_ot`, and for ``k``.

    Warns
    -----
    curvkern.ConvergenceWarning
        Once, if the row marginals are not met within `tol`.

    References
    ----------
    .. [1] T. Liu, J. Puigcerver, M. Blondel, "Sparsity-Constrained Optimal Transport", ICLR
       2023.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> C = torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 1.0], [3.0, 1.0, 0.0]])
    >>> result = ot.sparsity_constrained_ot(None, None, C, 20.0, 2)
    >>> result.converged, int((result.plan > 0).sum(0).max())
    (True, 2)
    """
    k = check_k("sparsity_constrained_ot", k)
    return _solve("sparsity_constrained_ot", a, b, C, gamma, k, max_iter, tol, callback)


def _solve(
    function: str,
    a: Any,
    b: Any,
    C: Any,
    gamma: Any,
    k: int | None,
    max_iter: Any,
    tol: Any,
    callback: Any,
) -> SparsePlanResult:
    gamma = _positive(function, "gamma", gamma)
    tol = _positive(function, "tol", tol)
    max_iter = integer(function, "max_iter", max_iter)
    if max_iter < 1:
        raise ValueError(f"{function}: max_iter must be at least 1, got {max_iter}")
    if callback is not None and not callable(callback):
        raise TypeError(f"{function}: callback must be callable, got {type(callback).__name__}")
    a, b, C = arguments.checked(function, a, b, C)
    batched = C.dim() == 3
    problems = list(zip(*(t.unbind(0) if batched else [t] for t in (a, b, C)), strict=True))
    if batched:
        _check_all(function, problems, gamma)
    results = [
        _one(_Solver(function, gamma, k, tol, plans.Steps(max_iter, callback)), *problem)
        for problem in problems
    ]
    result = _stacked(results) if batched else results[0]
    missed = [one for one in results if not one.converged]
    if missed:
        error = max(one.marginal_error for one in missed)
        steps = max(one.n_iter for one in missed)
        where = f" in {len(missed)} of {len(results)} problems" if batched else ""
        warnings.warn(
            f"{function}: the row marginals are off by {error:.3g} after {steps} steps{where}, "
            f"tol={tol:.3g}; raise max_iter={max_iter}, gamma or {'tol' if k is None else 'k'}",
            ConvergenceWarning,
            stacklevel=3,
        )
    return result


def _check_all(
    function: str, problems: list[tuple[Tensor, Tensor, Tensor]], gamma: float
) -> None:
    """Refuse a batch before any work, and say which of its problems is none."""
    for index, problem in enumerate(problems):
        try:
            a, b, C = (t.detach() for t in problem)
            arguments.Scaled(function, a, b, C, gamma)
        except ValueError as error:
            raise ValueError(f"{error}, in problem {index}") from None


def _one(solver: _Solver, a: Tensor, b: Tensor, C: Tensor) -> SparsePlanResult:
    value, f, g, row, column, entries = _Value.apply(solver, a, b, C)
    steps, error = solver.steps, solver.error
    converged = error <= solver.tol and math.isfinite(solver.lower_bound)
    plan = torch.sparse_coo_tensor(
        torch.stack([row, column]), entries, C.shape, check_invariants=False
    ).coalesce()
    bound, k = solver.lower_bound, solver.k
    return SparsePlanResult(
        f, g, value, bound, error, converged, steps.done, k, steps.history, [plan]
    )


def _stacked(results: list[SparsePlanResult]) -> SparsePlanResult:
    """The result of a batch."""

    def column(name: str) -> Tensor:
        parts = [getattr(one, name) for one in results]
        return (
            torch.stack(parts)
            if isinstance(parts[0], Tensor)
            else torch.as_tensor(np.array(parts))
        )

    errors: dict[int, float] = {}
    for step, error in (entry for one in results for entry in one.history):
        errors[step] = max(error, errors.get(step, 0.0))
    return SparsePlanResult(
        column("f"),
        column("g"),
        column("value"),
        column("lower_bound"),
        column("marginal_error"),
        column("converged"),
        column("n_iter"),
        results[0].k,
        sorted(errors.items()),
        [one._entries[0] for one in results],
    )


@dataclass
class _Solver:
    """One solve, in the user's units; what is no tensor is left here."""

    function: str
    gamma: float
    k: int | None
    tol: float
    steps: plans.Steps
    lower_bound: float = math.nan
    error: float = math.nan

    def __call__(self, a: Tensor, b: Tensor, C: Tensor) -> tuple[Tensor, ...]:
        """Value, f, g, and the rows, columns and entries of the nonzeros."""
        scaled = arguments.Scaled(self.function, a, b, C, self.gamma)
        problem, gamma = scaled.problem, scaled.gamma
        at = plans.solve(problem, gamma, self.tol, self.steps)
        bound = at.dual
        if self.k is not None and bool((at.sizes() > self.k).any()):
            at, bound = plans.prune(problem, at, gamma, self.k, self.tol, self.steps)
        row = torch.from_numpy(at.graph.row())
        column = torch.arange(len(at.g)).repeat_interleave(at.sizes())
        entries = torch.from_numpy(at.graph.value()) / gamma
        value = entries @ problem.cost[row, column] + gamma / 2 * (entries @ entries)
        self.lower_bound = scaled.value(bound)
        self.error = problem.error(at, gamma)
        total = torch.tensor(scaled.value(value.item()), dtype=C.dtype, device=C.device)
        potentials = scaled.potentials(at.f, at.g)
        return total, *potentials, *scaled.entries(row, column, entries)


def _positive(function: str, name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    value = float(value)
    if not 0 < value < math.inf:
        raise ValueError(f"{function}: {name} must be positive and finite, got {value}")
    return value


class _Value(torch.autograd.Function):
    """The value, whose gradients are f, g and P by the envelope theorem, and what it had."""

    @staticmethod
    def forward(solver: _Solver, a: Tensor, b: Tensor, C: Tensor) -> tuple[Tensor, ...]:
        return solver(a, b, C)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.function = inputs[0].function
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[1:], *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        a, b, C, f, g, row, column, entries = ctx.saved_tensors
        _, want_a, want_b, want_c = ctx.needs_input_grad

        def gradient(potential: Tensor) -> Tensor:
            result: Tensor = _Once.apply(ctx.function, grad, potential, a, b, C)
            return result

        plan = None
        if want_c:
            plan = gradient(entries.new_zeros(C.shape).index_put((row, column), entries))
        return None, gradient(f) if want_a else None, gradient(g) if want_b else None, plan


class _Once(torch.autograd.Function):
    """grad * potential, where what the potential depends on is known, and not how."""

    @staticmethod
    def forward(function: str, grad: Tensor, potential: Tensor, *_: Tensor) -> Tensor:
        return grad * potential

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.function = inputs[0]

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise RuntimeError(f"{ctx.function}: second derivatives are not implemented")
