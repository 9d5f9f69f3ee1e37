"""What the autograd functions of this family share: batching rule, forward mode, the gate."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._autograd import _forward_mode, derivative_wanted
from .._ops import library
from .._sinkhorn import Problem

FIELDS = len(Problem._fields)  # arguments of a call that are a problem

#: All gates, which torch.compile puts into its graphs unopened.
GATES: list[Callable[..., Any]] = []


class Function(torch.autograd.Function):
    """Base of functions whose tensors all have the batch as their first dimension.

    A subclass defines ``forward``, ``setup_context``, ``backward`` and ``tangents``, which is
    its jvp with the saved tensors and tangents, zeros where there were none.
    """

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Tensor | None) -> Any:
        raise NotImplementedError  # replaced by define_gate

    @staticmethod
    def tangents(ctx: Any, saved: Any, tangents: Any) -> Any:
        raise NotImplementedError  # replaced by the subclass


def define_gate(cls: Any) -> Callable[..., Any]:
    """A callable that goes through the function where a derivative is wanted."""

    def call(*args: Any) -> Any:
        if derivative_wanted(*(arg for arg in args if isinstance(arg, Tensor))):
            return cls.apply(*args)
        return cls.forward(*args)

    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        with _forward_mode():  # with inputs stripped of this level's tangents
            saved = tuple(
                None if t is None else forward_ad.unpack_dual(t, level=0).primal
                for t in ctx.saved_tensors
            )
            return cls.tangents(ctx, saved, tangents)

    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        folded = [
            _fold(arg, dim, info.batch_size) if isinstance(arg, Tensor) else arg
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        outputs = call(*folded)
        single = isinstance(outputs, Tensor)
        unfolded = tuple(
            t.unflatten(0, (info.batch_size, t.shape[0] // info.batch_size))
            for t in ((outputs,) if single else outputs)
        )
        return (unfolded[0], 0) if single else (unfolded, (0,) * len(unfolded))

    cls.jvp = staticmethod(jvp)
    cls.vmap = staticmethod(vmap)
    # apply() asks inspect for this at every call, which takes longer than the call.
    cls.forward.__signature__ = signature(cls.forward)
    GATES.append(call)
    return call


def register_derivatives(name: str, cls: Any) -> None:
    """Those of a function for calls of its operation.

    Without them such a call would record what its Python side happens to compute with tensors
    that require gradients, and an exported graph would drop gradients without a word.
    """
    torch.library.register_autograd(
        f"curvkern::{name}", cls.backward, setup_context=cls.setup_context, lib=library
    )


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension joined to the batch."""
    batched = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return batched.flatten(0, 1)


def zeros_for(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent


def save_problem(ctx: Any, problem: Problem, *tensors: Tensor) -> None:
    """Keep a problem and what goes with it for derivatives in both modes."""
    ctx.kind, ctx.scale = problem.kind, problem.scale
    saved = (*problem[:5], problem.eps, problem.rho, *tensors)
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def saved_problem(ctx: Any, saved: Any) -> tuple[Any, ...]:
    """The problem, and what was saved with it."""
    a, b, cost, x, y, eps, rho, *tensors = saved
    return Problem(a, b, cost, x, y, ctx.kind, ctx.scale, eps, rho), *tensors
