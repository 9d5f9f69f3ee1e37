"""Which layers of a graph run as one call."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .. import _sparseconv
from ..nn._depthwise import DepthwiseConv2d, FirstConv2d
from ..nn._fused import FusedConvs, Step
from ..nn._sparse_weight import SparseWeightConv2d
from . import _chains, _execution, _gates, _writes
from ._gradients import activated

#: What a fused module is called, with a number.
PREFIX = "fused_convs"
#: A layer alone may take so many times as long as a dense one to be tried in a run.
CLOSE = 1.5
FUNCTIONS = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}


@dataclass
class Run:
    """Layers one after the other: nothing but the last result is used elsewhere."""

    nodes: list[fx.Node]
    gates: dict[fx.Node, _gates.Gate]

    @property
    def names(self) -> list[str]:
        return [str(node.target) for node in self.nodes]

    @property
    def source(self) -> fx.Node:
        return _taken(self.nodes[0], self.gates)[0]

    def module(self) -> FusedConvs:
        """The module that runs them."""
        number = {self.source: 0} | {node: i + 1 for i, node in enumerate(self.nodes)}
        steps = []
        for node in self.nodes:
            x, *residual = _taken(node, self.gates)
            beside = number[residual[0]] if residual else None
            gate = self.gates[node].names if node in self.gates else ()
            steps.append(Step(str(node.target), number[x], beside, gate))
        roots = dict.fromkeys(name.partition(".")[0] for step in steps for name in step.names)
        return FusedConvs(tuple(steps), tuple(roots))


def _taken(node: fx.Node, gates: dict[fx.Node, _gates.Gate]) -> list[Any]:
    """What a layer takes; where channels are scaled, what they are before."""
    return [gates[node].source, *node.args[1:]] if node in gates else list(node.args)


def runs(
    model: nn.Module,
    nodes: Iterable[fx.Node],
    calls: Counter[fx.node.Target],
    unsafe: _writes.Unsafe,
) -> list[Run]:
    """The longest runs among nodes, which are in the order of their graph.

    ``calls``: how often the graph calls each module.
    """
    layers = [node for node in nodes if _fusible(model, node, calls)]
    gates = {
        node: gate for node in layers if (gate := _gates.before(model, node, calls, unsafe))
    }
    return _split(layers, gates, unsafe)


def _fusible(model: nn.Module, node: fx.Node, calls: Counter[fx.node.Target]) -> bool:
    if node.op != "call_module" or calls[node.target] != 1 or node.kwargs:
        return False
    module = model.get_submodule(str(node.target))
    if _chains.hooked(module) or any(not isinstance(arg, fx.Node) for arg in node.args):
        return False
    return all(p.is_cpu for p in module.parameters()) and _has_stage(module)


def _has_stage(module: nn.Module) -> bool:
    """Whether the native chain has a stage for what a module computes."""
    if type(module) is SparseWeightConv2d:
        return module.stride == 1 and module.format != "dense"
    if type(module) is FirstConv2d:
        return _sparseconv.first_is_native(module.in_channels)
    return type(module) is DepthwiseConv2d


def _split(
    nodes: list[fx.Node], gates: dict[fx.Node, _gates.Gate], unsafe: _writes.Unsafe
) -> list[Run]:
    found: list[Run] = []
    current: list[fx.Node] = []
    source: Any = None
    for node in nodes:
        x, *rest = _taken(node, gates)
        known = (*current, source)
        joins = x in current and all(arg in known for arg in rest)
        hidden = [n for layer in (*current, node) if layer in gates for n in gates[layer].nodes]
        # all is computed where the last one stands
        if current and not (joins and not unsafe.between(current[0], node, hidden)):
            found += _cut(current, gates, unsafe)
            current = []
        if current:
            current.append(node)
        elif all(arg is x for arg in rest):
            current, source = [node], x
    return found + _cut(current, gates, unsafe)


def _cut(
    nodes: list[fx.Node], gates: dict[fx.Node, _gates.Gate], unsafe: _writes.Unsafe
) -> list[Run]:
    """Runs of nodes that join each other: as many of the first as hide what lies between."""
    for count in range(len(nodes), 1, -1):
        inside = set(nodes[:count])
        for node in nodes[:count]:
            inside.update(gates[node].nodes if node in gates else ())
        if all(inside.issuperset(node.users) for node in nodes[: count - 1]):
            return [Run(nodes[:count], gates), *_split(nodes[count:], gates, unsafe)]
    return _split(nodes[1:], gates, unsafe) if len(nodes) > 1 else []


def put(model: nn.Module, graph: fx.Graph, found: list[tuple[Run, FusedConvs]]) -> None:
    """Calls of fused modules in place of those of their layers."""
    held: dict[str, fx.Node] = {}
    first = next(iter(graph.nodes))
    number = 0
    for run, fused in found:
        for root in fused.roots:
            if root not in held:  # before all else, as placeholders may be in any place
                with graph.inserting_before(first):
                    held[root] = graph.create_node("get_attr", root)
        while hasattr(model, f"{PREFIX}_{number}"):
            number += 1
        name = f"{PREFIX}_{number}"
        setattr(model, name, fused.train(model.training))
        last = run.nodes[-1]
        with graph.inserting_after(last):
            roots = tuple(held[root] for root in fused.roots)
            call = graph.call_module(name, (run.source, *roots))
        last.replace_all_uses_with(call)
        for node in reversed(run.nodes):
            graph.erase_node(node)
            for hidden in run.gates[node].nodes if node in run.gates else ():
                graph.erase_node(hidden)


@dataclass
class Loser:
    """A dense convolution that was quicker than what is to replace it, and what follows it."""

    conv: nn.Conv2d
    activation: str

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """What the layer that replaces it computes."""
        z = self.conv(x)
        return activated(self.activation, z if residual is None else z + residual)


def may_win(new: nn.Module, x: Tensor, sparse: float, dense: float) -> bool:
    """Whether a layer that takes so many seconds alone is tried among others.

    Filters of small images in a batch are in any case: a run may take them together.
    """
    most = _sparseconv.Chain.pixels_an_image * _sparseconv.Chain.most_images
    small = x.dim() == 4 and x.shape[0] > 1 and x.shape[2] * x.shape[3] <= most
    close = sparse < CLOSE * dense or (small and type(new) is DepthwiseConv2d)
    return close and _has_stage(new)


def fuse(
    model: nn.Module, graph: fx.Graph, losers: dict[str, Loser], inputs: dict[str, Tensor]
) -> bool:
    """Make layers one call, where that was measured quicker; whether there are any.

    ``inputs``: examples of what reaches layers, by name. Losers that stay alone, or in a run
    that loses with them, are put back.
    """
    erased = erase_identities(model, graph)
    won: list[tuple[Run, FusedConvs]] = []
    unsafe = _writes.Unsafe(model, graph)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    waiting = runs(model, graph.nodes, calls, unsafe)
    while waiting:
        run = waiting.pop(0)
        fused, x = run.module(), inputs.get(run.names[0])
        if x is None or model.training or _wins(model, run, fused, x, losers):
            won.append((run, fused))
        elif any(name in losers for name in run.names):
            rest = [node for node in run.nodes if node.target not in losers]
            waiting = runs(model, rest, calls, unsafe) + waiting
    put(model, graph, won)  # first, as what is put back has another node for its result
    kept = {name for run, _ in won for name in run.names}
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target in losers and node.target not in kept:
            _put_back(model, graph, node, losers[str(node.target)])
            erased = True
    graph.lint()
    return erased or bool(won)


@torch.no_grad()
def _wins(
    model: nn.Module, run: Run, fused: FusedConvs, x: Tensor, losers: dict[str, Loser]
) -> bool:
    """Whether a run is quicker as one call than its layers, each as quick as it can be."""
    names = [name for step in fused.steps for name in step.names]
    members = tuple(model.get_submodule(name) for name in names)
    x = x.contiguous()
    if x.dim() != 4 or not x.is_cpu:
        return False
    quickest = [losers.get(n, m) for n, m in zip(names, members, strict=True)]
    fused.each(x, quickest)  # measures the variants of the layers
    chain = fused.chain(x, members)
    if chain is None:
        return False
    calls: dict[str, Callable[[], object]] = {
        "chain": lambda: chain(x),
        "layers": lambda: fused.each(x, quickest),
    }
    seconds = _execution.measure(calls, x.device)
    return seconds["chain"] < seconds["layers"]


def _put_back(model: nn.Module, graph: fx.Graph, node: fx.Node, loser: Loser) -> None:
    """A dense convolution where it stood, with what followed it."""
    parent, _, child = str(node.target).rpartition(".")
    holder = model.get_submodule(parent)
    record = getattr(getattr(holder, child), "sparsify_record", None)
    if record is not None:
        loser.conv.sparsify_record = record
    setattr(holder, child, loser.conv)
    x, *residual = node.args
    node.args = (x,)
    last = node
    users = list(node.users)
    for term in residual:
        with graph.inserting_after(last):
            last = graph.call_function(operator.add, (last, term))
    if loser.activation != "none":
        with graph.inserting_after(last):
            last = graph.call_function(FUNCTIONS[loser.activation], (last,))
    for user in users:
        user.replace_input_with(node, last)


def erase_identities(model: nn.Module, graph: fx.Graph) -> bool:
    """Take modules that do nothing out of a graph."""
    erased = False
    for node in list(graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        module = model.get_submodule(str(node.target))
        if type(module) is nn.Identity and not _chains.hooked(module):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            erased = True
    return erased
