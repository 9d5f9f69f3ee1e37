"""Depthwise and first convolutions as modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _sparseconv
from .._arguments import memory_error
from ..sparse import _arguments, _depthwise_operations
from ..sparse._functions import conv2d_first, depthwise_conv2d
from ._plans import Plans


class _Filters(nn.Conv2d):
    """torch's module with an activation, and zeros on four sides of their own number."""

    _default_stride = 1
    _default_padding: Any = 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, ...] | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        activation: str = "none",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        name = type(self).__name__
        stride = self._default_stride if stride is None else stride
        padding = self._default_padding if padding is None else padding
        sides = _arguments.padding_of(name, padding)
        left, right, top, bottom = sides
        step = _arguments.same(name, "stride", stride)
        spread = _arguments.same(name, "dilation", dilation)
        activation = _arguments.activation_name(name, activation)
        if min(kernel_size if isinstance(kernel_size, tuple) else (kernel_size,)) < 1:
            raise ValueError(f"{name}: kernel_size must be at least 1, got {kernel_size}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            step,
            (max(top, bottom), max(left, right)),
            spread,
            groups,
            bias,
            device=device,
            dtype=dtype,
        )
        self._sides, self._step, self._spread = sides, step, spread
        self.activation = activation
        self._plans = Plans()
        self._check()

    def _check(self) -> None:
        """Refuse what torch.nn.Conv2d can do and this cannot."""

    def _settings(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def _planned(
        self, x: Tensor, check: Callable[..., Tensor], kernel: Callable[..., Tensor]
    ) -> Tensor | None:
        """The result, if no checks are needed that an earlier call has not passed."""
        if self.training or torch.compiler.is_compiling():
            return None
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")
        if weight is None or bias is not self.bias:
            return None
        settings = self._settings()

        def make() -> Any:
            try:
                y = check(x, weight, bias, *settings)
            except (TypeError, ValueError, RuntimeError):
                return None  # which is told in the words of the function
            if x.numel() == 0 or y.numel() == 0:
                return None
            return lambda x: kernel(x, weight, bias, *settings)

        call = self._plans.find((weight, bias), (x,), settings, make)
        if call is None:
            return None
        try:
            return call(x)
        except RuntimeError as error:
            raise memory_error(
                type(self).__name__, x.shape, error, "the result for x"
            ) from None

    @classmethod
    def _like(cls, conv: nn.Conv2d, activation: str, **sizes: Any) -> Any:
        name = cls.__name__
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(
                f"{name}: conv must be a torch.nn.Conv2d, got {type(conv).__name__}"
            )
        if conv.padding_mode != "zeros":
            raise ValueError(
                f"{name}: conv must have padding_mode 'zeros', got {conv.padding_mode!r}"
            )
        module = cls(
            stride=tuple(conv.stride),  # type: ignore[arg-type]
            padding=conv_padding(conv),
            kernel_size=tuple(conv.kernel_size),  # type: ignore[arg-type]
            bias=conv.bias is not None,
            activation=activation,
            device="meta",
            **sizes,
        )
        module.weight, module.bias = conv.weight, conv.bias
        module.train(conv.training)
        return module

    def extra_repr(self) -> str:
        left, right, top, bottom = self._sides
        text = f"{super().extra_repr()}, activation={self.activation!r}"
        if (left, top) != (right, bottom):
            text += f", padding=(left {left}, right {right}, top {top}, bottom {bottom})"
        return text


def conv_padding(conv: nn.Conv2d) -> tuple[int, ...]:
    """The zeros that a convolution of torch's adds, (left, right, top, bottom)."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    # torch keeps the sides of "same" in the order of torch.nn.functional.pad.
    sides = conv._reversed_padding_repeated_twice
    return tuple(int(side) for side in sides)


class DepthwiseConv2d(_Filters):
    """A convolution of each channel with filters of its own.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, bias, device, dtype
        As of :class:`torch.nn.Conv2d`; ``padding`` may also be (left, right, top, bottom), and
        ``stride`` and ``dilation`` are the same in both directions. ``out_channels`` is a
        multiple of ``in_channels``, the same if not given.
    groups
        ``in_channels``, if given.
    activation
        "none", "relu", "relu6", "silu" or "hardswish", applied to the result.

    Raises
    ------
    TypeError, ValueError
        As of :func:`curvkern.sparse.depthwise_conv2d`.

    Examples
    --------
    >>> import torch
    >>> from curvkern import nn
    >>> nn.DepthwiseConv2d(8, kernel_size=3, padding=1)(torch.ones(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int | None = None,
        bias: bool = True,
        *,
        activation: str = "none",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if groups is not None and groups != in_channels:
            raise ValueError(
                f"DepthwiseConv2d: groups must be in_channels, {in_channels}, got {groups}"
            )
        super().__init__(
            in_channels,
            in_channels if out_channels is None else out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            in_channels,
            bias,
            activation=activation,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, activation: str = "none") -> Any:
        """The module that computes what a convolution with ``groups=in_channels`` does.

        It shares the parameters.
        """
        return cls._like(
            conv,
            activation,
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            groups=conv.groups,
            dilation=tuple(conv.dilation),
        )

    def _settings(self) -> tuple[Any, ...]:
        return self._step, tuple(self._sides), self._spread, self.activation

    def forward(self, input: Tensor) -> Tensor:
        """act(convolution) of (B, C, H, W) or (C, H, W)."""
        planned = self._planned(
            input, _depthwise_operations.check_depthwise, _sparseconv.depthwise
        )
        if planned is not None:
            return planned
        return depthwise_conv2d(
            input,
            self.weight,
            self.bias,
            stride=self._step,
            padding=tuple(self._sides),
            dilation=self._spread,
            activation=self.activation,
        )


class FirstConv2d(_Filters):
    """The dense convolution that a network begins with.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, bias, device, dtype
        As of :class:`torch.nn.Conv2d`, with stride 2 and padding 1 if not given; ``padding``
        may also be (left, right, top, bottom), ``stride`` is the same in both directions.
    activation
        "none", "relu", "relu6", "silu" or "hardswish", applied to the result.

    Raises
    ------
    TypeError, ValueError
        As of :func:`curvkern.sparse.conv2d_first`.

    Examples
    --------
    >>> import torch
    >>> from curvkern import nn
    >>> nn.FirstConv2d(3, 8, 3, activation="relu6")(torch.ones(1, 3, 32, 32)).shape
    torch.Size([1, 8, 16, 16])
    """

    _default_stride = 2
    _default_padding = 1

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, activation: str = "none") -> Any:
        """The module that computes what a convolution without groups does.

        It shares the parameters.
        """
        if isinstance(conv, nn.Conv2d) and (conv.groups != 1 or max(conv.dilation) != 1):
            raise ValueError(
                "FirstConv2d: conv must have groups 1 and dilation 1, "
                f"got {conv.groups} and {tuple(conv.dilation)}"
            )
        return cls._like(
            conv, activation, in_channels=conv.in_channels, out_channels=conv.out_channels
        )

    def _check(self) -> None:
        if self.groups != 1 or self._spread != 1:
            raise ValueError(
                f"FirstConv2d: groups and dilation must be 1, got {self.groups} and "
                f"{self._spread}"
            )

    def _settings(self) -> tuple[Any, ...]:
        return self._step, tuple(self._sides), self.activation

    def forward(self, input: Tensor) -> Tensor:
        """act(convolution) of (B, C, H, W) or (C, H, W)."""
        planned = self._planned(
            input, _depthwise_operations.check_first, _sparseconv.first_conv
        )
        if planned is not None:
            return planned
        return conv2d_first(
            input,
            self.weight,
            self.bias,
            stride=self._step,
            padding=tuple(self._sides),
            activation=self.activation,
        )


__all__ = ["DepthwiseConv2d", "FirstConv2d"]
