"""From a pruned model to one that uses its zeros."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune

from ..nn._depthwise import DepthwiseConv2d, FirstConv2d, conv_padding
from ..nn._sparse_weight import SparseWeightConv2d
from . import _chains, _execution, _fusion
from ._chains import Chain
from ._gradients import activated
from ._report import Record
from ._weights import block_pair, kept_blocks

NAME = "sparsify"
#: Blocks tried by "auto", and the share of their entries that are to be nonzero.
BLOCKS, FILLED = ((16, 1), (4, 1), (2, 1)), 0.95


@dataclass
class _Settings:
    min_sparsity: float
    block: Any
    autotune: bool


# Tensors made in inference mode have no versions: nothing packed from them could be kept.
@torch.inference_mode(False)
def sparsify(
    model: nn.Module,
    *,
    min_sparsity: float = 2 / 3,
    block: str | tuple[int, int] = "auto",
    fuse_bn: bool = True,
    fuse_activation: bool = True,
    autotune: bool = True,
    example_input: Any = None,
    inplace: bool = False,
) -> nn.Module:
    """Replace the convolutions of a pruned model by sparse ones, where that pays.

    Replaced are 1 x 1 convolutions with enough zeros, or masks of ``torch.nn.utils.prune``,
    depthwise convolutions, and dense ones of few input channels. All else stays as it is.
    Layers whose results only the next one uses run as one call in evaluation, without
    gradients, on contiguous images of the CPU.

    Parameters
    ----------
    model
        Any module, trained with torch. What is fused is found by ``torch.fx``; in a model that
        cannot be traced, or does something else where an optional argument is left out, within
        ``torch.nn.Sequential``, whose modules are then to be called by it alone.
    min_sparsity
        The least share of zeros of a 1 x 1 convolution that is replaced, in [0, 1].
    block
        (r, c) for blocks of r output and c input channels, or "auto": the largest of 16 x 1,
        4 x 1 and 2 x 1 whose blocks are full, and single weights otherwise.
    fuse_bn
        Fold ``BatchNorm2d`` in evaluation mode into the convolution before it. One that is
        training is kept.
    fuse_activation
        Apply activations, and sums with another tensor, with the convolution before them.
    autotune
        Measure the variants of the kernels and the dense convolution for each layer, once for
        each shape, dtype, number of threads and instruction set, and use the quickest ever
        after; with ``example_input`` now, otherwise when a shape is first met in evaluation.
        If False, a fixed rule chooses, and no layer stays dense for its speed.
    example_input
        What the model is called with, a tensor or a tuple of arguments. A layer whose dense
        convolution is the quickest on it stays as it is.
    inplace
        Change ``model`` itself. Then sums and functional activations are not fused and layers
        are called one by one, so that it still runs its own ``forward``.

    Returns
    -------
    Module
        ``model``, or a copy of it with everything replaced; a ``torch.fx.GraphModule`` where
        anything was fused. Names of parameters that stay are kept.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong kind or value.

    Notes
    -----
    Under ``torch.autocast`` sparse layers keep the dtype of their input, as float32. Zeros
    that are dropped are no weights: NaN passes only where weights are.

    The result can be trained further: the values of the sparse weights are parameters. To keep
    normalisation in training, pass a model in training mode or ``fuse_bn=False``. A ``forward``
    that asks for ``self.training`` is fixed to the mode that the model is in.

    Evaluation keeps what was made of weights for as long as torch's version counter says that
    they are the same: edits through ``.data`` are not noticed.

    Hooks that are put on modules above the layers after this are not called. Layers that run as
    one call end at a dropout, at a layer that stays dense, and, but in float32, at squeeze and
    excitation. The bits of an image do not depend on its batch or on threads where all of its
    layers are compiled. A thread keeps up to 64 MiB to work in.

    Examples
    --------
    >>> import torch
    >>> from curvkern import sparse
    >>> model = sparse.models.mobilenet_v1(0.25, 10).eval()
    >>> _ = sparse.magnitude_prune_(model, 0.9)
    >>> quick = sparse.sparsify(model, autotune=False)
    >>> x = torch.randn(1, 3, 64, 64)
    >>> torch.allclose(quick(x), model(x), atol=1e-4)
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{NAME}: model must be a torch.nn.Module, got {type(model).__name__}")
    settings = _settings(min_sparsity, block, autotune)
    for flag, value in (
        ("fuse_bn", fuse_bn),
        ("fuse_activation", fuse_activation),
        ("autotune", autotune),
        ("inplace", inplace),
    ):
        if not isinstance(value, bool):
            raise TypeError(f"{NAME}: {flag} must be a bool, got {type(value).__name__}")
    if not isinstance(example_input, (Tensor, tuple, type(None))):
        raise TypeError(
            f"{NAME}: example_input must be a tensor or a tuple of arguments, got "
            f"{type(example_input).__name__}"
        )
    for module in model.modules():  # a weight that a hook has computed cannot be copied
        if hasattr(module, "weight_mask") and "weight" not in module._parameters:
            module.weight = module.weight.detach()  # type: ignore[operator]
    model = model if inplace else copy.deepcopy(model)
    if type(model) is nn.Conv2d:
        holder = nn.Sequential(model).train(model.training)
        inputs = _inputs(holder, [Chain("0")], example_input)
        _apply(holder, [Chain("0")], settings, inputs, fuses=False)
        return holder[0]
    graph = _chains.traced(model)
    if graph is None:
        chains = _chains.in_sequentials(model, bn=fuse_bn, activation=fuse_activation)
    else:
        chains = _chains.in_graph(
            model, graph, bn=fuse_bn, activation=fuse_activation, rewrite=not inplace
        )
    inputs = _inputs(model, chains, example_input)
    rewrites = graph is not None and not inplace
    losers = _apply(model, chains, settings, inputs, fuses=rewrites)
    if graph is None or inplace:
        _silence(model, chains)
        return model
    fused = _rewrite(model, graph, chains)
    fused |= _fusion.fuse(model, graph, losers, inputs if settings.autotune else {})
    if not fused:
        return model
    kind = _GraphSequential if isinstance(model, nn.Sequential) else fx.GraphModule
    return kind(model, graph, type(model).__name__)


class _GraphSequential(fx.GraphModule):
    """What became of a Sequential; its modules still go by numbers."""

    def __getitem__(self, index: int) -> nn.Module:
        return self.get_submodule(str(index))


def _settings(min_sparsity: Any, block: Any, autotune: Any) -> _Settings:
    if isinstance(min_sparsity, bool) or not isinstance(min_sparsity, (int, float)):
        raise TypeError(
            f"{NAME}: min_sparsity must be a number, got {type(min_sparsity).__name__}"
        )
    if not 0 <= min_sparsity <= 1:
        raise ValueError(f"{NAME}: min_sparsity must be in [0, 1], got {min_sparsity}")
    if isinstance(block, str) and block != "auto":
        raise ValueError(f"{NAME}: block must be 'auto' or a pair, got {block!r}")
    pair = block if block == "auto" else block_pair(NAME, block)
    return _Settings(float(min_sparsity), pair, bool(autotune))


def _apply(
    model: nn.Module,
    chains: list[Chain],
    settings: _Settings,
    inputs: dict[str, Tensor],
    *,
    fuses: bool,
) -> dict[str, _fusion.Loser]:
    """Put other convolutions into the model; a chain that stays as it is becomes empty.

    ``fuses``: layers may run as one call, in which one that is a little slower than the dense
    convolution alone may win. These are returned.
    """
    tied = _tied(model)
    losers: dict[str, _fusion.Loser] = {}
    for chain in chains:
        conv = model.get_submodule(chain.conv)
        assert isinstance(conv, nn.Conv2d)
        if _chains.hooked(conv) or any(id(p) in tied for p in conv.parameters()):
            _leave(chain, fold=False)
            continue
        mask = _mask(conv)
        if hasattr(conv, "weight_mask"):
            prune.remove(conv, "weight")
        if chain.bn is not None:
            weight, bias = _chains.folded(conv, model.get_submodule(chain.bn))
            conv.weight = nn.Parameter(weight, conv.weight.requires_grad)
            conv.bias = nn.Parameter(bias)
        new = _replacement(conv, mask, chain, settings)
        if new is None:
            _leave(chain, fold=True)
            continue
        x = inputs.get(chain.conv)
        if x is not None and settings.autotune and not conv.training:
            seconds = _race(conv, new, chain, x)
            record = Record(tuple(x.shape), torch.get_num_threads(), *seconds)
            kept = seconds[0] < seconds[1]
            new.sparsify_record = record  # type: ignore[assignment]
            if not kept and fuses and _fusion.may_win(new, x, *seconds):
                losers[chain.conv] = _fusion.Loser(conv, chain.activation)
            elif not kept:
                conv.sparsify_record = record  # type: ignore[assignment]
                _leave(chain, fold=True)
                continue
        _put(model, chain.conv, new)
    return losers


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where another one is, under all of its names."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child, found in parent._modules.items():
            if found is old:
                setattr(parent, child, module)


def _leave(chain: Chain, *, fold: bool) -> None:
    chain.activation, chain.act, chain.residual = "none", None, None
    chain.nodes = chain.nodes[: int(fold and chain.bn is not None)]
    if not fold:
        chain.bn = None


def _tied(model: nn.Module) -> set[int]:
    """Parameters that several modules have."""
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    return {p for p, count in owners.items() if count > 1}


def _mask(conv: nn.Conv2d) -> Tensor:
    mask = getattr(conv, "weight_mask", None)
    return (conv.weight != 0) if mask is None else mask != 0


def _replacement(
    conv: nn.Conv2d, mask: Tensor, chain: Chain, settings: _Settings
) -> nn.Module | None:
    """What computes the same with our kernels; None if there is nothing."""
    zeros = conv.padding_mode == "zeros"
    square = conv.stride[0] == conv.stride[1] and conv.dilation[0] == conv.dilation[1]
    if not (zeros and square) or conv.weight.dtype not in (
        torch.float32,
        torch.float64,
        torch.bfloat16,
    ):
        return None
    act = chain.activation
    if tuple(conv.kernel_size) == (1, 1) and conv.groups == 1:
        if any(conv_padding(conv)):
            return None
        kept = mask[:, :, 0, 0]
        sparsity = 1 - float(kept.float().mean()) if kept.numel() else 0.0
        if sparsity < settings.min_sparsity:
            return None
        block = _block(kept) if settings.block == "auto" else settings.block
        if conv.out_channels % block[0] or conv.in_channels % block[1]:
            block = (1, 1)
        tuned = "tuned" if settings.autotune else "auto"
        new = SparseWeightConv2d.from_dense(
            conv, kept, block=block, format=tuned, activation=act
        )
        for name in ("values", "bias"):
            if (parameter := getattr(new, name)) is not None:
                parameter.requires_grad_(conv.weight.requires_grad)
        return new
    if chain.residual is not None:
        return None
    if conv.groups == conv.in_channels and conv.in_channels > 1:
        made: nn.Module = DepthwiseConv2d.from_conv(conv, activation=act)
        return made
    if conv.groups == 1 and conv.in_channels <= 4 and max(conv.dilation) == 1:
        made = FirstConv2d.from_conv(conv, activation=act)
        return made
    return None


def _block(kept: Tensor) -> tuple[int, int]:
    """The largest block whose entries are weights nearly all."""
    count = int(kept.sum())
    for r, c in BLOCKS:
        if kept.shape[0] % r == 0 and count:
            stored = int(kept_blocks(NAME, kept, (r, c)).sum()) * r * c
            if count >= FILLED * stored:
                return r, c
    return 1, 1


@torch.no_grad()
def _inputs(model: nn.Module, chains: Sequence[Chain], example_input: Any) -> dict[str, Tensor]:
    """What reaches each convolution, by its name."""
    if example_input is None:
        return {}
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    found: dict[str, Tensor] = {}

    def listener(name: str) -> Any:
        def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.setdefault(name, (args[0] if args else kwargs["input"]).detach())

        return listen

    handles = [
        model.get_submodule(chain.conv).register_forward_pre_hook(
            listener(chain.conv), with_kwargs=True
        )
        for chain in chains
    ]
    training = {m: m.training for m in model.modules()}
    try:
        model.eval()  # statistics of normalisations stay what they are
        model(*arguments)
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    return found


@torch.no_grad()
def _race(conv: nn.Conv2d, new: nn.Module, chain: Chain, x: Tensor) -> tuple[float, float]:
    """Seconds of the new module and of the convolution, on what the new one is to do."""
    new.eval()
    residual = torch.zeros_like(conv(x)) if chain.residual is not None else None
    arguments = (x,) if residual is None else (x, residual)

    def dense() -> Tensor:
        z = conv(x)
        if residual is not None:
            z = z + residual
        return activated(chain.activation, z)

    new(*arguments)  # measures its variants
    seconds = _execution.measure({"new": lambda: new(*arguments), "dense": dense}, x.device)
    return seconds["new"], seconds["dense"]


def _silence(model: nn.Module, chains: Sequence[Chain]) -> None:
    """Modules whose work is done by a convolution do nothing."""
    for chain in chains:
        for name in (chain.bn, chain.act):
            if name is not None:
                _put(model, name, nn.Identity())


def _rewrite(model: nn.Module, graph: fx.Graph, chains: Sequence[Chain]) -> bool:
    """Take out of the graph what is done by convolutions; whether there was something."""
    calls = {node.target: node for node in graph.nodes if node.op == "call_module"}
    for chain in chains:
        if chain.residual is not None:
            node = calls[chain.conv]
            node.args = (*node.args, chain.residual)
    for chain in chains:
        if not chain.nodes:
            continue
        node = calls[chain.conv]
        chain.nodes[-1].replace_all_uses_with(node)
        for dead in reversed(chain.nodes):
            graph.erase_node(dead)
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    for chain in chains:
        for name in (chain.bn, chain.act):
            if chain.nodes and name is not None and name not in called:
                _put(model, name, nn.Identity())
    return any(chain.nodes for chain in chains)
