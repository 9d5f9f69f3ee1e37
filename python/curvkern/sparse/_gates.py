"""Squeeze and excitation in a graph, before a 1 x 1 convolution that can do it as well."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..nn._sparse_weight import SparseWeightConv2d
from . import _chains, _writes

_PRODUCTS = (operator.mul, operator.imul, torch.mul, _writes.imul)


@dataclass
class Gate:
    """What is scaled, by names of the modules that find the scale, and the nodes of all that.

    The nodes are in the order in which they can be erased.
    """

    source: fx.Node
    names: tuple[str, ...]
    nodes: list[fx.Node]


def before(
    model: nn.Module, node: fx.Node, calls: Counter[fx.node.Target], unsafe: _writes.Unsafe
) -> Gate | None:
    """The squeeze and excitation of what a sparse layer takes, if nobody else sees it."""
    product = node.args[0]
    layer = model.get_submodule(str(node.target))
    if not isinstance(layer, SparseWeightConv2d) or not isinstance(product, fx.Node):
        return None
    plain = product.op == "call_function" and product.target in _PRODUCTS
    plain = plain and unsafe.replaceable(product)
    if not plain or len(product.args) != 2 or product.kwargs or len(product.users) != 1:
        return None
    for source, scale in (product.args, product.args[::-1]):
        if isinstance(source, fx.Node) and isinstance(scale, fx.Node):
            walk = _Walk(model, calls, scale)
            names = walk.names(source)
            if names is not None and not unsafe.between(walk.nodes[-1], node, [product]):
                return Gate(source, names, [product, *walk.nodes])
    return None


class _Walk:
    """From a scale back to what it is of."""

    def __init__(
        self, model: nn.Module, calls: Counter[fx.node.Target], scale: fx.Node
    ) -> None:
        self.model, self.calls, self.at = model, calls, scale
        self.nodes: list[fx.Node] = []

    def names(self, source: fx.Node) -> tuple[str, ...] | None:
        flat = self._method("unflatten", (1, (-1, 1, 1)))
        kind = nn.Linear if flat else nn.Conv2d
        sigmoid = self._module(_sigmoid)
        excite = self._module(lambda m: _linear(m, kind))
        act = self._module(_activation)
        squeeze = self._module(lambda m: _linear(m, kind))
        if flat and not self._method("flatten", (1,)):
            return None
        pool = self._module(_pool)
        names = pool, squeeze, act, excite, sigmoid
        if self.at is not source or None in names:
            return None
        return tuple(str(name) for name in names)

    def _step(self) -> None:
        self.nodes.append(self.at)
        following = self.at.args[0]
        assert isinstance(following, fx.Node)
        self.at = following

    def _method(self, name: str, rest: tuple[Any, ...]) -> bool:
        node = self.at
        found = (
            node.op == "call_method"
            and node.target == name
            and tuple(node.args[1:]) == rest
            and not node.kwargs
            and len(node.users) == 1
        )
        if found:
            self._step()
        return found

    def _module(self, fits: Any) -> str | None:
        node = self.at
        if node.op != "call_module" or len(node.args) != 1 or len(node.users) != 1:
            return None
        module = self.model.get_submodule(str(node.target))
        if self.calls[node.target] != 1 or not fits(module) or _chains.hooked(module):
            return None
        self._step()
        return str(node.target)


def has_scale(modules: Sequence[nn.Module]) -> bool:
    """Whether modules, in the order of the names of a gate, find a scale as the chain does."""
    pool, squeeze, act, excite, sigmoid = modules
    kind = nn.Linear if type(squeeze) is nn.Linear else nn.Conv2d
    linear = _linear(squeeze, kind) and _linear(excite, kind)
    return linear and _pool(pool) and _activation(act) and _sigmoid(sigmoid)


def _pool(module: nn.Module) -> bool:
    return type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1))


def _activation(module: nn.Module) -> bool:
    return _chains.activation_of(module) is not None


def _sigmoid(module: nn.Module) -> bool:
    return type(module) in (nn.Sigmoid, nn.Hardsigmoid)


def _linear(module: nn.Module, kind: type[nn.Module]) -> bool:
    if type(module) is not kind:
        return False
    if isinstance(module, nn.Conv2d):
        plain = module.kernel_size, module.stride, module.groups
        return plain == ((1, 1), (1, 1), 1) and module.padding in ((0, 0), "valid", "same")
    return True
