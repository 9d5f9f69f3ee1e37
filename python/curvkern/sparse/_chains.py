"""Which normalisations, sums and activations follow a convolution and can be done with it."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from . import _writes

_FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
}
_METHODS = {"relu": "relu", "relu_": "relu"}
_ADD_FUNCTIONS = (operator.add, operator.iadd, torch.add, _writes.iadd)
_ADD_METHODS = ("add", "add_", "__add__", "__iadd__")
_MODULES = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}


@dataclass
class Chain:
    """A convolution, by name, and what follows it and nothing else."""

    conv: str
    bn: str | None = None
    activation: str = "none"
    act: str | None = None  # the module that applies it, if it is one
    residual: fx.Node | None = None
    nodes: list[fx.Node] = field(default_factory=list)  # those that the chain takes in


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _writes.Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("curvkern.nn")
        return ours or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module) -> fx.Graph | None:
    """The graph of a model; None where it cannot be traced, or where training is written in."""
    if hooked(model):  # a graph is of its forward alone
        return None
    try:
        graph = _Tracer().trace(model)
        if not _one_way(model, graph):
            return None
    except Exception:  # whatever a forward does with a proxy
        return None
    if any("training" in node.kwargs for node in graph.nodes):
        return None  # of a functional dropout, say: fixed to what it is now
    for node in graph.nodes:
        if isinstance(node.type, str):  # an annotation that pickling would look up
            node.type = None
        if _takes_input_by_name(model, node):
            node.args, node.kwargs = (node.kwargs["input"],), {}
    return graph


def _takes_input_by_name(model: nn.Module, node: fx.Node) -> bool:
    """Whether a module of torch is called as ``conv(input=x)``, which is ``conv(x)``."""
    if node.op != "call_module" or node.args or set(node.kwargs) != {"input"}:
        return False
    module = model.get_submodule(str(node.target))
    # a hook sees which of the two it is
    return type(module).__module__.startswith("torch.nn.modules.") and not hooked(module)


def _one_way(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether a model goes the same way where optional arguments are left out.

    ``x is None`` is false of a proxy, in silence: the graph is of calls that give them all.
    """
    defaults = {k: p.default for k, p in inspect.signature(model.forward).parameters.items()}
    left_out = {k: d for k, d in defaults.items() if d is None or isinstance(d, bool)}
    if not left_out:
        return True
    without = _Tracer().trace(model, dict(left_out))
    return _steps(without, left_out) == _steps(graph, left_out)


def _steps(graph: fx.Graph, left_out: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What a graph does with its arguments, some of which are what they are if left out."""
    known: dict[fx.Node, Any] = {}
    steps = []

    def names(args: Any) -> str:
        return repr(fx.node.map_arg(args, lambda node: known[node]))

    for node in graph.nodes:
        if node.op == "placeholder":
            given = str(node.target)
            known[node] = left_out.get(given, f"%{given}")
        elif not _checks(node):
            known[node] = f"%{len(known)}"
            steps.append((node.op, node.target, names(node.args), names(node.kwargs)))
    return steps


def _checks(node: fx.Node) -> bool:
    """Whether a node is of the checks that torch.fx adds for arguments that are fixed."""
    name = getattr(node.target, "__name__", "")
    return "_assert" in name or any("_assert" in str(user.target) for user in node.users)


def activation_of(module: nn.Module) -> str | None:
    """The name of what a module applies."""
    if type(module) is nn.Hardtanh and (module.min_val, module.max_val) == (0.0, 6.0):
        return "relu6"
    return _MODULES.get(type(module))


def foldable(module: nn.Module) -> bool:
    """Whether a module is a normalisation that is an affine map for good."""
    return (
        isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))
        and not module.training
        and module.running_mean is not None
        and not hooked(module)
    )


def hooked(module: nn.Module) -> bool:
    """Whether someone listens to a module, computes its parameters or has its own forward."""
    hooks = list(module._forward_pre_hooks.values())
    if hasattr(module, "weight_mask"):  # the hook of torch.nn.utils.prune
        hooks = [hook for hook in hooks if not hasattr(hook, "apply_mask")]
    return bool(
        hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hasattr(module, "parametrizations")
        or "forward" in module.__dict__
    )


def in_graph(
    model: nn.Module, graph: fx.Graph, *, bn: bool, activation: bool, rewrite: bool
) -> list[Chain]:
    """The chains of a graph; without ``rewrite`` only of modules that are called once."""
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    unsafe = _writes.Unsafe(model, graph)
    order = unsafe.order
    taken: set[fx.Node] = set()
    chains = []
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) is not nn.Conv2d:
            continue
        chain = Chain(node.target)
        chains.append(chain)
        if calls[node.target] != 1 or node.kwargs:
            continue  # it can be replaced, but nothing joins it
        last = node
        following = _only_user(last)
        if bn and following is not None and following.op == "call_module":
            norm = modules[str(following.target)]
            if foldable(norm) and calls[following.target] == 1:
                chain.bn = str(following.target)
                chain.nodes.append(following)
                last, following = following, _only_user(following)
        if not activation or (_normalises(modules, following) and chain.bn is None):
            continue
        if rewrite and following is not None and following not in taken:
            other = _other_term(following, last)
            moves = unsafe.replaceable(following) and not unsafe.between(
                node, following, [following]
            )
            if other is not None and moves and order[other] < order[node]:
                chain.residual = other
                chain.nodes.append(following)
                taken.add(following)
                last, following = following, _only_user(following)
        if following is None:
            continue
        name, module = _activation(modules, following)
        if name is not None and (rewrite or (module and calls[following.target] == 1)):
            chain.activation, chain.act = name, module
            chain.nodes.append(following)
    return _once(chains)


def _once(chains: list[Chain]) -> list[Chain]:
    return list({chain.conv: chain for chain in chains}.values())


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _normalises(modules: dict[str, nn.Module], node: fx.Node | None) -> bool:
    return (
        node is not None
        and node.op == "call_module"
        and isinstance(modules[str(node.target)], nn.modules.batchnorm._BatchNorm)
    )


def _other_term(node: fx.Node, term: fx.Node) -> fx.Node | None:
    """The other one of the two terms of a sum."""
    adds = (node.op == "call_function" and node.target in _ADD_FUNCTIONS) or (
        node.op == "call_method" and node.target in _ADD_METHODS
    )
    if not adds or node.kwargs or len(node.args) != 2:
        return None
    others = [arg for arg in node.args if arg is not term]
    found = others[0] if len(others) == 1 else None
    return found if isinstance(found, fx.Node) else None


def _activation(modules: dict[str, nn.Module], node: fx.Node) -> tuple[str | None, str | None]:
    """The name of an activation, and of the module that applies it."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return (None, None) if hooked(module) else (activation_of(module), str(node.target))
    table: dict[Any, str] = _FUNCTIONS if node.op == "call_function" else _METHODS
    plain = len(node.args) == 1 and set(node.kwargs) <= {"inplace"}
    return (table.get(node.target) if plain else None), None


def in_sequentials(model: nn.Module, *, bn: bool, activation: bool) -> list[Chain]:
    """The chains of models that cannot be traced: within ``torch.nn.Sequential`` only."""
    uses = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    chains = {name: Chain(name) for name, m in model.named_modules() if type(m) is nn.Conv2d}
    for prefix, parent in model.named_modules():
        if (
            not isinstance(parent, nn.Sequential)
            or type(parent).forward is not nn.Sequential.forward
        ):
            continue
        children = [(f"{prefix}.{n}" if prefix else n, m) for n, m in parent.named_children()]
        for i, (name, module) in enumerate(children):
            if name not in chains or uses[id(module)] != 1:
                continue
            chain, rest = chains[name], children[i + 1 :]
            if bn and rest and foldable(rest[0][1]) and uses[id(rest[0][1])] == 1:
                chain.bn = rest.pop(0)[0]
            if not activation or not rest or uses[id(rest[0][1])] != 1:
                continue
            found = None if hooked(rest[0][1]) else activation_of(rest[0][1])
            if found is not None:
                chain.activation, chain.act = found, rest[0][0]
    return list(chains.values())


@torch.no_grad()
def folded(conv: nn.Conv2d, bn: Any) -> tuple[Tensor, Tensor]:
    """Weights and bias that do what the convolution and the normalisation do.

    bn(z) = s z + (beta - s mean), s = gamma / sqrt(var + eps)
    """
    scale = torch.rsqrt(bn.running_var + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight
    shift = -scale * bn.running_mean
    if bn.bias is not None:
        shift = shift + bn.bias
    if conv.bias is not None:
        shift = shift + scale * conv.bias
    weight = conv.weight * scale.to(conv.weight.dtype)[:, None, None, None]
    return weight, shift.to(weight.dtype)
