r"""Fixed points as functions of their parameters, with derivatives of every order.

With s = Phi(s, p) and J = dPhi/ds, a gradient g in s becomes one in p by

    z = g + J' z,    dPhi/dp' z

The first is a fixed point itself, of the parameters g, s and p, at the same rate as the one
that it belongs to. So its own derivatives come from the same rule, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

GRADIENT_TOL = 1e-12  # relative change of z in an iteration
STAGNATION = 50  # iterations without a smaller change after which they stop

Step = Callable[..., Tensor]  # of the state and the parameters


def fixed_point(
    solve: Callable[..., Tensor], step: Step, most: int, *parameters: Tensor
) -> Tensor:
    """``solve(*parameters)``, which solves s = step(s, *parameters).

    Reverse mode; the solutions for derivatives take at most so many iterations each.
    """
    state: Tensor = _FixedPoint.apply(solve, step, most, *parameters)
    return state


class _FixedPoint(torch.autograd.Function):
    @staticmethod
    def forward(
        solve: Callable[..., Tensor], step: Step, most: int, *parameters: Tensor
    ) -> Tensor:
        return solve(*parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.step, ctx.most, *parameters = inputs
        ctx.save_for_backward(output, *parameters)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError("barycenter: no forward mode; use reverse mode")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        raise NotImplementedError("barycenter: no vmap; pass a batch (B, K, n)")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        state, *parameters = ctx.saved_tensors
        step, most = ctx.step, ctx.most

        def adjoint(z: Tensor, gradient: Tensor, state: Tensor, *given: Tensor) -> Tensor:
            pull = torch.func.vjp(lambda s: step(s, *given), state)[1]
            return gradient + pull(z)[0]

        def solve(gradient: Tensor, state: Tensor, *given: Tensor) -> Tensor:
            pull = torch.func.vjp(lambda s: step(s, *given), state)[1]
            return _iterated(lambda z: gradient + pull(z)[0], gradient, most)

        z = fixed_point(solve, adjoint, most, gradient, state, *parameters)
        pull = torch.func.vjp(lambda *given: step(state, *given), *parameters)[1]
        return None, None, None, *pull(z)


def _iterated(function: Callable[[Tensor], Tensor], z: Tensor, most: int) -> Tensor:
    best, since = float("inf"), 0
    for _ in range(most):
        before, z = z, function(z)
        change = float((z - before).abs().max())
        best, since = (change, 0) if change < best else (best, since + 1)
        if change <= GRADIENT_TOL * float(z.abs().max()) or since > STAGNATION:
            break
    return z
