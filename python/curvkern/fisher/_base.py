"""What can be asked of a Fisher matrix and its inverse, whatever its rows come from."""

from __future__ import annotations

import abc
import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import _mfac, _mfac_static, _runtime  # noqa: F401  (they define operations)
from .._autograd import derivative_wanted
from . import _checks, _sharding
from ._factor import Factor, inverse_root
from ._inverse import InverseProduct

Method = TypeVar("Method", bound=Callable[..., Any])


def guarded(method: Method) -> Method:
    """One thread at a time, one thread in all in a forked child, and no half-done change."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        with self._lock:
            _runtime.spare_forked_child()
            self._settle()
            try:
                return method(self, *args, **kwargs)
            except BaseException:
                self._settle()
                raise

    return run  # type: ignore[return-value]


class Fisher(abc.ABC):
    """F = damping I + (1/n) G'G for rows G of a window; results are those of exact algebra."""

    def __init__(
        self, d: int, damping: float, window: Tensor, capacity: int, process_group: Any
    ) -> None:
        self.d = d
        self._damping = damping
        self._window = window
        self._group = process_group
        self._factor = Factor(capacity)
        self._version = 0  # of the rows
        self._lock = threading.RLock()

    # What a subclass knows -----------------------------------------------------------------

    @abc.abstractmethod
    def _slots(self) -> Sequence[int]:
        """The rows of the window that take part, oldest first."""

    @abc.abstractmethod
    def _norm(self) -> int:
        """n"""

    @abc.abstractmethod
    def _gram(self) -> Tensor:
        """K = G G', in that order."""

    # Public --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._slots())

    @property
    def damping(self) -> float:
        """The number added to the diagonal."""
        return self._damping

    @property
    def device(self) -> torch.device:
        """Where the window lies."""
        return self._window.device

    @guarded
    def set_damping(self, damping: float) -> None:
        """Change the damping; the next product factors anew, in O(m^3)."""
        self._damping = _checks.positive("set_damping", "damping", damping)

    @guarded
    def ihvp(
        self,
        v: Any,
        *,
        damping: float | None = None,
        out: Tensor | None = None,
        return_info: bool = False,
    ) -> Any:
        r"""The inverse-Hessian-vector product :math:`F^{-1} v`.

        .. math:: F^{-1} v = \bigl(v - G^\top (n \lambda I + G G^\top)^{-1} G v\bigr) / \lambda

        Two passes over the window. It is linear and symmetric in v, and differentiable in v any
        number of times, in both modes and under ``torch.func.vmap``.

        Parameters
        ----------
        v : Tensor or numpy.ndarray
            Shape (d,) or (k, d), float64, float32 or a half, which is computed in float32.
        damping : float, optional
            Another damping for this product alone.
        out : Tensor, optional
            Where to put the result, of the shape, dtype and device of v; not together with
            derivatives.
        return_info : bool
            Whether to return ``(result, {"residual": |F x - v| / |v|})``, at the price of two
            more passes.

        Returns
        -------
        Tensor or numpy.ndarray
            Of the shape and dtype of v.

        Raises
        ------
        TypeError, ValueError
            For a v or out of another kind, dtype, shape or device, or a damping that is not
            positive.
        RuntimeError
            In backward, where the window has been changed since. For ``out`` where a derivative
            is wanted.
        """
        given = _checks.vector("ihvp", "v", v, self.d, self.device)
        at = self._damping if damping is None else _checks.positive("ihvp", "damping", damping)
        if out is not None:
            _checks.output("ihvp", out, given)
        many = _checks.wide(given).reshape(-1, self.d)
        x = self._apply(many, at)
        result = x.reshape(given.shape).to(given.dtype)
        if out is not None:
            result = out.copy_(result)
        answer = result.numpy() if isinstance(v, np.ndarray) else result
        if not return_info:
            return answer
        residual = self._residual(many.detach(), x.detach(), at)
        return answer, {"residual": residual.reshape(given.shape[:-1])}

    @guarded
    def quad_form(self, v: Any) -> Any:
        """``v' F^-1 v``, float64: 0-d for v of shape (d,), (k,) for (k, d).

        Differentiable in v as :meth:`ihvp` is, but not with a process group.
        """
        given = _checks.vector("quad_form", "v", v, self.d, self.device)
        many = _checks.wide(given).reshape(-1, self.d)
        if self._group is None and (torch.compiler.is_compiling() or derivative_wanted(many)):
            many = many.double()
            result = (many * self._apply(many, self._damping)).sum(1)
        else:
            result = self._quadratic(many.detach())
        result = result.reshape(given.shape[:-1])
        return result.numpy() if isinstance(v, np.ndarray) else result

    @guarded
    def diag_inverse(self) -> Tensor:
        """The diagonal of ``F^-1``, (d,), float64: (1 - |w_j|^2) / damping, W = U'^-1 G.

        O(d m^2), in one pass over G; W is not stored.
        """
        if not len(self):
            return torch.full(
                (self.d,), 1 / self._damping, dtype=torch.float64, device=self.device
            )
        squares = torch.ops.curvkern.mfac_whitened_squares(
            self._window, self._slots(), self._root(self._damping)
        )
        return squares.sub_(1).div_(-self._damping)  # in its own memory: fresh pages cost more

    def element(self, i: int, j: int) -> float:
        """One element of ``F^-1``, in O(m^2)."""
        i, j = (_checks.index("element", name, k, self.d) for name, k in (("i", i), ("j", j)))
        return float(self.elements(torch.tensor(i), torch.tensor(j)))

    @guarded
    def elements(self, i: Tensor, j: Tensor) -> Tensor:
        """Elements of ``F^-1`` at integer tensors i and j, which broadcast; float64."""
        i, j = (
            _checks.indices("elements", name, k, self.d).cpu()
            for name, k in (("i", i), ("j", j))
        )
        shape = torch.broadcast_shapes(i.shape, j.shape)
        both = torch.cat([i.flatten(), j.flatten()])
        known, back = torch.unique(both, return_inverse=True)
        at_i = back[: i.numel()].reshape(i.shape).expand(shape)
        at_j = back[i.numel() :].reshape(j.shape).expand(shape)
        result = (at_i == at_j).double()
        if len(self):
            W = self._white_columns(known)
            result = result - (W[at_i] * W[at_j]).sum(-1)
        return result.to(self.device) / self._damping

    @guarded
    def inverse_block(self, index: Tensor) -> Tensor:
        """``F^-1`` of k rows and columns, (k, k), float64, in O(k m (k + m))."""
        index = _checks.indices("inverse_block", "index", index, self.d, 1)
        block = (index[:, None] == index).to(self.device, torch.float64)
        if len(self):
            W = self._white_columns(index)
            block -= (W @ W.T).to(self.device)
        return block / self._damping

    @guarded
    def logdet(self) -> float:
        """log det F."""
        d = int(_sharding.summed(torch.tensor(self.d, device=self.device), self._group))
        value = (d - len(self)) * math.log(self._damping) - len(self) * math.log(self._norm())
        if not len(self):
            return value
        return value + 2 * self._factored(self._damping).half_logdet()

    @guarded
    def gram(self) -> Tensor:
        """``G G'``, (count, count), float64, oldest first."""
        return self._gram().clone()

    def as_linear_operator(self) -> Any:
        """``F^-1`` as a ``scipy.sparse.linalg.LinearOperator`` (d, d). Needs SciPy."""
        from scipy.sparse.linalg import LinearOperator

        def product(x: np.ndarray) -> np.ndarray:
            if np.iscomplexobj(x):
                parts: np.ndarray = product(x.real) + 1j * product(x.imag)
                return parts
            columns = np.asarray(x, dtype=np.float64).reshape(self.d, -1)
            found: np.ndarray = self.ihvp(np.ascontiguousarray(columns.T))
            return found.T.reshape(x.shape)

        return LinearOperator(
            (self.d, self.d), matvec=product, rmatvec=product, matmat=product,
            rmatmat=product, dtype=np.dtype(np.float64),
        )  # fmt: skip

    # Inside --------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Finish a change that an exception, such as Ctrl-C, has cut short."""
        return

    def _apply(self, v: Tensor, damping: float) -> Tensor:
        if torch.compiler.is_compiling():
            return self._traced(v, damping)
        if derivative_wanted(v):
            x: Tensor = InverseProduct.apply(v, self, damping)
            return x
        return self._solved(v, damping)

    def _solved(self, v: Tensor, damping: float) -> Tensor:
        if not len(self):
            return v / damping
        c = self._factored(damping).solve(self._products(v))
        return self._combined(c / -damping, v.dtype, 1 / damping, v)

    def _quadratic(self, v: Tensor) -> Tensor:
        """v' F^-1 v for v of shape (k, d)."""
        square = _sharding.summed(v.double().square().sum(1), self._group)
        if len(self):
            b = self._factored(self._damping).solve(self._products(v), half=True)
            square = square - b.square().sum(1)
        return square / self._damping

    def _traced(self, v: Tensor, damping: float) -> Tensor:
        """The same in plain operations on the whole window, for graphs of torch.compile."""
        if not len(self):
            return v / damping
        G = self._window[list(self._slots())].double()
        system = G @ G.T
        system = system + self._norm() * damping * torch.eye(len(G)).to(G)
        c = torch.cholesky_solve(G @ v.double().T, torch.linalg.cholesky(system))
        return ((v.double() - c.T @ G) / damping).to(v.dtype)

    def _residual(self, v: Tensor, x: Tensor, damping: float) -> Tensor:
        v, back = v.double(), self._multiplied(x.double(), damping)
        off, size = (_sharding.summed(t.square().sum(1), self._group) for t in (back - v, v))
        return torch.where(size > 0, (off / size).sqrt(), off)

    def _multiplied(self, x: Tensor, damping: float) -> Tensor:
        """F x for x of shape (k, d) in float64."""
        if not len(self):
            return damping * x
        return self._combined(self._products(x) / self._norm(), x.dtype, damping, x)

    def _white_columns(self, index: Tensor) -> Tensor:
        """Columns of W = U'^-1 G as rows (k, count), where the factor lies."""
        columns = self._window[:, index.to(self.device)][list(self._slots())].double()
        return self._factored(self._damping).solve(columns.T.contiguous().cpu(), half=True)

    def _factored(self, damping: float) -> Factor:
        """The factor of the present rows, kept if the damping is the object's own."""
        shift = self._norm() * damping
        if self._factor.shift == shift:
            return self._factor
        factor = self._factor if damping == self._damping else Factor(len(self))
        factor.build(self._gram().cpu(), shift)
        return factor

    def _root(self, damping: float) -> Tensor:
        """U'^-1, lower triangular."""
        return inverse_root(self._gram().cpu(), self._norm() * damping).to(self.device)

    def _products(self, v: Tensor) -> Tensor:
        found = torch.ops.curvkern.mfac_products(self._window, self._slots(), v)
        return _sharding.summed(found, self._group)

    def _combined(
        self, c: Tensor, dtype: torch.dtype, alpha: float = 0.0, v: Tensor | None = None
    ) -> Tensor:
        """alpha v + c G, in float64 if dtype is that, else in float32."""
        result: Tensor = torch.ops.curvkern.mfac_combine(
            self._window, self._slots(), c.to(self.device), alpha, v, dtype is torch.float64
        )
        return result
