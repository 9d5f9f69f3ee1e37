r"""Gradients and their tangents from torch's own graph of a loss.

Along :math:`p + \varepsilon v` every tensor x of the graph has a tangent :math:`\dot x = dx /
d\varepsilon`, and its gradient :math:`\bar x = dL / dx` has one, too: that of a parameter's
gradient is the product Hv. One pass goes forward with the tangents, another backward with
gradients and their tangents together, node after node. For y = x W it is

.. math::

    \dot y &= \dot x W + x \dot W, & \bar x &= \bar y W^\top, & \bar W &= x^\top \bar y,\\
    && \dot{\bar x} &= \dot{\bar y} W^\top + \bar y \dot W^\top, &
    \dot{\bar W} &= \dot x^\top \bar y + x^\top \dot{\bar y}

(B. A. Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 6 (1994),
section 3). What the forward pass has saved is shared; no second graph is made, and a tangent
lives until its last use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .fallback import FALLBACK
from .rules import RULES, Meta, Op, Tangents, metadata, summed

#: Elements a node from which on these passes are no slower than torch's in small layers, and
#: mostly quicker: measured on MLPs and ResNets from 2e2 to 2e5 elements a node.
ELEMENTS = 32768
#: Nodes that torch cannot differentiate twice.
ONLY_HERE = {"ScaledDotProductFlashAttentionForCpuBackward0"}
ACCUMULATE = "torch::autograd::AccumulateGrad"

#: Of a node: its op, a parameter's number, or None where it leads to none; and its outputs.
Sources = dict[Any, tuple[Op | int | None, Sequence[Meta]]]

_SAVED: dict[str, list[str]] = {}  # what a node of this name has saved


class HookError(RuntimeError):
    """A hook changes a gradient."""


class Graph:
    """The nodes between a loss and leaves among ``params``, inputs before outputs."""

    def __init__(self, loss: Tensor, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        self.ops: list[Op] = []
        self.loss_shape, self.loss_device, self.loss_dtype = loss.shape, loss.device, loss.dtype
        index = {id(p): i for i, p in enumerate(self.params)}
        self.found: set[int] = set()  # which params the loss depends on
        self.kept: list[Tangents] | None = None  # gradients of every op's outputs
        self.grads: Tangents = []
        self._root: tuple[Op | int | None, int] = (None, 0)
        if loss.grad_fn is not None:
            self._root = (self._collect(loss.grad_fn, index), loss.output_nr)
        elif id(loss) in index:  # the loss is a parameter itself
            self.found.add(index[id(loss)])
            self._root = (index[id(loss)], 0)
        self.uses = [0] * len(self.ops)
        for op in self.ops:
            for source, _ in op.edges:
                if isinstance(source, Op):
                    self.uses[source.at] += 1

    def _collect(self, root: Any, index: dict[int, int]) -> Op | int | None:
        """Depth first, without recursion: networks are deep."""
        known: Sources = {}
        stack = [(root, root.next_functions, 0)]
        entered = {root}
        while stack:
            fn, edges, at = stack.pop()
            while at < len(edges):
                child = edges[at][0]
                at += 1
                if child is not None and child not in entered:
                    entered.add(child)
                    stack.append((fn, edges, at))
                    stack.append((child, child.next_functions, 0))
                    break
            else:
                known[fn] = self._entry(fn, edges, index, known)
        return known[root][0]

    def _entry(
        self, fn: Any, edges: Any, index: dict[int, int], known: Sources
    ) -> tuple[Op | int | None, Sequence[Meta]]:
        name = fn.name()
        if name == ACCUMULATE:
            i = index.get(id(fn.variable))
            if i is not None:
                self.found.add(i)
            return i, metadata(fn)
        sources = [(None if f is None else known[f][0], nr) for f, nr in edges]
        if all(source is None for source, _ in sources):
            return None, metadata(fn)
        inputs = [None if f is None else known[f][1][nr] for f, nr in edges]
        op = Op(len(self.ops), fn, name, RULES.get(name, FALLBACK), sources, inputs)
        self.ops.append(op)
        return op, op.outputs

    def unknown(self) -> list[str]:
        """Names of nodes without a rule."""
        return sorted({op.name for op in self.ops if op.rule is FALLBACK})

    def is_large(self) -> bool:
        """Whether the work outweighs a node's calls from Python, or torch cannot do it."""
        if any(op.name in ONLY_HERE for op in self.ops):
            return True
        elements = sum(meta.shape.numel() for op in self.ops for meta in op.outputs)
        elements += sum(self.params[i].numel() for i in self.found)
        return elements >= ELEMENTS * len(self.ops)

    def is_complex(self) -> bool:
        return any(meta.dtype.is_complex for op in self.ops for meta in op.outputs)

    def is_plain(self) -> bool:
        """Whether torch has saved dense tensors as they are: no checkpoint, no hook."""
        for op in self.ops:
            if op.name not in _SAVED:
                _SAVED[op.name] = [n for n in dir(op.fn) if n.startswith("_raw_saved_")]
            for name in _SAVED[op.name]:
                raw = getattr(op.fn, name)
                for one in raw if isinstance(raw, tuple) else (raw,):
                    if getattr(one, "unpack_hook", None) is not None:
                        return False
            if op.name == "EmbeddingBackward0" and (
                op.saved("sparse") or op.saved("scale_grad_by_freq")
            ):
                return False
        return True

    def is_hooked(self) -> bool:
        """Whether gradients of parameters or nodes have hooks, as of modules."""
        if any(self.params[i]._backward_hooks for i in self.found):
            return True
        return any(_has_hooks(op.fn) for op in self.ops)

    # Passes ------------------------------------------------------------------------------

    def products(
        self, vectors: Sequence[Tensor], keep: bool = False
    ) -> tuple[Tangents, list[Tensor]]:
        """Gradients, None where there is none, and Hv, zeros there.

        With ``keep`` gradients of all outputs stay for the next vector, which then takes six
        units of bilinear work instead of eight, next to the three of a gradient.
        """
        off = torch.autocast(self.loss_device.type, enabled=False)
        try:
            with torch.no_grad(), off:
                self._forward(vectors)
                hv = self._backward(vectors, keep)
        finally:
            for op in self.ops:
                op.tangents = []
        return self.grads, [
            torch.zeros_like(p) if t is None else t
            for p, t in zip(self.params, hv, strict=True)
        ]

    def _forward(self, vectors: Sequence[Tensor]) -> None:
        tangents: list[Tangents | None] = [None] * len(self.ops)
        left = list(self.uses)
        for op in self.ops:
            t: Tangents = []
            for source, nr in op.edges:
                if isinstance(source, Op):
                    outputs = tangents[source.at]
                    t.append(None if outputs is None else outputs[nr])
                    left[source.at] -= 1
                    if not left[source.at]:
                        tangents[source.at] = None
                else:
                    t.append(None if source is None else vectors[source])
            op.tangents = t if op.rule.keeps else []
            if all(one is None for one in t):
                continue
            y = op.rule.tangent(op, t)
            if isinstance(y, Tensor):
                y = [y]
            if y is not None:
                fitted = [
                    None if one is None else _expanded(one, meta)
                    for one, meta in zip(y, op.outputs, strict=False)
                ]
                tangents[op.at] = fitted + [None] * (len(op.outputs) - len(fitted))

    def _backward(self, vectors: Sequence[Tensor], keep: bool) -> Tangents:
        primal = self.kept is None
        n = len(self.ops)
        sums: list[_Sums | None] = [None] * n
        dots: list[_Sums | None] = [None] * n
        leaf, leaf_dot = _Sums(len(self.params)), _Sums(len(self.params))
        one = torch.ones(self.loss_shape, dtype=self.loss_dtype, device=self.loss_device)

        def give(into: list[_Sums | None], leaves: _Sums, edge: Any, value: Tensor) -> None:
            source, nr = edge
            if isinstance(source, Op):
                known = into[source.at]
                if known is None:
                    known = into[source.at] = _Sums(len(source.outputs))
                known.add(nr, value)
            elif source is not None:
                leaves.add(source, value)

        give(sums, leaf, self._root, one)
        stored: list[Tangents] = [[] for _ in self.ops]
        for op in reversed(self.ops):
            t, op.tangents = op.tangents, []
            found, found_dot = sums[op.at], dots[op.at]
            sums[op.at] = dots[op.at] = None
            none: Tangents = [None] * len(op.outputs)
            g = found.values if found is not None else none
            if not primal:
                assert self.kept is not None
                g = self.kept[op.at]
            elif any(a is not None for a in g):
                _run_hooks(op, g)
            if keep and primal:
                stored[op.at] = g
            gd = found_dot.values if found_dot is not None else none
            if all(a is None for a in g) and all(a is None for a in gd):
                continue
            x, xd = op.rule.reverse(op, t or [None] * len(op.edges), g, gd, primal)
            for results, into, leaves in ((x, sums, leaf), (xd, dots, leaf_dot)):
                if results is None:
                    continue
                if isinstance(results, Tensor):
                    results = (results,)
                for edge, meta, value in zip(op.edges, op.inputs, results, strict=False):
                    if value is not None and edge[0] is not None:
                        assert meta is not None
                        give(into, leaves, edge, summed(value, meta))
        if primal:
            self.grads = leaf.separate(vectors)
            if keep:
                self.kept = stored
        return leaf_dot.separate(vectors)


def _has_hooks(fn: Any) -> bool:
    """Of a node, before or after it; torch does not list them, but a handle has their dict."""
    for register in (fn.register_prehook, fn.register_hook):
        handle = register(_no_hook)
        found = len(handle.hooks_dict_ref()) > 1
        handle.remove()
        if found:
            return True
    return False


def _no_hook(*_: Any) -> None:
    return None


def _run_hooks(op: Op, g: Tangents) -> None:
    """Call the hooks of the output tensors, which torch does not list, as ``backward`` would.

    What is captured at an edge has passed through its hooks, and the node itself does not run.
    """
    edges = [GradientEdge(op.fn, nr) for nr, one in enumerate(g) if one is not None]
    given = [one for one in g if one is not None]
    versions = [one._version for one in given]
    found = torch.autograd.grad(edges, edges, given)
    for one, other, version in zip(given, found, versions, strict=True):
        if one._version != version or (other is not one and not torch.equal(other, one)):
            raise HookError(
                f"a hook on an output of {op.name} changes its gradient; use 'reverse'"
            )


class _Sums:
    """Sums of what consumers give; what was given is not written to."""

    __slots__ = ("owned", "values")

    def __init__(self, n: int) -> None:
        self.values: Tangents = [None] * n
        self.owned = [False] * n

    def add(self, nr: int, value: Tensor) -> None:
        before = self.values[nr]
        if before is None:
            self.values[nr] = value
        elif self.owned[nr]:
            before.add_(value)
        else:
            self.values[nr] = before + value
            self.owned[nr] = True

    def separate(self, others: Sequence[Tensor]) -> Tangents:
        """Dense, and no two in one place."""
        places = {t.untyped_storage().data_ptr() for t in others}
        for i, value in enumerate(self.values):
            if value is None:
                continue
            value = value.detach()
            if value.layout is not torch.strided:
                continue
            taken = value.untyped_storage().data_ptr() in places
            if taken or not value.is_contiguous():
                value = value.clone(memory_format=torch.contiguous_format)
            places.add(value.untyped_storage().data_ptr())
            self.values[i] = value
        return self.values


def _expanded(t: Tensor, meta: Meta) -> Tensor:
    if t.dtype is not meta.dtype:
        t = t.to(meta.dtype)
    return t if t.shape == meta.shape else t.expand(meta.shape)
