"""Sparsemax and its restriction to the k largest entries, with derivatives."""

from __future__ import annotations

import operator
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from .. import _autograd, _ops, _runtime
from .._arguments import HALVES, _as_tensor, checked, memory_error

#: Stands for no limit on the number of nonzeros.
UNLIMITED = 2**62


def sparsemax(z: Any, dim: int = -1) -> Any:
    r"""Euclidean projection onto the probability simplex: a softmax with exact zeros.

    .. math::
        \mathrm{sparsemax}(z) = \arg\min_{p \ge 0,\ \sum_i p_i = 1} \|p - z\|^2
        = \max(z - \tau(z), 0)

    Parameters
    ----------
    z : Tensor or ndarray
        Scores, of any shape with at least one dimension. ``-inf`` bars an entry.
    dim : int
        The dimension along which the result sums to 1.

    Returns
    -------
    Tensor or ndarray
        Of the shape and dtype of ``z``; integers become the default floating dtype, or float64
        for an array. float16 and bfloat16 are computed in float32, float32 with float64 sums.
        Each row sums to 1 within a few eps of its dtype. Where ``+inf`` occurs the infinite
        entries share the mass equally, which is the limit; a row with NaN, or of ``-inf`` only,
        gives NaN.

    Raises
    ------
    TypeError
        If ``z`` is no tensor or array, or complex, boolean, sparse, nested or masked; if
        ``dim`` is no integer.
    ValueError
        If ``z`` has no dimension or is empty along ``dim``.
    IndexError
        If ``dim`` is out of range.
    MemoryError
        If the result does not fit.

    Notes
    -----
    With v the entries in the support, the gradient is v (g - mean of g over v), [1]_ section
    2.5. The function is piecewise linear: second derivatives are zero, and derivatives of a
    gradient in g are exact. No sort: Newton's method on the threshold, in a few passes.

    References
    ----------
    .. [1] A. Martins, R. Astudillo, "From Softmax to Sparsemax", ICML 2016.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> ot.sparsemax(torch.tensor([1.5, 1.0, 0.2, -3.0]))
    tensor([0.7500, 0.2500, 0.0000, 0.0000])
    """
    return _evaluate("sparsemax", z, UNLIMITED, dim)


def topk_sparsemax(z: Any, k: int, dim: int = -1) -> Any:
    r"""Projection onto the probability simplex with at most ``k`` nonzeros.

    .. math::
        \arg\min_{p \ge 0,\ \sum_i p_i = 1,\ \|p\|_0 \le k} \|p - z\|^2,

    which is :func:`sparsemax` of the ``k`` largest entries, and zero elsewhere [1]_. Of equal
    entries those with the lowest index count as larger.

    Parameters
    ----------
    z : Tensor or ndarray
        Scores, as for :func:`sparsemax`.
    k : int
        The most nonzeros a row may have, at least 1. At ``k`` beyond the size of ``dim``
        nothing is restricted.
    dim : int
        The dimension along which the result sums to 1.

    Returns
    -------
    Tensor or ndarray
        As of :func:`sparsemax`.

    Raises
    ------
    TypeError, ValueError, IndexError, MemoryError
        As of :func:`sparsemax`; ``TypeError`` and ``ValueError`` for ``k``, too.

    References
    ----------
    .. [1] T. Liu, J. Puigcerver, M. Blondel, "Sparsity-Constrained Optimal Transport", ICLR
       2023, section 3.

    Examples
    --------
    >>> import torch
    >>> from curvkern import ot
    >>> z = torch.tensor([0.9, 0.8, 0.7, 0.6])
    >>> ot.sparsemax(z)
    tensor([0.4000, 0.3000, 0.2000, 0.1000])
    >>> ot.topk_sparsemax(z, 2)
    tensor([0.5500, 0.4500, 0.0000, 0.0000])
    """
    return _evaluate("topk_sparsemax", z, check_k("topk_sparsemax", k), dim)


def integer(function: str, name: str, value: Any) -> int:
    """A Python or NumPy integer as an int."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be an integer, got {type(value).__name__}"
        ) from None


def check_k(function: str, k: Any) -> int:
    """A number of nonzeros that is legal."""
    k = integer(function, "k", k)
    if k < 1:
        raise ValueError(f"{function}: k must be at least 1, got {k}")
    return min(k, UNLIMITED)


def _evaluate(function: str, z: Any, k: int, dim: int) -> Any:
    if not isinstance(z, Tensor):
        result = _evaluate(function, _as_tensor(function, "z", z), k, dim)
        return result.numpy()
    checked(function, "z", z)
    dim = integer(function, "dim", dim)
    if z.dim() == 0:
        raise ValueError(f"{function}: z must have at least one dimension, got a 0-d tensor")
    if not -z.dim() <= dim < z.dim():
        raise IndexError(
            f"{function}: dim must be in [{-z.dim()}, {z.dim() - 1}] for z of shape "
            f"{tuple(z.shape)}, got {dim}"
        )
    if z.shape[dim] == 0:
        raise ValueError(f"{function}: z of shape {tuple(z.shape)} is empty along dim {dim}")
    dtype = z.dtype if z.is_floating_point() else torch.get_default_dtype()
    work = torch.float32 if dtype in HALVES else dtype
    if work not in (torch.float32, torch.float64):
        raise TypeError(
            f"{function}: expected float64, float32, float16, bfloat16 or integers, got {dtype}"
        )
    try:
        rows = z.to(work).movedim(dim, -1)
        return project(rows, k).movedim(-1, dim).to(dtype)
    except RuntimeError as error:
        raise memory_error(function, z.shape, error) from None


def project(z: Tensor, k: int) -> Tensor:
    """The projection of the last dimension, with derivatives."""
    if _runtime.backend() == "reference":
        from ..reference import sparsemax as reference

        return reference.sparsemax(z, k=k)
    if torch.compiler.is_dynamo_compiling():
        from .. import _compile  # noqa: F401
    result: Tensor = _project(z, k)
    return result


def _project(z: Tensor, k: int) -> Any:
    if _autograd.derivative_wanted(z):
        return _Project.apply(z, k)
    return torch.ops.curvkern.sparsemax(z, None, k)[0]


def _jacobian(p: Tensor, vector: Tensor) -> Any:
    if _autograd.derivative_wanted(p, vector):
        return _Jacobian.apply(p, vector)
    return torch.ops.curvkern.sparsemax_jacobian(p, vector)


class _Project(torch.autograd.Function):
    """p(z), whose Jacobian depends on the support of p alone."""

    @staticmethod
    def forward(z: Tensor, k: int) -> Any:
        return torch.ops.curvkern.sparsemax(z, None, k)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        return _jacobian(p, grad), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Any:
        (p,) = ctx.saved_tensors
        with _autograd._forward_mode():
            return _jacobian(p.detach(), dz)

    @staticmethod
    def vmap(info: Any, in_dims: Any, z: Tensor, k: int) -> Any:
        return _project(z.movedim(in_dims[0], 0), k), 0


class _Jacobian(torch.autograd.Function):
    """J(p) vector, with J symmetric and constant where the support is."""

    @staticmethod
    def forward(p: Tensor, vector: Tensor) -> Any:
        return torch.ops.curvkern.sparsemax_jacobian(p, vector)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (p,) = ctx.saved_tensors
        return None, _jacobian(p.detach(), grad)

    @staticmethod
    def jvp(ctx: Any, _: Tensor, tangent: Tensor) -> Any:
        (p,) = ctx.saved_tensors
        with _autograd._forward_mode():
            return _jacobian(p.detach(), tangent)

    @staticmethod
    def vmap(info: Any, in_dims: Any, p: Tensor, vector: Tensor) -> Any:
        batched = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((p, vector), in_dims, strict=True)
        ]
        return _jacobian(*batched), 0


for _function in (_Project, _Jacobian):  # apply() asks for it at every call, see _autograd
    _forward: Any = _function.forward
    _forward.__signature__ = signature(_forward)


def _setup_project(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[0])


def _backward_project(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None]:
    (p,) = ctx.saved_tensors
    return _jacobian(p, grad), None, None


# An exported graph calls the bare operations, which would drop gradients without a word.
torch.library.register_autograd(
    "curvkern::sparsemax", _backward_project, setup_context=_setup_project, lib=_ops.library
)
torch.library.register_autograd(
    "curvkern::sparsemax_jacobian",
    _Jacobian.backward,
    setup_context=_Jacobian.setup_context,
    lib=_ops.library,
)

#: What torch.compile puts into its graphs unopened.
GATES = (_project, _jacobian)
