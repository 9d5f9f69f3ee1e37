"""Derivatives of the compiled operations, and the gate that decides whether to record them.

An elementwise function f(v, x) comes with operations for all its derivatives of order 0, 1 and
2. Output k of the operation of order n is the derivative n - k times in v and k times in x, so
with D the outputs of order n + 1

    d out[k] = D[k] dv + D[k+1] dx

is the rule for every order, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import _ops


def _transform_active() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is under way.

    Both names are private to torch: where one is missing the answer is the safe one, yes.
    """
    try:
        return (
            torch._C._functorch.peek_interpreter_stack() is not None
            or torch.autograd.forward_ad._current_level >= 0
        )
    except AttributeError:
        return True


def derivative_wanted(*tensors: Tensor) -> bool:
    """Whether a call with these arguments must go through an ``autograd.Function``."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return _transform_active()


def elementwise(function: str, v: Tensor, x: Tensor) -> Tensor:
    """``torch.ops.curvkern.<function>(v, x)`` with derivatives, for same-shape tensors."""
    return _gates(function)[0](v, x)


@cache
def _gates(function: str) -> tuple[Callable[..., Any], ...]:
    """One callable per order of derivative, each a gate in front of the bare operation."""
    following: Callable[..., Any] | None = None
    gates: list[Callable[..., Any]] = []
    for order in reversed(range(len(_ops.DERIVATIVES))):
        operation = getattr(torch.ops.curvkern, function + _ops.DERIVATIVES[order][0]).default
        following = _gate(operation, *_functions(function, order, operation, following))
        gates.append(following)
    return tuple(reversed(gates))


def _gate(operation: Any, traced: Any, eager: Any) -> Callable[..., Any]:
    def call(v: Tensor, x: Tensor) -> Any:
        if torch.compiler.is_compiling():
            return traced.apply(v, x)
        if derivative_wanted(v, x):
            return eager.apply(v, x)
        return operation(v, x)

    return call


def _functions(
    function: str, order: int, operation: Any, following: Callable[..., Any] | None
) -> tuple[type, type]:
    """The ``autograd.Function`` for torch.compile, and its subclass that also knows jvp."""

    def derivatives(v: Tensor, x: Tensor) -> Sequence[Tensor]:
        if following is None:
            raise RuntimeError(
                f"{function}: derivatives beyond the second are not implemented; "
                "set CURVKERN_BACKEND=reference for a differentiable reference"
            )
        result: Sequence[Tensor] = following(v, x)
        return result

    class Traced(torch.autograd.Function):
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
                _dot(grads, d[:-1]) if want_v else None,
                _dot(grads, d[1:]) if want_x else None,
            )

        @staticmethod
        def vmap(info: Any, in_dims: Any, v: Tensor, x: Tensor) -> Any:
            batched = [
                t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
                for t, dim in zip((v, x), in_dims, strict=True)
            ]
            result = gate(*batched)
            return result, 0 if order == 0 else (0,) * (order + 1)

    class Eager(Traced):
        @staticmethod
        def jvp(ctx: Any, dv: Tensor | None, dx: Tensor | None) -> Any:
            d = derivatives(*ctx.saved_tensors)
            tangents = tuple(_dot((dv, dx), d[k : k + 2]) for k in range(order + 1))
            return tangents[0] if order == 0 else tangents

    gate = _gate(operation, Traced, Eager)
    return Traced, Eager


def _dot(factors: Sequence[Tensor | None], derivatives: Sequence[Tensor]) -> Tensor | None:
    """Sum of the products, where a factor that is None counts as zero."""
    total: Tensor | None = None
    for factor, derivative in zip(factors, derivatives, strict=True):
        if factor is not None:
            product = factor * derivative
            total = product if total is None else total + product
    return total
