"""torch's fused LSTM layer for the CPU, which has no second derivative: made anew, in steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rules import Op, Rule, Tangents, define


def _forward(op: Op, inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of one layer, as torch's: input, weights (2), biases (2), h, c.

    The node's input goes step by step even where the module's is ``batch_first``.
    """
    x, W, U, b, d, h, c = inputs
    gates = torch.nn.functional.linear(x, W, b + d if op.saved("has_biases") else None)
    h, c = h.squeeze(0) if h.dim() == 3 else h, c.squeeze(0) if c.dim() == 3 else c
    steps = range(len(x))
    found: dict[int, Tensor] = {}
    for s in reversed(steps) if op.saved("reverse") else steps:
        i, f, z, o = (gates[s] + h @ U.mT).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        found[s] = h
    return torch.stack([found[s] for s in steps]), h, c


def _made_anew(op: Op) -> tuple[list[Tensor], list[Tensor]]:
    names = ("input", "weight0", "weight1", "weight2", "weight3", "hx_", "cx_")
    inputs = [op.saved(name).detach().requires_grad_() for name in names]
    outputs = [
        y.reshape(meta.shape) for y, meta in zip(_forward(op, inputs), op.outputs, strict=False)
    ]
    return inputs, outputs


def _given(op: Op, inputs: list[Tensor], t: Tangents) -> list[Tensor]:
    return [
        torch.zeros_like(x) if one is None else one.expand_as(x)
        for x, one in zip(inputs, t, strict=True)
    ]


def _gradients(
    outputs: Sequence[Tensor], inputs: list[Tensor], g: list[Tensor], **how: bool
) -> tuple[Tensor, ...]:
    """Zeros where there are no biases."""
    known = [i for i, y in enumerate(outputs) if y.requires_grad]
    return torch.autograd.grad(
        [outputs[i] for i in known], inputs, [g[i] for i in known],
        allow_unused=True, materialize_grads=True, **how,
    )  # fmt: skip


def _tangent(op: Op, t: Tangents) -> Any:
    with torch.enable_grad():
        inputs, outputs = _made_anew(op)
        w = [torch.zeros_like(y).requires_grad_() for y in outputs]
        back = _gradients(outputs, inputs, w, create_graph=True)
    return torch.autograd.grad(back, w, _given(op, inputs, t))


def _reverse(op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool) -> tuple[Any, Any]:
    with torch.enable_grad():
        inputs, outputs = _made_anew(op)

        def filled(given: Tangents) -> list[Tensor]:
            return [
                torch.zeros_like(y) if one is None else one
                for y, one in zip(outputs, given, strict=False)
            ]

        x = _gradients(outputs, inputs, filled(g), create_graph=True)
        bent = _gradients(x, inputs, _given(op, inputs, t), retain_graph=True)
    dots = _gradients(outputs, inputs, filled(gd))
    xd = [a + b for a, b in zip(dots, bent, strict=True)]
    return [one.detach() for one in x] if primal else None, xd


define("MkldnnRnnLayer", rule=Rule(_tangent, _reverse))
