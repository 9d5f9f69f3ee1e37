"""A 1 x 1 convolution that stores and trains the nonzero weights only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .._arguments import memory_error
from ..reference import sparseconv as reference
from ..sparse import _arguments, _execution, _gradients, _operands, _patterns
from ..sparse._weights import Parts, block_pair, of_dense
from ._plans import Plans
from ._states import cut_state, load_parts

NAME = "SparseWeightConv2d"
FORMATS = ("auto", "tuned", "dense", "csr", "bsr")


class SparseWeightConv2d(nn.Module):
    r"""A convolution of size 1 x 1 with a sparse matrix of weights.

    .. math:: y = \mathrm{act}(W x + \beta + r)

    The values of W are the parameter; where they lie does not change in training.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As of :class:`torch.nn.Conv2d`, with ``kernel_size`` 1, ``padding`` 0 and ``groups`` 1.
    mask
        (O, C) or (O, C, 1, 1): nonzero where weights are. Everywhere, if not given.
    block
        (r, c): weights are stored by blocks of r output and c input channels, all of a block
        in which the mask has an entry.
    format
        How the product is computed in evaluation: "auto", by a fixed rule; "tuned", by what is
        measured the quickest when a shape is first met, dense products included; "dense"; or
        one of the variants that :func:`curvkern.sparse.report` names. "csr" and "bsr" are names
        for "auto" with and without 1 x 1 blocks.
    activation
        "none", "relu", "relu6", "silu" or "hardswish".

    Attributes
    ----------
    values : Parameter
        (nnz,), or (nnz, r, c) for blocks: rows one after the other, columns increasing.
    crow_indices, col_indices : Tensor
        int64 buffers, those of ``torch.sparse_csr`` or ``torch.sparse_bsr``.
    bias : Parameter or None

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong kind, size or value.

    Notes
    -----
    ``load_state_dict`` takes the module's own states, whatever their number of nonzeros, whose
    indices it validates; and those of a dense convolution, ``weight`` of (O, C, 1, 1), of
    which it takes the entries that the module has, or with ``weight_orig`` and ``weight_mask``
    of ``torch.nn.utils.prune`` those of that mask.

    In evaluation the kernels keep the values in a layout of their own, made anew when torch's
    version counter says that they have changed: edits through ``.data`` are not noticed there.

    Examples
    --------
    >>> import torch
    >>> from curvkern import nn
    >>> conv = torch.nn.Conv2d(4, 6, 1)
    >>> sparse = nn.SparseWeightConv2d.from_dense(conv, conv.weight.abs() > 0.25)
    >>> sparse(torch.ones(2, 4, 5, 5)).shape
    torch.Size([2, 6, 5, 5])
    >>> sparse.values.numel() < conv.weight.numel()
    True
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    crow_indices: Tensor
    col_indices: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        mask: Tensor | None = None,
        block: tuple[int, int] = (1, 1),
        format: str = "auto",
        activation: str = "none",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self._plans = Plans()
        self.in_channels = _arguments.integer(NAME, "in_channels", in_channels, 0)
        self.out_channels = _arguments.integer(NAME, "out_channels", out_channels, 0)
        self.stride = _arguments.same(NAME, "stride", stride)
        for name, value, only in (
            ("kernel_size", kernel_size, 1),
            ("padding", padding, 0),
            ("groups", groups, 1),
        ):
            entries = value if isinstance(value, (tuple, list)) else (value,)
            if any(entry != only for entry in entries):
                raise ValueError(f"{NAME}: {name} must be {only}, got {value}")
        self.block = block_pair(NAME, block)
        self.format = _checked_format(format, self.block)
        self.activation = _arguments.activation_name(NAME, activation)
        if mask is None:
            mask = torch.ones(out_channels, in_channels, dtype=torch.bool, device=device)
        mask = _matrix("mask", mask, (self.out_channels, self.in_channels))
        dense = torch.empty(*mask.shape, device=device, dtype=dtype)
        if dense.numel() and mask.any():  # else no random numbers are drawn
            nn.init.kaiming_uniform_(dense, a=math.sqrt(5))  # as torch.nn.Conv2d
        self._take(of_dense(NAME, dense, mask.to(dense.device), self.block))
        if bias:
            bound = 1 / math.sqrt(max(1, self.in_channels))
            start = torch.empty(self.out_channels, device=device, dtype=dtype)
            self.bias = nn.Parameter(start.uniform_(-bound, bound))
        else:
            self.register_parameter("bias", None)

    def _take(self, parts: Parts) -> None:
        self.values = nn.Parameter(parts.values.detach().clone())
        self.register_buffer("crow_indices", parts.crow)
        self.register_buffer("col_indices", parts.col)

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        mask: Tensor | None = None,
        *,
        block: tuple[int, int] = (1, 1),
        format: str = "auto",
        activation: str = "none",
    ) -> SparseWeightConv2d:
        """The module that computes what a 1 x 1 convolution of torch's does.

        Parameters
        ----------
        conv
            A :class:`torch.nn.Conv2d` with kernel size 1 and no groups.
        mask
            (O, C) or (O, C, 1, 1): which weights there are. If not given, the ``weight_mask``
            of ``torch.nn.utils.prune``, and without one the weights that are not zero.
        block, format, activation
            As of the class.

        Returns
        -------
        SparseWeightConv2d
            With copies of the weights, of the dtype and on the device of ``conv``.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(
                f"{NAME}: conv must be a torch.nn.Conv2d, got {type(conv).__name__}"
            )
        if conv.padding not in ((0, 0), 0, "same", "valid"):
            raise ValueError(f"{NAME}: padding must be 0, got {conv.padding}")
        weight = conv.weight.detach()
        pruned = getattr(conv, "weight_mask", None)
        if pruned is not None:  # conv.weight is as of the last forward pass
            weight = conv.weight_orig.detach() * pruned  # type: ignore[operator]
        if mask is None:
            mask = weight != 0 if pruned is None else pruned
        module = cls(
            conv.in_channels,
            conv.out_channels,
            tuple(conv.kernel_size),  # type: ignore[arg-type]
            tuple(conv.stride),  # type: ignore[arg-type]
            groups=conv.groups,
            bias=False,
            mask=torch.zeros(conv.out_channels, conv.in_channels, dtype=torch.bool),
            block=block,
            format=format,
            activation=activation,
        )
        shape = (conv.out_channels, conv.in_channels)
        mask = _matrix("mask", mask, shape).to(weight.device)
        module._take(of_dense(NAME, weight.reshape(shape), mask, module.block))
        if conv.bias is not None:
            module.bias = nn.Parameter(conv.bias.detach().clone())
        return module.train(conv.training)

    @property
    def sparsity(self) -> float:
        """The share of the weights that are not stored."""
        total = self.in_channels * self.out_channels
        return 1 - self.values.numel() / total if total else 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(O, C)"""
        return self.out_channels, self.in_channels

    def parts(self) -> Parts:
        """The matrix by its indices and values."""
        return Parts(self.crow_indices, self.col_indices, self.values, self.shape)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(W x + bias + residual) of (B, C, H, W) or (C, H, W).

        A residual of another shape or dtype is added as torch adds.
        """
        if not self.training and not torch.compiler.is_compiling():
            planned = self._planned(input, residual)
            if planned is not None:
                return planned
        x, batched = _arguments.image(NAME, input)
        if self.stride != 1:
            x = x[..., :: self.stride, :: self.stride]
        size = (x.shape[0], self.out_channels, *x.shape[2:])
        values: Tensor | None = self.values
        bias: Tensor | None = self.bias
        x, values, bias, residual = _arguments.cast_together(x, values, bias, residual)  # type: ignore[assignment]
        assert values is not None
        if x.shape[1] != self.in_channels:
            raise ValueError(f"{NAME}: x has {x.shape[1]} channels, not {self.in_channels}")
        expected = size if batched else size[1:]
        if residual is not None and (
            residual.shape != torch.Size(expected) or residual.dtype is not x.dtype
        ):  # a sum that broadcasts or promotes is torch's
            z = self._product(x, values, bias, None, "none").reshape(expected)
            return _gradients.activated(self.activation, z + residual)
        if residual is not None:
            residual = _arguments.operand(NAME, "residual", residual, expected, x)
            assert residual is not None
            residual = residual.reshape(*size[:2], size[2] * size[3])
        return self._product(x, values, bias, residual, self.activation).reshape(expected)

    def _planned(self, x: Tensor, residual: Tensor | None) -> Tensor | None:
        """The result, if no checks are needed that an earlier call has not passed."""
        values, bias = self._parameters.get("values"), self._parameters.get("bias")
        crow, col = self._buffers.get("crow_indices"), self._buffers.get("col_indices")
        if values is None or crow is None or col is None or bias is not self.bias:
            return None

        def make() -> Any:
            if x.dim() != 4 or x.numel() == 0 or self.stride != 1:
                return None
            size = (x.shape[0], self.out_channels, *x.shape[2:])
            if residual is not None and tuple(residual.shape) != size:
                return None
            flat = x.flatten(2), bias, None if residual is None else residual.flatten(2)
            operands = (*flat, self.activation)
            try:
                _operands.conv1x1(
                    NAME, flat[0], values, *flat[1:], crow, col, self.shape, self.activation
                )
            except (TypeError, ValueError):
                return None  # which is told in the words of the checks
            entry = _patterns.lookup(crow, col, values.shape[1:] or (1, 1), self.shape)
            return _execution.bound(entry, values, operands, self.format)

        settings = (self.format, self.activation, self.stride)
        call = self._plans.find((values, crow, col, bias), (x, residual), settings, make)
        if call is None:
            return None
        try:
            return call(x, residual)
        except RuntimeError as error:
            raise memory_error(NAME, x.shape, error, "the result for x") from None

    def _product(
        self,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
    ) -> Tensor:
        return _gradients.conv1x1(
            x.flatten(2),
            values,
            bias,
            residual,
            self.crow_indices,
            self.col_indices,
            [*self.shape],
            activation,
            self.format,
            not self.training,
        )

    def weight_csr(self) -> Tensor:
        """The matrix as ``torch.sparse_csr``, through which gradients reach ``values``."""
        crow, col = self.crow_indices, self.col_indices
        stored: Tensor = self.values
        if stored.dim() == 3:
            where = torch.arange(stored.numel(), device=stored.device).reshape(stored.shape)
            dense = reference.to_dense(crow, col, where + 1, self.shape)
            parts = of_dense(NAME, dense, None, (1, 1))
            crow, col, stored = parts.crow, parts.col, stored.flatten()[parts.values - 1]
        return torch.sparse_csr_tensor(crow, col, stored, self.shape, check_invariants=False)

    def mask(self) -> Tensor:
        """Where weights are stored, (O, C), bool."""
        ones = torch.ones_like(self.values, dtype=torch.bool)
        return reference.to_dense(self.crow_indices, self.col_indices, ones, self.shape)

    def to_dense(self) -> nn.Conv2d:
        """A convolution of torch's with the same weights, before the activation."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            1,
            self.stride,
            bias=self.bias is not None,
            device=self.values.device,
            dtype=self.values.dtype,
        )
        with torch.no_grad():
            dense = reference.to_dense(
                self.crow_indices, self.col_indices, self.values, self.shape
            )
            conv.weight.copy_(dense[..., None, None])
            if conv.bias is not None and self.bias is not None:
                conv.bias.copy_(self.bias)
        return conv.train(self.training)

    @torch.no_grad()
    def set_mask_(
        self, mask: Tensor, optimizer: torch.optim.Optimizer | None = None
    ) -> SparseWeightConv2d:
        """Store the weights of another mask; those that stay are kept, new ones are 0.

        Parameters
        ----------
        mask
            (O, C) or (O, C, 1, 1), nonzero where weights are to be.
        optimizer
            One that trains ``values``: what it keeps of their shape is cut in the same way.

        Returns
        -------
        SparseWeightConv2d
            The module.
        """
        kept = _matrix("mask", mask, self.shape).to(self.values.device) != 0
        crow, col = self.crow_indices, self.col_indices
        old, shape = self.values.detach(), self.values.shape

        def moved(numbers: Tensor) -> Parts:
            dense = reference.to_dense(crow, col, numbers.to(old.device), self.shape)
            return of_dense(NAME, dense, kept, self.block)

        parts = moved(old)
        self.crow_indices, self.col_indices = parts.crow, parts.col
        self.values.data = parts.values
        self.values.grad = None
        if optimizer is not None:
            cut_state(optimizer, self.values, shape, lambda t: moved(t).values.to(t))
        return self

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any
    ) -> None:
        load_parts(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def timings(self) -> dict[tuple[Any, ...], dict[str, float]]:
        """Seconds of the variants that were measured, by dtype, sizes, threads, CPU."""
        entry = _patterns.lookup(self.crow_indices, self.col_indices, self.block, self.shape)
        return entry.seconds

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, sparsity={self.sparsity:.3f}"
        for name, usual in (("stride", 1), ("block", (1, 1)), ("activation", "none")):
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)!r}"
        return (
            text + f", format={self.format!r}" + (", bias=False" if self.bias is None else "")
        )


def _checked_format(name: Any, block: tuple[int, int]) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{NAME}: format must be a string, got {type(name).__name__}")
    variant = any(_execution.is_variant(name, cuda) for cuda in (False, True))
    if name not in FORMATS and not variant:
        choices = ", ".join(FORMATS)
        raise ValueError(
            f"{NAME}: format must be one of {choices} or a variant like 'strip4', got {name!r}"
        )
    if name == "csr" and block != (1, 1):
        raise ValueError(f"{NAME}: format 'csr' must have block (1, 1), got {block}")
    return "auto" if name in ("csr", "bsr") else name


def _matrix(name: str, mask: Any, shape: tuple[int, int]) -> Tensor:
    """A mask as (O, C)."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{NAME}: {name} must be a tensor, got {type(mask).__name__}")
    if tuple(mask.shape) not in (shape, (*shape, 1, 1)):
        raise ValueError(f"{NAME}: {name} must have shape {shape}, got {tuple(mask.shape)}")
    return mask.detach().reshape(shape)
