"""Convolutions of images with sparse and depthwise weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _arguments, _depthwise, _gradients
from ._operands import floating, ranked, same_device
from ._weights import LAYOUTS, PackedWeight, Parts, of_sparse


def sparse_conv1x1(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    r"""A convolution of size 1 x 1 whose matrix of weights is sparse [1]_.

    .. math:: y_{b,o,i,j} = \mathrm{act}\Bigl(\sum_k W_{o,k}\, x_{b,k,i,j} + \beta_o
              + r_{b,o,i,j}\Bigr)

    Parameters
    ----------
    x
        Images (B, C, H, W), or one (C, H, W), in any memory format; float32, bfloat16 or
        float64. bfloat16 is summed in float32.
    weight
        (O, C) as ``torch.sparse_csr``, ``torch.sparse_bsr`` with any block, or
        :class:`PackedWeight`, of the dtype of x. Indices are int32 or int64. Zeros that are
        stored are weights like others, and have gradients.
    bias
        (O,)
    activation
        "none", "relu", "relu6", "silu" or "hardswish".
    residual
        Of the shape of the result; added before the activation.

    Returns
    -------
    Tensor
        (B, O, H, W) or (O, H, W), contiguous.

    Raises
    ------
    TypeError
        An argument of another kind, dtype or layout.
    ValueError
        Shapes or devices that do not fit, an unknown activation, or indices that are not those
        of a matrix in compressed rows: sorted, without duplicates, in range.
    MemoryError
        The result does not fit.

    Notes
    -----
    What is not stored is no weight: NaN and infinities of x reach only results that have a
    weight for them, where a dense product with zeros makes them NaN.

    Derivatives exist to any order, in reverse and forward mode, in x, in the stored values of
    ``weight``, in bias and residual. The gradient of a ``sparse_csr`` tensor is one of the
    same pattern. torch cannot accumulate into the ``.grad`` of a ``sparse_bsr`` leaf: there
    take ``torch.autograd.grad``, or let the values be the leaf. At its kinks the derivative of
    ReLU and ReLU6 is 0; at 0 that of SiLU and hardswish is 1/2.

    On CUDA tensors the kernels use no tensor cores. Predicted, not measured: at 90 % zeros
    they are up to 3 times as fast as dense float32 products with TF32 off, and slower than
    dense TF32 or bfloat16; there take blocks of 4 x 1 from some 90 % zeros on, or dense.

    References
    ----------
    .. [1] E. Elsen, M. Dukhan, T. Gale, K. Simonyan, "Fast Sparse ConvNets", CVPR 2020.

    Examples
    --------
    >>> import torch
    >>> from curvkern import sparse
    >>> weight = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, -1.0]]).to_sparse_csr()
    >>> x = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    >>> sparse.sparse_conv1x1(x, weight, torch.tensor([0.5, 0.5]), activation="relu").flatten()
    tensor([4.5000, 0.0000])
    """
    name = "sparse_conv1x1"
    parts = _parts(name, weight)
    x, batched = _arguments.image(name, x)
    activation = _arguments.activation_name(name, activation)
    for argument, value in (("bias", bias), ("residual", residual)):
        if value is not None:
            _arguments.tensor(name, argument, value)
    x, values, bias, residual = _arguments.cast_together(x, parts.values, bias, residual)  # type: ignore[assignment]
    assert values is not None
    floating(name, "weight", values)
    same_device(name, "weight", values, "x", x)
    _arguments.same_dtype_as_x(name, "weight", values, x)
    if x.shape[1] != parts.shape[1]:
        raise ValueError(
            f"{name}: x has {x.shape[1]} channels but weight has shape {parts.shape}"
        )
    out = (x.shape[0], parts.shape[0], *x.shape[2:])
    bias = _arguments.operand(name, "bias", bias, out[1:2], x)
    residual = _arguments.operand(name, "residual", residual, out if batched else out[1:], x)
    y = _gradients.conv1x1(
        x.flatten(2),
        values,
        bias,
        None if residual is None else residual.reshape(*out[:2], out[2] * out[3]),
        parts.crow,
        parts.col,
        list(parts.shape),
        activation,
        frozen=isinstance(weight, PackedWeight),
    ).reshape(out)
    return y if batched else y.squeeze(0)


def _parts(function: str, weight: Any, name: str = "weight") -> Parts:
    if isinstance(weight, PackedWeight):
        return weight.parts()
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"{function}: {name} must be a sparse tensor or PackedWeight, "
            f"got {type(weight).__name__}"
        )
    if weight.layout not in LAYOUTS:
        raise TypeError(
            f"{function}: {name} has layout {weight.layout}, expected torch.sparse_csr or "
            "torch.sparse_bsr; call .to_sparse_csr() on it"
        )
    return of_sparse(function, weight)


def sddmm(a: Tensor, b: Tensor, pattern: Tensor | PackedWeight) -> Tensor:
    r"""Entries of a product of dense matrices, where a sparse matrix has its own.

    .. math:: v_{(i,j)} = \sum_p a_{i,p}\, b_{j,p} \quad \text{for } (i, j) \text{ stored}

    It is the gradient of :func:`sparse_conv1x1` in the stored values, with a the gradient of
    the result and b the input [1]_.

    Parameters
    ----------
    a, b
        (O, P) and (C, P), or (B, O, P) and (B, C, P), which are summed over the batch; float32,
        bfloat16 (summed in float32) or float64.
    pattern
        (O, C) as ``torch.sparse_csr``, ``torch.sparse_bsr`` or :class:`PackedWeight`. Its
        values are not read.

    Returns
    -------
    Tensor
        (nnz,), or (nnz, r, c) for blocks, in the order of the pattern.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As of :func:`sparse_conv1x1`.

    References
    ----------
    .. [1] T. Gale, M. Zaharia, C. Young, E. Elsen, "Sparse GPU Kernels for Deep Learning", SC
       2020.

    Examples
    --------
    >>> import torch
    >>> from curvkern import sparse
    >>> pattern = torch.eye(2).to_sparse_csr()
    >>> sparse.sddmm(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2), pattern)
    tensor([3., 7.])
    """
    name = "sddmm"
    parts = _parts(name, pattern, "pattern")
    a, b = _arguments.tensor(name, "a", a), _arguments.tensor(name, "b", b)
    for argument, value in (("a", a), ("b", b)):
        ranked(name, argument, value, 2, 3)
    if a.dtype is not b.dtype:
        raise TypeError(f"{name}: b has dtype {b.dtype} but a has dtype {a.dtype}")
    same_device(name, "b", b, "a", a)
    expected = (*a.shape[:-2], parts.shape[1], a.shape[-1])
    if a.shape[-2] != parts.shape[0]:
        raise ValueError(
            f"{name}: a has {a.shape[-2]} rows but pattern has shape {parts.shape}"
        )
    if tuple(b.shape) != expected:
        raise ValueError(f"{name}: b must have shape {expected}, got {tuple(b.shape)}")
    if a.dim() == 2:
        a, b = a.unsqueeze(0), b.unsqueeze(0)
    return _gradients.sddmm(a, b, parts.crow, parts.col, list(parts.shape), list(parts.block))


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
) -> Tensor:
    r"""A convolution of each channel with filters of its own, as ``groups=C`` in torch.

    Parameters
    ----------
    x
        Images (B, C, H, W), or one (C, H, W), in any memory format; float32, bfloat16 (summed
        in float32) or float64.
    weight
        (N, 1, kh, kw), N a multiple of C: filter n is that of channel n // (N / C).
    bias
        (N,)
    stride, dilation
        An integer, or two equal ones.
    padding
        Zeros around the image: one number, (vertical, horizontal), or (left, right, top,
        bottom), as TensorFlow's "SAME" needs with stride 2.
    activation
        "none", "relu", "relu6", "silu" or "hardswish".

    Returns
    -------
    Tensor
        (B, N, H', W') or (N, H', W'), contiguous.

    Raises
    ------
    TypeError
        An argument of another kind, dtype or layout.
    ValueError
        Shapes or devices that do not fit, an unknown activation.
    MemoryError
        The result does not fit.

    Notes
    -----
    Derivatives exist to any order, in reverse and forward mode, as of :func:`sparse_conv1x1`.

    Examples
    --------
    >>> import torch
    >>> from curvkern import sparse
    >>> x = torch.arange(16.0).reshape(1, 4, 4)
    >>> sparse.depthwise_conv2d(x, torch.ones(1, 1, 3, 3), stride=2, padding=(0, 1, 0, 1))
    tensor([[[45., 39.],
             [66., 50.]]])
    """
    name = "depthwise_conv2d"
    x, weight, bias, batched = _windows(name, x, weight, bias)
    if weight.shape[1] != 1 or x.shape[1] == 0 or weight.shape[0] % x.shape[1]:
        raise ValueError(
            f"{name}: weight must have shape (N, 1, kh, kw) with N a multiple of the "
            f"{x.shape[1]} channels of x, got {tuple(weight.shape)}"
        )
    activation = _arguments.activation_name(name, activation)
    if weight.shape[0] != x.shape[1]:
        x = x.repeat_interleave(weight.shape[0] // x.shape[1], 1)
    y = _depthwise.depthwise(
        x,
        weight,
        bias,
        _arguments.same(name, "stride", stride),
        _arguments.padding_of(name, padding),
        _arguments.same(name, "dilation", dilation),
        activation,
    )
    return y if batched else y.squeeze(0)


def conv2d_first(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 2,
    padding: int | tuple[int, ...] = 1,
    activation: str = "none",
) -> Tensor:
    r"""The dense convolution that a network begins with, from few channels to many.

    Parameters
    ----------
    x
        Images (B, C, H, W), or one (C, H, W), in any memory format; float32, bfloat16 (summed
        in float32) or float64.
    weight
        (N, C, kh, kw)
    bias
        (N,)
    stride
        An integer, or two equal ones.
    padding
        As of :func:`depthwise_conv2d`.
    activation
        "none", "relu", "relu6", "silu" or "hardswish".

    Returns
    -------
    Tensor
        (B, N, H', W') or (N, H', W').

    Raises
    ------
    TypeError, ValueError, MemoryError
        As of :func:`depthwise_conv2d`.

    Notes
    -----
    Up to 8 channels a compiled kernel, 4 with AVX2; torch's own convolution for more, with SSE
    alone, and where derivatives are wanted.

    Examples
    --------
    >>> import torch
    >>> from curvkern import sparse
    >>> sparse.conv2d_first(torch.ones(3, 4, 4), torch.ones(8, 3, 3, 3)).shape
    torch.Size([8, 2, 2])
    """
    name = "conv2d_first"
    x, weight, bias, batched = _windows(name, x, weight, bias)
    if weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"{name}: x has {x.shape[1]} channels but weight has shape {tuple(weight.shape)}"
        )
    y = _depthwise.first(
        x,
        weight,
        bias,
        _arguments.same(name, "stride", stride),
        _arguments.padding_of(name, padding),
        _arguments.activation_name(name, activation),
    )
    return y if batched else y.squeeze(0)


def _windows(
    function: str, x: Any, weight: Any, bias: Any
) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """Checked x (B, C, H, W), filters and bias, and whether x had a batch."""
    x, batched = _arguments.image(function, x)
    weight = _arguments.tensor(function, "weight", weight)
    ranked(function, "weight", weight, 4)
    if bias is not None:
        _arguments.tensor(function, "bias", bias)
    x, weight, bias = _arguments.cast_together(x, weight, bias)
    _arguments.same_dtype_as_x(function, "weight", weight, x)
    bias = _arguments.operand(function, "bias", bias, weight.shape[:1], x)
    return x, weight, bias, batched


__all__ = ["conv2d_first", "depthwise_conv2d", "sddmm", "sparse_conv1x1"]
