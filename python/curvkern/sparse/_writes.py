"""What writes into tensors in a graph, past which reads of them cannot be moved.

A graph says who takes a tensor, not whose memory it shares. A write that nobody else can see is
like a new tensor: of a fresh result, which nothing but the write takes. Any other is unsafe.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn


def iadd(x: Any, y: Any) -> Any:
    """``x += y``, of which torch.fx makes ``x + y``."""
    x += y
    return x


def isub(x: Any, y: Any) -> Any:
    """``x -= y``."""
    x -= y
    return x


def imul(x: Any, y: Any) -> Any:
    """``x *= y``."""
    x *= y
    return x


def itruediv(x: Any, y: Any) -> Any:
    """``x /= y``."""
    x /= y
    return x


class Proxy(fx.Proxy):
    """One that writes down the operators that work in place."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", itruediv, (self, other), {})


#: Modules and functions whose results are new tensors, never views or their arguments.
_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.ReLU,
    nn.Hardtanh,
    nn.SiLU,
    nn.Hardswish,
)
_FRESH_FUNCTIONS = (operator.add, operator.mul, operator.sub, torch.add, torch.mul, torch.cat)
_OPERATORS = (
    iadd,
    isub,
    imul,
    itruediv,
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.iand,
    operator.ior,
    operator.ixor,
    operator.setitem,
)


def writes(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    """Whether a node changes one of its arguments."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        special = name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
        return special or (name.endswith("_") and not name.startswith("__"))
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    named = node.kwargs.get("inplace", False) or node.kwargs.get("out") is not None
    trailing = name.endswith("_") and not name.endswith("__")
    return node.target in _OPERATORS or bool(named) or trailing


def fresh(modules: dict[str, nn.Module], node: object) -> bool:
    """Whether a result shares its memory with nothing that another node takes."""
    if not isinstance(node, fx.Node):
        return False
    if writes(modules, node):
        return safe(modules, node)
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, _FRESH_MODULES) or type(module).__module__.startswith(
            "curvkern.nn"
        )
    return node.op == "call_function" and node.target in _FRESH_FUNCTIONS


def safe(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    """Whether nobody else can see what a node writes."""
    if node.kwargs.get("out") is not None or not node.args:
        return False
    written = node.args[0]
    return isinstance(written, fx.Node) and len(written.users) == 1 and fresh(modules, written)


class Unsafe:
    """The unsafe writes of a graph, by their places."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.modules = modules = dict(model.named_modules(remove_duplicate=False))
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.nodes = {n for n in graph.nodes if writes(modules, n) and not safe(modules, n)}
        self.places = sorted(self.order[node] for node in self.nodes)

    def between(self, first: fx.Node, last: fx.Node, but: Collection[fx.Node] = ()) -> bool:
        """Whether one, not of ``but``, is ``first`` or follows it up to ``last``."""
        start, end = self.order[first], self.order[last]
        spared = {self.order[node] for node in but}
        found = self.places[bisect_left(self.places, start) : bisect_right(self.places, end)]
        return any(place not in spared for place in found)

    def replaceable(self, node: fx.Node) -> bool:
        """Whether a new tensor may take the place of what a node writes into.

        So it is where others have read it before, into new tensors, and nobody does after.
        """
        if node not in self.nodes:
            return True
        written = node.args[0] if node.args else None
        if not fresh(self.modules, written) or node.kwargs.get("out") is not None:
            return False
        assert isinstance(written, fx.Node)
        return all(
            user is node or (self.order[user] < self.order[node] and fresh(self.modules, user))
            for user in written.users
        )
