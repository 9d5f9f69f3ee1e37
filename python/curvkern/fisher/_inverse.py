"""F^-1 v, differentiable in v: linear and symmetric, it is its own derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _runtime
from .._autograd import _forward_mode


class InverseProduct(torch.autograd.Function):
    """``fisher._solved(v, damping)`` for v of shape (k, d)."""

    @staticmethod
    def forward(v: Tensor, fisher: Any, damping: float) -> Tensor:
        result: Tensor = fisher._solved(v, damping)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.fisher, ctx.damping = inputs
        ctx.version = ctx.fisher._version

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        return _again(ctx, grad), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Tensor | None:
        if tangent is None:
            return None
        with _forward_mode():
            return _again(ctx, tangent)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], v: Tensor, fisher: Any, damping: float
    ) -> Any:
        v = v.movedim(in_dims[0], 0)
        flat = InverseProduct.apply(v.reshape(-1, v.shape[-1]), fisher, damping)
        return flat.reshape(v.shape), 0


def _again(ctx: Any, v: Tensor) -> Tensor:
    with ctx.fisher._lock:  # autograd calls past what guards the public methods
        _runtime.spare_forked_child()
        if ctx.fisher._version != ctx.version:
            raise RuntimeError(
                "ihvp: the window has been changed since the product was taken, and its "
                "derivative needs it unchanged; call backward before the next push"
            )
        result: Tensor = InverseProduct.apply(v, ctx.fisher, ctx.damping)
        return result
