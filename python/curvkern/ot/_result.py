"""What a solver returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _runtime
from .._arguments import _as_tensor, check_layout, memory_error
from .._masks import all_of
from .._sinkhorn import Problem
from . import _extension, _gap, _kernel, _passes, _plan
from ._arguments import check_count, check_number, widened


class OTResult:
    r"""A solved problem of entropic optimal transport, or a batch of them.

    Numbers are 0-d, vectors (n,), the plan (n, m); with a batch each has a leading B. NumPy
    arguments give NumPy results. What is not stored is computed at each access, from the
    arguments, f and g as they are: an in-place edit of one of these tensors in between raises
    ``RuntimeError``.

    All but the certificates take part in autograd, twice.

    Attributes
    ----------
    f, g : (n,), (m,)
        Potentials: :math:`P_{ij} = a_i b_j \exp((f_i + g_j - C_{ij}) / \varepsilon)`. Two hard
        marginals leave a constant free, which is chosen such that
        :math:`\sum a f / \sum a = \sum b g / \sum b`.
    value : ()
        The optimum, KL terms included.
    marginal_error : ()
        :math:`|P1 - a|_1 + |P^\top 1 - b|_1` over the mass, in float64; with ``rho`` that of
        the optimality conditions, where the marginals are :math:`a e^{-f/\rho}`.
    converged : () of bool
        Whether the result is finite and the error within ``tol``.
    n_iter : () of int
        Iterations done.
    history : list of (int, float)
        Iteration and largest error of the batch at each check; empty under ``torch.compile``.
        In a batch whose problems go over to Newton steps at different times the iterations of
        those come last, and may count from less than the sweeps of others before.
        The error is inf while a small ``eps`` is still approached from larger ones, and, with
        float32 input, good to some 1e-7 until it decides.

    Examples
    --------
    >>> import numpy as np
    >>> from curvkern import ot
    >>> rng = np.random.default_rng(0)
    >>> C = rng.random((4, 5))
    >>> result = ot.sinkhorn(None, None, C, 0.05)
    >>> print(f"{result.value:.6f} {result.cost:.6f} {result.kl:.6f} {result.converged}")
    0.312728 0.267402 0.906511 True
    >>> bool(result.gap < 1e-9)  # the value is right to that
    True
    >>> again = ot.sinkhorn(None, None, C, 0.05, init=result)
    >>> int(again.n_iter) < int(result.n_iter)
    True
    """

    def __init__(
        self,
        problem: Problem,
        f: Tensor,
        g: Tensor,
        value: Tensor,
        error: Tensor,
        n_iter: Tensor,
        converged: Tensor,
        history: list[tuple[int, float]],
        *,
        dtype: torch.dtype,
        batched: bool,
        numpy: bool,
    ) -> None:
        self._problem = problem
        self._f = f
        self._g = g
        self._value = value
        self._dtype = dtype
        self._batched = batched
        self._numpy = numpy
        self._versions = [_version(t) for t in (*problem, f, g) if isinstance(t, Tensor)]
        # Of arrays nobody counts the edits: they get potentials of their own.
        self.f = self._shown(f.clone() if numpy else f)
        self.g = self._shown(g.clone() if numpy else g)
        self.value = self._shown(value)
        self.marginal_error = self._shown(error, error.dtype)
        self.n_iter = self._shown(n_iter, n_iter.dtype)
        self.converged = self._shown(converged, converged.dtype)
        self.history = history

    @property
    def plan(self) -> Any:
        """The transport plan P, (n, m)."""
        problem = self._current()
        try:
            return self._shown(_kernel.plan(problem, self._f, self._g))
        except RuntimeError as error:
            shape = *problem.a.shape, problem.b.shape[1]
            raise memory_error("plan", shape, error) from None

    @property
    def cost(self) -> Any:
        """<P, C>."""
        return self._shown(_passes.linear_cost(self._current(), self._f, self._g))

    @property
    def kl(self) -> Any:
        r"""KL(P | a b'), with :math:`KL(P|Q) = \sum P \log(P/Q) - \sum P + \sum Q`."""
        return self._shown(_passes.divergence(self._current(), self._f, self._g))

    @property
    def gap(self) -> Any:
        """Primal minus dual objective, a bound of the error of the value that needs no trust.

        The primal point is the plan rounded to the hard marginals (Altschuler, Weed and
        Rigollet, NeurIPS 2017), next to forbidden pairs by a step of Newton's method. Infinite
        where that fails.
        """
        with torch.no_grad():
            gap = _gap.gap(self._current(), self._f, self._g)
        return self._shown(gap, gap.dtype)

    def apply(self, v: Any, *, transpose: bool = False) -> Any:
        """P v, or P' v, without the plan in memory.

        Parameters
        ----------
        v : Tensor or ndarray, shape (m,) or (m, k), with a batch (B, m) or (B, m, k)
            What to transport; n in place of m where transposed.
        transpose : bool
            Whether to transport from the first side to the second.

        Returns
        -------
        Tensor or ndarray, shape (n,) or (n, k), with a batch (B, n) or (B, n, k)

        Raises
        ------
        TypeError, ValueError
            A v of another kind, dtype or shape.

        Examples
        --------
        >>> import torch
        >>> from curvkern import ot
        >>> result = ot.sinkhorn(None, None, torch.eye(3, dtype=torch.float64), 0.5)
        >>> print(result.apply(torch.ones(3, dtype=torch.float64)))
        tensor([0.3333, 0.3333, 0.3333], dtype=torch.float64)
        """
        problem = self._current()
        v = self._given("apply", "v", v)
        length = (problem.a if transpose else problem.b).shape[1]
        lead = (len(problem.a), length) if self._batched else (length,)
        if v.shape[: len(lead)] != lead or v.dim() > len(lead) + 1:
            shape = ", ".join(map(str, lead))
            raise ValueError(
                f"apply: v must have shape {lead} or ({shape}, k), got {tuple(v.shape)}"
            )
        single = v.dim() == len(lead)
        wide = widened("apply", v)
        wide = wide if self._batched else wide[None]
        wide = wide[..., None] if single else wide
        moved = _passes.applied(problem, self._f, self._g, wide, transpose)
        return self._shown(moved[..., 0] if single else moved)

    def potential_f(self, x: Any) -> Any:
        r"""The first potential at any points, for results between points.

        .. math::
            f(x) = -\frac{\varepsilon}{1 + \varepsilon / \rho_a}
            \log \sum_j b_j \exp\frac{g_j - c(x, y_j)}{\varepsilon}

        which at the points of the result is its ``f``, as far as it has converged.

        Parameters
        ----------
        x : Tensor or ndarray, shape (k, d), with a batch (k, d) for all or (B, k, d)
            The points.

        Returns
        -------
        Tensor or ndarray, shape (k,), with a batch (B, k)
            Differentiable in x and in all that the result depends on.

        Raises
        ------
        TypeError, ValueError
            An x of another kind, dtype, shape or device, or not finite; a result of
            :func:`sinkhorn`, which knows no costs but those between its points.

        References
        ----------
        .. [1] J. Feydy, T. Sejourne, F.-X. Vialard, S. Amari, A. Trouve, G. Peyre,
           "Interpolating between Optimal Transport and MMD using Sinkhorn Divergences",
           AISTATS 2019, section 3.1.

        Examples
        --------
        >>> import torch
        >>> from curvkern import ot
        >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> result = ot.sinkhorn_points(x, x + 2, 0.1)
        >>> bool((result.potential_f(x) - result.f).abs().max() < 1e-8)
        True
        >>> print(result.potential_f(torch.tensor([[-1.0], [0.5]], dtype=torch.float64)))
        tensor([9.0347, 2.2153], dtype=torch.float64)
        """
        problem, points = self._between("potential_f", x, 0)
        return self._shown(_extension.potential(problem, self._g, points))

    def potential_g(self, y: Any) -> Any:
        """The second potential at any points, as :meth:`potential_f` the first.

        Parameters
        ----------
        y : Tensor or ndarray, shape (k, d), with a batch (k, d) for all or (B, k, d)
            The points.

        Returns
        -------
        Tensor or ndarray, shape (k,), with a batch (B, k)

        Raises
        ------
        TypeError, ValueError
            As in :meth:`potential_f`.

        Examples
        --------
        >>> import torch
        >>> from curvkern import ot
        >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> result = ot.sinkhorn_points(x, x + 2, 0.1)
        >>> bool((result.potential_g(x + 2) - result.g).abs().max() < 1e-8)
        True
        """
        problem, points = self._between("potential_g", y, 1)
        return self._shown(_extension.potential(problem, self._f, points))

    def transport(self, x: Any, *, transpose: bool = False) -> Any:
        r"""The barycentric map of the plan at any points, for results between points.

        .. math::
            T(x) = \frac{\sum_j b_j e_j(x)\, y_j}{\sum_j b_j e_j(x)}, \qquad
            e_j(x) = \exp\frac{g_j - c(x, y_j)}{\varepsilon}

        the mean of where the mass at x goes. For squared distances it is Brenier's map, of a
        plan with blur: :math:`x - \nabla f(x) / 2` for "sqeuclidean".

        Parameters
        ----------
        x : Tensor or ndarray, shape (k, d), with a batch (k, d) for all or (B, k, d)
            The points.
        transpose : bool
            Whether to map from the second side to the first.

        Returns
        -------
        Tensor or ndarray, of the shape of x; with a batch (B, k, d)
            Differentiable in x and in all that the result depends on.

        Raises
        ------
        TypeError, ValueError
            As in :meth:`potential_f`.

        References
        ----------
        .. [1] A. Pooladian, J. Niles-Weed, "Entropic estimation of optimal transport maps",
           2021, arXiv:2109.12004.

        Examples
        --------
        >>> import torch
        >>> from curvkern import ot
        >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> result = ot.sinkhorn_points(x, x + 2, 0.1)
        >>> print(result.transport(torch.tensor([[-1.0], [0.5]], dtype=torch.float64)).T)
        tensor([[2.0000, 2.5000]], dtype=torch.float64)
        """
        problem, points = self._between("transport", x, int(bool(transpose)))
        return self._shown(
            _extension.barycentric(problem, self._f if transpose else self._g, points)
        )

    def plan_sparse(self, *, threshold: float | None = None, k: int | None = None) -> Any:
        """The large entries of the plan in CSR, without the plan in memory.

        Parameters
        ----------
        threshold : float, optional
            Keep the entries above it.
        k : int, optional
            Keep the k largest entries of each row, as far as they are not 0.

        Returns
        -------
        Tensor
            Of layout ``torch.sparse_csr`` and without a graph; with a batch a list of them; for
            NumPy arguments ``scipy.sparse.csr_array``.

        Raises
        ------
        TypeError, ValueError
            Not exactly one of the two; a negative threshold, or a k below 1.
        ImportError
            NumPy arguments and no SciPy, which curvkern does not depend on.

        Examples
        --------
        >>> import torch
        >>> from curvkern import ot
        >>> C = 1 - torch.eye(3, dtype=torch.float64)
        >>> ot.sinkhorn(None, None, C, 0.1).plan_sparse(threshold=0.1).values()
        tensor([0.3333, 0.3333, 0.3333], dtype=torch.float64)
        """
        if (threshold is None) == (k is None):
            raise ValueError("plan_sparse: pass either threshold or k")
        if threshold is not None:
            threshold = check_number("plan_sparse", "threshold", threshold, positive=False)
        if k is not None:
            k = check_count("plan_sparse", "k", k)
        with torch.no_grad():
            found = _plan.sparse(self._current(), self._f, self._g, threshold, k)
        plans = [self._csr(plan) for plan in found]
        return plans if self._batched else plans[0]

    def _between(self, function: str, x: Any, side: int) -> tuple[Problem, Tensor]:
        """The problem from a side to the other, and points on that side, (B, k, d)."""
        problem = self._current()
        if problem.x is None:
            raise ValueError(
                f"{function}: the result is of a matrix of costs, which says nothing about "
                "other points; use sinkhorn_points"
            )
        name = "y" if function == "potential_g" else "x"
        wide = widened(function, self._given(function, name, x))
        batch, dims = len(problem.a), problem.x.shape[2]
        ranks = (2, 3) if self._batched else (2,)
        lead = "" if wide.dim() != 3 else f"{batch}, "
        fits = wide.dim() in ranks and wide.shape[-1] == dims and wide.shape[-2] > 0
        if not fits or (wide.dim() == 3 and len(wide) != batch):
            raise ValueError(
                f"{function}: {name} must have shape ({lead}k, {dims}), got {tuple(wide.shape)}"
            )
        if all_of(torch.isfinite(wide)) is False:
            raise ValueError(f"{function}: {name} must be finite, got nan or inf")
        points = wide.expand(batch, *wide.shape[-2:])
        return (_extension.flipped(problem) if side else problem), points

    def _given(self, function: str, name: str, v: Any) -> Tensor:
        """A floating tensor or array, of the kind of the arguments."""
        if self._numpy and isinstance(v, np.ndarray) and v.dtype.kind == "f":
            return _as_tensor(function, name, v)
        if self._numpy or not isinstance(v, Tensor) or not v.dtype.is_floating_point:
            wanted = "array" if self._numpy else "tensor"
            raise TypeError(f"{function}: {name} must be a floating {wanted}, got {_kind(v)}")
        check_layout(function, name, v)
        if v.device != self._f.device:
            raise ValueError(
                f"{function}: the result is on {self._f.device} but {name} is on {v.device}"
            )
        return v

    def _start(self) -> tuple[Tensor, Tensor]:
        """The potentials in float64, (B, n) and (B, m), to start another solve from."""
        return self._f.detach(), self._g.detach()

    def _mass_term(self) -> Tensor:
        """eps (sum a - sum b)^2 / 2, which the debiased divergence adds, (B,)."""
        problem = self._current()
        return problem.eps * (problem.a.sum(1) - problem.b.sum(1)) ** 2 / 2

    def __repr__(self) -> str:
        n, m = self._problem.a.shape[1], self._problem.b.shape[1]
        if not self._numpy and all_of(self.converged) is None:  # vmap, compile, meta
            batch = f"batch={len(self._f)}, " if self._batched else ""
            return f"OTResult({batch}n={n}, m={m}, no values)"
        if not self._batched:
            state = "converged" if self.converged else "not converged"
            return (
                f"OTResult(n={n}, m={m}, value={_number(self.value):.6g}, "
                f"error={_number(self.marginal_error):.2g}, {state}, n_iter={int(self.n_iter)})"
            )
        return (
            f"OTResult(batch={len(self._f)}, n={n}, m={m}, "
            f"error={float(self.marginal_error.max()):.2g}, "
            f"{int(self.converged.sum())} converged, n_iter={int(self.n_iter.max())})"
        )

    def _current(self) -> Problem:
        """The problem, if its tensors are still those that were solved."""
        _runtime.spare_forked_child()
        tensors = (*self._problem, self._f, self._g)
        if [_version(t) for t in tensors if isinstance(t, Tensor)] != self._versions:
            raise RuntimeError(
                "OTResult: an argument of the solve, f or g was modified in place since; "
                "clone it first"
            )
        return self._problem

    def _shown(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Any:
        """As the user sees it: in the dtype, the batch and the kind of the arguments."""
        tensor = tensor.to(self._dtype if dtype is None else dtype)
        if not self._batched:
            tensor = tensor[0]
        return tensor.detach().numpy()[()] if self._numpy else tensor

    def _csr(self, plan: Tensor) -> Any:
        plan = plan.to(self._dtype)
        if not self._numpy:
            return plan
        try:
            from scipy.sparse import csr_array
        except ImportError as error:
            raise ImportError(
                "plan_sparse: with NumPy arguments it needs SciPy; install it, or pass tensors"
            ) from error
        parts = (plan.values(), plan.col_indices(), plan.crow_indices())
        return csr_array(tuple(part.numpy() for part in parts), shape=tuple(plan.shape))


def _version(tensor: Tensor) -> int:
    """The count of in-place edits, where there is one."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return tensor._version


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _kind(value: object) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} of {value.dtype}"
    return type(value).__name__
