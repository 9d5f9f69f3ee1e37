r"""Nodes without a rule, by torch's double backward of the node alone.

The node is a map :math:`\bar y \to J^\top \bar y`, linear in :math:`\bar y`: differentiated by
it along :math:`\dot x` it gives :math:`J \dot x`. Differentiated by x, it gives a symmetric
matrix, the Hessian of :math:`\bar y \cdot y(x)`, so its product with :math:`\dot x` is a
gradient, too, and one more order is enough.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .rules import Op, Rule, Tangents, add, summed

NONE = "it has no second derivative"


def _cotangents(op: Op, g: Tangents, missing: float) -> list[Tensor]:
    return [
        (
            torch.full(meta.shape, missing, dtype=meta.dtype, device=meta.device)
            if one is None
            else one
        )
        .detach()
        .requires_grad_()
        for one, meta in zip(g, op.outputs, strict=True)
    ]


def _paired(op: Op, t: Tangents, w: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the inputs that have a graph, with these inputs' tangents."""
    outputs, along = [], []
    for i, (g, one) in enumerate(zip(op.vjp(w), t, strict=False)):
        if op.needs(i) and g is not None and one is not None and g.requires_grad:
            if g.grad_fn is not None and g.grad_fn.name().endswith("Error"):
                raise RuntimeError(f"{op.name} is once_differentiable; {NONE}")
            outputs.append(g)
            along.append(one.expand_as(g).to(g.dtype) if one.shape != g.shape else one)
    return outputs, along


def _refused(op: Op, error: RuntimeError) -> RuntimeError:
    words = str(error).splitlines()[0]
    return RuntimeError(f"{op.name}: {NONE}: {words}")


def _tangent(op: Op, t: Tangents) -> Any:
    with torch.enable_grad():
        # The map is linear, so where it is differentiated does not matter; but torch computes
        # some from log |w|, which has no derivative at zero.
        w = _cotangents(op, [None] * len(op.outputs), 1.0)
        outputs, along = _paired(op, t, w)
        if not outputs:
            return None
        try:
            return torch.autograd.grad(outputs, w, along, allow_unused=True)
        except RuntimeError as error:
            raise _refused(op, error) from error


def _reverse(op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool) -> tuple[Any, Any]:
    x = op.vjp(g) if primal else None
    xd = op.vjp(gd)
    if all(one is None for one in g) or all(one is None for one in t):
        return x, xd
    edges = [
        GradientEdge(f, nr) for i, (f, nr) in enumerate(op.fn.next_functions) if op.needs(i)
    ]
    unique = list({(edge.node, edge.output_nr): edge for edge in edges}.values())
    with torch.enable_grad():
        w = _cotangents(op, g, 0.0)
        outputs, along = _paired(op, t, w)
        if not outputs:
            return x, xd
        try:
            # By w, too: a node that cannot be differentiated twice says so there.
            found = _partial(outputs, unique, w, along)
        except RuntimeError as error:
            raise _refused(op, error) from error
    at = {(edge.node, edge.output_nr): value for edge, value in zip(unique, found, strict=True)}
    for i, (f, nr) in enumerate(op.fn.next_functions):
        value = at.pop((f, nr), None) if op.needs(i) else None
        if value is not None:
            before, meta = xd[i], op.inputs[i]
            if before is not None and meta is not None:  # an input that was broadcast
                before = summed(before, meta)
            xd[i] = add(before, value)
    return x, xd


def _partial(
    outputs: list[Tensor], edges: list[Any], w: list[Tensor], along: list[Tensor]
) -> list[Tensor | None]:
    """Derivatives by edges, none of which depends on another."""

    def stop(grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else torch.zeros_like(g) for g in grads)

    inputs = [*edges, *w]
    # What is captured at an edge must not flow on into another of the same node.
    handles = [
        edge.node.register_prehook(stop)
        for edge in edges
        if len(edges) > 1 and edge.node.next_functions
    ]
    try:
        found = torch.autograd.grad(
            outputs, inputs, along, retain_graph=True, allow_unused=True
        )
    finally:
        for handle in handles:
            handle.remove()
    return list(found[: len(edges)])


FALLBACK = Rule(_tangent, _reverse)
