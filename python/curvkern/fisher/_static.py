"""The inverse Fisher matrix of a given set of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _mfac_tiles
from .._arguments import check_layout
from . import _checks, _sharding
from ._base import Fisher, guarded
from ._factor import Factor

NAME = "StaticFisher"
REMEMBERED = 0.05  # of the bytes of G, for columns of W


class StaticFisher(Fisher):
    r"""Inverse products with the Fisher matrix of gradients :math:`G` (m, d), which is kept.

    .. math:: F = \lambda I + \frac{1}{n} G^\top G,
        \qquad F^{-1} = \frac{1}{\lambda} (I - W^\top W), \quad W = U^{-\top} G, \quad
        U^\top U = n \lambda I + G G^\top

    in place of the paper's recursion, which reads two matrices as large as G for every row.
    The Gram matrix takes one pass over G, the diagonal of the inverse another one in which W is
    never stored; both are float64, whatever G is, so that a small damping costs no digits.

    Make one with :meth:`from_gradients`.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of
       Second-Order Information", NeurIPS 2021, arXiv:2107.03356, section 3.1.
    """

    @classmethod
    def from_gradients(
        cls,
        G: Any,
        damping: float,
        *,
        block_size: int | None = None,
        n: int | None = None,
        whiten: bool = False,
        process_group: Any = None,
    ) -> StaticFisher:
        r"""The Fisher matrix of the rows of G; O(d m^2).

        Parameters
        ----------
        G : Tensor or numpy.ndarray
            Gradients, shape (m, d), float64, float32 or bfloat16 (float16 becomes float32), all
            finite. A contiguous tensor is kept, not copied: it must not be changed in place.
            With a process group these are this rank's columns.
        damping : float
            :math:`\lambda > 0`.
        block_size : int, optional
            Keep only blocks of so many consecutive columns on the diagonal of F. What products
            and elements need of them is kept from their first use on: 8 d min(block_size, m)
            bytes.
        n : int, optional
            What the sum is divided by; m unless given.
        whiten : bool
            Keep W, 8 d m bytes: an element of the inverse then always takes O(m). Without it an
            element takes O(m^2) when a column is first asked for, and O(m) again as long as the
            column is remembered, which up to a twentieth of the bytes of G are.
        process_group : torch.distributed.ProcessGroup, optional
            The ranks that share the columns.

        Returns
        -------
        StaticFisher

        Raises
        ------
        TypeError, ValueError
            For gradients of another kind or not finite, a damping that is not positive, or
            sizes below 1.

        Examples
        --------
        >>> import torch
        >>> from curvkern.fisher import StaticFisher
        >>> G = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> fisher = StaticFisher.from_gradients(G, damping=0.5)  # F = diag(1, 2.5, 0.5)
        >>> fisher.ihvp(torch.ones(3))
        tensor([1.0000, 0.4000, 2.0000])
        >>> fisher.diag_inverse()
        tensor([1.0000, 0.4000, 2.0000], dtype=torch.float64)
        >>> fisher.element(0, 1)
        0.0
        """
        if block_size is None:
            return cls(G, damping, n=n, whiten=whiten, process_group=process_group)
        from ._static_blocks import BlockStaticFisher

        if whiten or process_group is not None:
            other = "whiten" if whiten else "process_group"
            raise ValueError(f"{NAME}: block_size and {other} do not go together")
        return BlockStaticFisher(G, damping, block_size=block_size, n=n)

    def __init__(
        self,
        G: Any,
        damping: float,
        *,
        n: int | None = None,
        whiten: bool = False,
        process_group: Any = None,
    ) -> None:
        G = _gradients(G)
        damping = _checks.positive(NAME, "damping", damping)
        m, d = G.shape
        self._n = max(m, 1) if n is None else _checks.count(NAME, "n", n)
        super().__init__(d, damping, G, m, process_group)
        self._order = list(range(m))
        self._written = _write_count(G)
        self._columns: dict[int, Tensor] = {}  # of W
        self._whitens = whiten
        self._prepare()
        self._whitened = self._whiten() if whiten else None

    def __repr__(self) -> str:
        return (
            f"{NAME}(d={self.d}, m={len(self)}, damping={self._damping}, "
            f"dtype={self._window.dtype})"
        )

    @property
    def block_size(self) -> int | None:
        """Columns of a block of F, if it is block-diagonal."""
        return None

    @guarded
    def set_damping(self, damping: float) -> None:
        """Change the damping: O(m^3), and O(d m^2) for what was whitened."""
        super().set_damping(damping)
        self._columns.clear()
        if self._whitens:
            self._whitened = self._whiten()

    @guarded
    def diag_inverse(self) -> Tensor:
        """The diagonal of ``F^-1``, (d,), float64: (1 - |w_j|^2) / damping, W = U'^-1 G.

        O(d m^2), in one pass over G where W is not kept.
        """
        self._require_unwritten()
        if self._whitened is None:
            diagonal: Tensor = super().diag_inverse()
            return diagonal
        return (1 - self._whitened.square().sum(1)) / self._damping

    @guarded
    def element(self, i: int, j: int) -> float:
        """One element of ``F^-1``, in O(m) where both columns of W are known."""
        i, j = (_checks.index("element", name, k, self.d) for name, k in (("i", i), ("j", j)))
        return (float(i == j) - float(self._column(i) @ self._column(j))) / self._damping

    def __deepcopy__(self, memo: dict[int, Any]) -> StaticFisher:
        copy = self._copied(self._window.clone())
        memo[id(self)] = copy
        return copy

    def __reduce__(self) -> Any:
        raise TypeError(f"{NAME}: not to be pickled; save the gradients and the damping")

    # Inside --------------------------------------------------------------------------------

    def _copied(self, G: Tensor) -> StaticFisher:
        return type(self)(
            G, self._damping, n=self._n, whiten=self._whitens, process_group=self._group
        )

    def _slots(self) -> Sequence[int]:
        return self._order

    def _norm(self) -> int:
        return self._n

    def _gram(self) -> Tensor:
        return self._K

    def _prepare(self) -> None:
        """K, whose diagonal is finite if the gradients and their squares are."""
        K = torch.ops.curvkern.mfac_gram(self._window, self._slots())
        self._K: Tensor = _sharding.summed(K, self._group)
        _refuse_unless(bool(torch.isfinite(self._K.diagonal()).all()))

    def _require_unwritten(self) -> None:
        if _write_count(self._window) != self._written:
            raise RuntimeError(
                f"{NAME}: the gradients have been changed in place since they were passed; "
                "pass a clone to from_gradients"
            )

    def _factored(self, damping: float) -> Factor:
        self._require_unwritten()
        return super()._factored(damping)

    def _whiten(self) -> Tensor:
        W = torch.empty(self.d, len(self), dtype=torch.float64, device=self.device)
        if len(self):
            root = self._root(self._damping)
            for columns in _mfac_tiles.columns_of(self.d):
                torch.matmul(self._window[:, columns].double().T, root.T, out=W[columns])
        return W

    def _column(self, j: int) -> Tensor:
        if self._whitened is not None:
            return self._whitened[j]
        if j not in self._columns:
            w = torch.zeros(0, dtype=torch.float64)
            if len(self):
                g = self._window[:, j].double()[None]
                w = self._factored(self._damping).solve(g, half=True)[0]
            most = REMEMBERED * self._window.numel() * self._window.itemsize
            if (len(self._columns) + 1) * w.numel() * 8 > max(most, 16 * 8 * len(self)):
                self._columns.clear()
            self._columns[j] = w
        return self._columns[j]


def _gradients(G: Any) -> Tensor:
    """Gradients as a contiguous matrix in a dtype that a window can have."""
    if isinstance(G, np.ndarray):
        G = _checks.array(NAME, "G", G)
    if not isinstance(G, Tensor):
        raise TypeError(f"{NAME}: G must be a tensor or a NumPy array, got {type(G).__name__}")
    check_layout(NAME, "G", G)
    if not G.dtype.is_floating_point or G.dtype.itemsize == 1:
        raise TypeError(
            f"{NAME}: G must be float64, float32, float16 or bfloat16, got {G.dtype}"
        )
    if G.ndim != 2 or not G.shape[1]:
        raise ValueError(f"{NAME}: G has shape {tuple(G.shape)}, expected (m, d) with d > 0")
    if G.dtype is torch.float16:
        G = G.float()
    return G.detach().resolve_neg().contiguous()


def _refuse_unless(finite: bool) -> None:
    if not finite:
        raise ValueError(f"{NAME}: G must be finite, with squares that are")


def _write_count(G: Tensor) -> int:
    """How often torch has written to a tensor; inference tensors don't count."""
    return -1 if G.is_inference() else G._version
