"""The inverse Fisher matrix of the newest gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._arguments import memory_error
from . import _checks, _sharding, _state
from ._base import Fisher, guarded

FEW = 2  # vectors beside a pushed one; passes with more can be interrupted, a push cannot
NORMALIZATIONS = ("capacity", "filled")


class SlidingWindowFisher(Fisher):
    r"""Inverse products with the Fisher matrix of the last m gradients.

    .. math:: F = \lambda I + \frac{1}{n} \sum_i g_i g_i^\top

    over the window, whose oldest gradient leaves when an (m+1)-th comes. The Gram matrix
    :math:`K = G G^\top` and a Cholesky factor of :math:`n \lambda I + K` are kept in float64,
    so a push costs one pass over the window and :math:`O(m^2)`, and a product two passes, at
    any damping.

    Parameters
    ----------
    d : int
        Length of a gradient; with a process group, of this rank's part.
    m : int
        How many gradients the window holds at most.
    damping : float
        :math:`\lambda > 0`.
    dtype : torch.dtype
        How gradients are stored, float32, float64 or bfloat16. Sums are float64. What is
        rounded to bfloat16 must be preconditioned as it was rounded: leave ``v`` out of
        :meth:`push_ihvp`.
    device : torch.device or str
        Where the window lies.
    normalize : {"capacity", "filled"}
        n is m, as in the paper's code, or the number of gradients held.
    block_size : int, optional
        Keep only blocks of so many consecutive columns on the diagonal of F.
    process_group : torch.distributed.ProcessGroup, optional
        The ranks that share the columns. One m-vector is exchanged for each push.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1, a damping that is not positive, an unknown dtype or normalization, or
        ``block_size`` in a subclass.
    MemoryError
        Where the window does not fit.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of
       Second-Order Information", NeurIPS 2021, arXiv:2107.03356.

    Examples
    --------
    >>> import torch
    >>> from curvkern.fisher import SlidingWindowFisher
    >>> fisher = SlidingWindowFisher(d=3, m=2, damping=0.5, dtype=torch.float64)
    >>> fisher.push(torch.tensor([1.0, 0.0, 0.0]))
    >>> fisher.push_ihvp(torch.tensor([0.0, 2.0, 0.0]))  # F = diag(1, 2.5, 0.5)
    tensor([0.0000, 0.8000, 0.0000])
    >>> fisher.ihvp(torch.ones(3))
    tensor([1.0000, 0.4000, 2.0000])
    """

    def __new__(cls, d: int, m: int, damping: float, **options: Any) -> SlidingWindowFisher:
        if options.get("block_size") is None:
            return object.__new__(cls)
        from ._blocks import BlockWindowFisher

        if cls is SlidingWindowFisher:
            return object.__new__(BlockWindowFisher)
        if not issubclass(cls, BlockWindowFisher):
            raise TypeError(
                f"SlidingWindowFisher: block_size is not for its subclass {cls.__name__}; "
                "hold a SlidingWindowFisher instead"
            )
        return object.__new__(cls)

    def __init__(
        self,
        d: int,
        m: int,
        damping: float,
        *,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
        normalize: str = "capacity",
        block_size: int | None = None,
        process_group: Any = None,
    ) -> None:
        name = "SlidingWindowFisher"
        d, m = _checks.count(name, "d", d), _checks.count(name, "m", m)
        damping = _checks.positive(name, "damping", damping)
        if normalize not in NORMALIZATIONS:
            raise ValueError(
                f"{name}: normalize must be one of {', '.join(NORMALIZATIONS)}, "
                f"got {normalize!r}"
            )
        dtype = _checks.storage(name, dtype)
        try:
            with torch.inference_mode(False):  # what changes later can be no inference tensor
                window = torch.empty(m, d, dtype=dtype, device=device)
        except RuntimeError as error:
            raise memory_error(name, (m, d), error) from None
        try:
            with torch.inference_mode(False):
                super().__init__(d, damping, window, m, process_group)
                products = torch.zeros(m, m, dtype=torch.float64)
        except RuntimeError as error:
            raise memory_error(name, (m, m), error) from None
        self.capacity = m
        self.normalize = normalize
        self.block_size = block_size
        self._order: list[int] = []  # slots, oldest first
        self._products_of = products  # K, by slots
        # The order, place and row of a change that is under way.
        self._unfinished: tuple[list[int], int, Tensor] | None = None

    def __repr__(self) -> str:
        return (
            f"SlidingWindowFisher(d={self.d}, m={self.capacity}, damping={self._damping}, "
            f"dtype={self._window.dtype}, len={len(self)})"
        )

    @guarded
    def push(self, grad: Any) -> None:
        """Store a gradient (d,), which must be finite; the oldest leaves a full window.

        A push, or another change, that Ctrl-C interrupts has happened wholly or not at all.
        """
        self._push("push", grad, None)

    @guarded
    def push_ihvp(self, grad: Any, v: Any = None) -> Tensor:
        r"""Push a gradient and return :math:`F^{-1} v` in the same two passes.

        Without v that of the gradient itself, as it was stored, by
        :math:`F^{-1} g_j = n G^\top (n \lambda I + K)^{-1} e_j`, whose terms do not cancel
        however small the damping is.

        Parameters
        ----------
        grad : Tensor or numpy.ndarray
            Shape (d,).
        v : Tensor or numpy.ndarray, optional
            Shape (d,) or (k, d).

        Returns
        -------
        Tensor
            Of the shape and dtype of v, or of grad. Not differentiable: use :meth:`ihvp`.

        Raises
        ------
        TypeError, ValueError
            As :meth:`push` and :meth:`ihvp`; the window is then unchanged.
        """
        if v is None:
            given, _ = self._push("push_ihvp", grad, None)
            return self._newest(given)
        wanted = _checks.vector("push_ihvp", "v", v, self.d, self.device).detach()
        many = _checks.wide(wanted).reshape(-1, self.d)
        if len(many) > FEW:
            self._push("push_ihvp", grad, None)
            return self._solved(many, self._damping).reshape(wanted.shape).to(wanted.dtype)
        _, b = self._push("push_ihvp", grad, many)
        c = self._factored(self._damping).solve(b)
        x = self._combined(c / -self._damping, many.dtype, 1 / self._damping, many)
        return x.reshape(wanted.shape).to(wanted.dtype)

    @guarded
    def replace(self, i: int, grad: Any) -> None:
        """Put a gradient in the place of the i-th oldest; the factor is computed anew."""
        i = _checks.index("replace", "i", i, len(self))
        _, row = self._row("replace", grad)
        self._factor.forget()
        self._store(self._order, i, row, row[:0])
        self._unfinished = None

    @guarded
    def remove(self, i: int) -> None:
        """Drop the i-th oldest gradient; n stays m under normalize="capacity"."""
        i = _checks.index("remove", "i", i, len(self))
        self._factor.forget()
        self._order = [*self._order[:i], *self._order[i + 1 :]]
        self._version += 1

    @guarded
    def state_dict(self) -> dict[str, Any]:
        """Everything but the process group; loading it continues bit for bit."""
        count = len(self)
        is_factored = self._factor.shift == self._norm() * self._damping and count > 0
        factor = self._factor.matrix[:count, :count].clone() if is_factored else None
        return {
            **self._configuration(),
            "damping": self._damping,
            "head": 0,
            "count": count,
            "window": self._window[self._order].clone(),
            "gram": self._products_of[self._order][:, self._order],
            "factor": factor,
        }

    @guarded
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of a window with the same sizes.

        ``window`` and ``gram`` have their rows in the order of a ring whose oldest is ``head``.

        Raises
        ------
        TypeError, ValueError
            For a state that does not fit or cannot be true; the window is then unchanged.
        """
        state = _state.checked(state, self._configuration())
        count, head = state["count"], state["head"]
        window = state["window"].detach().to(self.device)
        gram, factor = state["gram"].detach().cpu(), state["factor"]
        order = [(head + k) % max(count, 1) for k in range(count)]
        norm = self.capacity if self.normalize == "capacity" else max(1, count)
        if self.block_size is None and self._group is None:
            _state.check_gram(window, gram)
        if factor is not None:
            factor = factor.detach().cpu()
            _state.check_factor(factor, gram[order][:, order], norm * state["damping"])
        self._factor.forget()
        self._order = []  # rows are in use once all there is to know of them is
        self._window[:count] = window
        self._products_of[:count, :count] = gram
        self._damping = state["damping"]
        self._order = order
        if factor is not None:
            self._factor.matrix[:count, :count] = factor
            self._factor.count = count
            self._factor.shift = self._norm() * self._damping
        self._version += 1

    def __deepcopy__(self, memo: dict[int, Any]) -> SlidingWindowFisher:
        copy = type(self)(
            self.d,
            self.capacity,
            self._damping,
            dtype=self._window.dtype,
            device=self.device,
            normalize=self.normalize,
            block_size=self.block_size,
            process_group=self._group,
        )
        copy.load_state_dict(self.state_dict())
        memo[id(self)] = copy
        return copy

    def __reduce__(self) -> Any:
        raise TypeError("SlidingWindowFisher: not to be pickled; save its state_dict()")

    # Inside --------------------------------------------------------------------------------

    def _configuration(self) -> dict[str, Any]:
        return {
            "d": self.d,
            "capacity": self.capacity,
            "normalize": self.normalize,
            "dtype": str(self._window.dtype),
            "block_size": self.block_size,
        }

    def _slots(self) -> Sequence[int]:
        return self._order

    def _norm(self) -> int:
        return self.capacity if self.normalize == "capacity" else max(1, len(self))

    def _gram(self) -> Tensor:
        return self._products_of[self._order][:, self._order]

    def _row(self, function: str, grad: Any) -> tuple[Tensor, Tensor]:
        """A gradient as given and as a row (1, d), if it can be stored."""
        given = _checks.vector(function, "grad", grad, self.d, self.device).detach()
        if given.ndim != 1:
            raise ValueError(
                f"{function}: grad has shape {tuple(given.shape)}, expected ({self.d},)"
            )
        row = _checks.wide(given)[None].contiguous()
        finite = _checks.storable(self._window, row)
        if not _sharding.all_agree(finite, self._group, self.device):
            raise ValueError(
                f"{function}: grad must be finite, and stay so in {self._window.dtype}, and so "
                "must its square; the window is unchanged"
            )
        return given, row

    def _push(self, function: str, grad: Any, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gradient as given, and the products of v with all rows, the newest last."""
        given, row = self._row(function, grad)
        order, full = self._next_order()
        products = self._store(order, len(order) - 1, row, row[:0] if v is None else v)
        self._factor.slide(products[0], self._norm() * self._damping, full)
        self._unfinished = None
        return given, products[1:]

    def _next_order(self) -> tuple[list[int], bool]:
        """The slots once another row is pushed, and whether the oldest goes."""
        full = len(self) == self.capacity
        if not self._order:
            self._factor.start(self._norm() * self._damping)
        if full:
            return [*self._order[1:], self._order[0]], full
        taken = set(self._order)
        return [*self._order, next(k for k in range(self.capacity) if k not in taken)], full

    @guarded
    def _push_known(self, row: Tensor, products: Tensor) -> Tensor:
        """As push_ihvp(row), of which the products with all rows and itself are known."""
        order, full = self._next_order()
        products = products[-len(order) :]
        self._unfinished = order, len(order) - 1, row[None]
        self._window[order[-1]].copy_(row)
        self._record(order, len(order) - 1, products)
        self._factor.slide(products, self._norm() * self._damping, full)
        self._unfinished = None
        return self._newest(row)

    def _newest(self, given: Tensor) -> Tensor:
        """F^-1 times the newest row, in a dtype given."""
        newest = torch.zeros(1, len(self), dtype=torch.float64)
        newest[0, -1] = self._norm()
        c = self._factored(self._damping).solve(newest)
        return self._combined(c, given.dtype)[0].to(given.dtype)

    def _store(self, order: list[int], into: int, row: Tensor, v: Tensor) -> Tensor:
        """Write a row; its products with all rows, then those of v, where the factor lies."""
        self._unfinished = order, into, row
        found = torch.ops.curvkern.mfac_push(self._window, order, into, row, v)
        found = _sharding.summed(found, self._group).cpu()
        self._record(order, into, found[0])
        return found

    def _settle(self) -> None:
        if self._unfinished is None:
            return
        order, into, row = self._unfinished
        # Other ranks do not know, so there a sum over them would wait for ever.
        if self._group is None and torch.equal(
            self._window[order[into]], row[0].to(self._window)
        ):
            self._factor.forget()
            self._store(order, into, row, row[:0])
        self._unfinished = None

    def _record(self, order: list[int], into: int, products: Tensor) -> None:
        """A row was written: the slots in use, and its products with all rows."""
        self._order = order
        slots, slot = torch.tensor(order), order[into]
        self._products_of[slot, slots] = self._products_of[slots, slot] = products
        self._version += 1
