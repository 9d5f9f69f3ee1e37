"""Derivatives of the compiled operations, and the gate that decides whether to record them.

An elementwise function f(v, x) comes with operations for all its derivatives of order 0, 1 and
2. Output k of the operation of order n is the derivative n - k times in v and k times in x, so
with D the outputs of order n + 1

    d out[k] = D[k] dv + D[k+1] dx

is the rule for every order, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _ops


def _transform_active() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is under way.

    Both names are private to torch: where one is missing the answer is the safe one, yes.
    """
    try:
        return (
            torch._C._functorch.peek_interpreter_stack() is not None
            or forward_ad._current_level >= 0
        )
    except AttributeError:
        return True


def _forward_mode() -> AbstractContextManager[Any]:
    """Forward-mode differentiation, switched on inside an ``autograd.Function``'s jvp.

    torch calls a jvp with it off, and an outer jvp of the result would be zero without a word.
    The name is private to torch: where it is missing, forward mode is refused.
    """
    try:
        switch: AbstractContextManager[Any] = forward_ad._set_fwd_grad_enabled(True)
    except AttributeError:
        raise RuntimeError(
            f"curvkern: no forward-mode derivatives with torch {torch.__version__}, which "
            "cannot nest them; use reverse mode, or CURVKERN_BACKEND=reference"
        ) from None
    return switch


def derivative_wanted(*tensors: Tensor) -> bool:
    """Whether a call with these arguments must go through an ``autograd.Function``."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return _transform_active()


def elementwise(function: str, v: Tensor, x: Tensor) -> Tensor:
    """``torch.ops.curvkern.<function>(v, x)`` with derivatives, for same-shape tensors."""
    if torch.compiler.is_dynamo_compiling():
        from . import _compile  # noqa: F401
    result: Tensor = GATES[function](v, x)
    return result


def _chain(function: str) -> Callable[..., Any]:
    """The gate of the function, which leads to that of its gradient, and so on."""
    gate: Callable[..., Any] | None = None
    for order in reversed(range(len(_ops.DERIVATIVES))):
        operation = getattr(torch.ops.curvkern, function + _ops.DERIVATIVES[order][0]).default
        gate = _gate(function, order, operation, gate)
    assert gate is not None
    return gate


def _gate(function: str, order: int, operation: Any, following: Any) -> Callable[..., Any]:
    """The bare operation, in an ``autograd.Function`` where a derivative is wanted."""
    # Derivatives of a gradient of which some are not asked for come with factors of zero, and
    # second derivatives may be infinite.
    dot = partial(_dot, zero_wins=order > 0)

    def derivatives(v: Tensor, x: Tensor) -> Sequence[Tensor]:
        if following is None:
            raise RuntimeError(
                f"{function}: derivatives beyond the second are not implemented; "
                "CURVKERN_BACKEND=reference has them"
            )
        result: Sequence[Tensor] = following(v, x)
        return result

    class Elementwise(torch.autograd.Function):
        @staticmethod
        def forward(v: Tensor, x: Tensor) -> Any:
            return operation(v, x)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)
            # A gradient that is not there must not become 0, which times infinity is NaN.
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            d = derivatives(*ctx.saved_tensors)
            want_v, want_x = ctx.needs_input_grad
            return (
                dot(grads, d[:-1]) if want_v else None,
                dot(grads, d[1:]) if want_x else None,
            )

        @staticmethod
        def jvp(ctx: Any, dv: Tensor | None, dx: Tensor | None) -> Any:
            with _forward_mode():  # with inputs stripped of this level's tangents
                primals = (forward_ad.unpack_dual(t, level=0).primal for t in ctx.saved_tensors)
                d = derivatives(*primals)
                tangents = tuple(dot((dv, dx), d[k : k + 2]) for k in range(order + 1))
            return tangents[0] if order == 0 else tangents

        @staticmethod
        def vmap(info: Any, in_dims: Any, v: Tensor, x: Tensor) -> Any:
            batched = [
                t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
                for t, dim in zip((v, x), in_dims, strict=True)
            ]
            return call(*batched), 0 if order == 0 else (0,) * (order + 1)

    # An exported graph calls the bare operation, which would drop gradients without a word.
    torch.library.register_autograd(
        operation.name(),
        Elementwise.backward,
        setup_context=Elementwise.setup_context,
        lib=_ops.library,
    )

    # apply() asks inspect for this at every call: an answer at hand makes it 44 us of 64.
    forward: Any = Elementwise.forward
    forward.__signature__ = signature(forward)

    def call(v: Tensor, x: Tensor) -> Any:
        if derivative_wanted(v, x):
            return Elementwise.apply(v, x)
        return operation(v, x)

    return call


def _dot(
    factors: Sequence[Tensor | None], derivatives: Sequence[Tensor], zero_wins: bool
) -> Tensor | None:
    """Sum of the products, where a factor that is None counts as zero.

    ``zero_wins``: zero times infinity is zero.
    """
    total: Tensor | None = None
    for factor, derivative in zip(factors, derivatives, strict=True):
        if factor is not None:
            if zero_wins:
                derivative = torch.where((factor == 0) & derivative.isinf(), 0.0, derivative)
            product = factor * derivative
            total = product if total is None else total + product
    return total


#: The function itself, as a callable that records derivatives where they are wanted.
GATES = {function: _chain(function) for function in _ops.BESSEL}
