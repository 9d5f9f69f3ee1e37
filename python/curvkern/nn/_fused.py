"""Layers of a model that run as one call where nobody looks at what lies between them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import _runtime, _sparseconv
from .._arguments import memory_error
from ..sparse import _execution, _gates, _patterns
from ..sparse._chains import activation_of
from ._depthwise import DepthwiseConv2d, FirstConv2d
from ._plans import CAPACITY, _modes, plain, threads
from ._sparse_weight import SparseWeightConv2d

NAME = "FusedConvs"


@dataclass(frozen=True)
class Step:
    """A layer by its name, and the numbers of the tensors that it takes.

    Number 0 is what the chain is called with, i + 1 what step i computes.

    ``gate`` names the modules of a squeeze and excitation of the input: a mean of all pixels, a
    linear layer or a 1 x 1 convolution, an activation, another such layer, a sigmoid.
    """

    name: str
    input: int
    residual: int | None
    gate: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.gate)


class _State:
    """What the layers were, and the calls for it, by shape."""

    def __init__(
        self, tensors: list[Tensor | None], marks: list[Any], settings: list[Any]
    ) -> None:
        # Held, so that neither an id nor an address can become another tensor's.
        self.tensors = tensors
        self.solid = [t for t in tensors if t is not None]
        self.storages = [t.detach() for t in self.solid]
        self.marks, self.settings = marks, settings
        self.calls: dict[Any, Callable[[Tensor], Tensor] | None] = {}


class _Cache:
    """What calls came to: the layers, what they were, and the calls by shape."""

    def __init__(self) -> None:
        self.roots: tuple[nn.Module, ...] = ()
        #: each module on the way to a layer: where it is found
        self.links: list[tuple[dict[str, Any], str, nn.Module]] = []
        self.members: tuple[nn.Module, ...] = ()
        #: where the layers keep their tensors and what else decides what they do
        self.places: list[tuple[dict[str, Any], str]] = []
        self.settings: list[tuple[dict[str, Any], str]] = []
        self.state = _State([], [], [])

    def __reduce__(self) -> Any:
        return _Cache, ()  # copies of a module begin anew


class FusedConvs(nn.Module):
    """Depthwise and sparse 1 x 1 convolutions one after the other.

    :func:`curvkern.sparse.sparsify` puts it into a graph. The layers stay where they are in the
    model, which hands the modules that hold them, by ``roots``, to each call. In evaluation,
    without gradients, contiguous images of the CPU pass all layers in one native call;
    otherwise, and where someone listens to a layer, one layer is called after the other. Both
    give the same bits but where there is squeeze and excitation, which differs in rounding.

    Parameters
    ----------
    steps
        The layers in their order, by names that begin with that of a root.
    roots
        Names of the modules that a call is given.
    """

    def __init__(self, steps: tuple[Step, ...], roots: tuple[str, ...]) -> None:
        super().__init__()
        self.steps, self.roots = tuple(steps), tuple(roots)
        self._cache = _Cache()

    def forward(self, x: Tensor, *roots: nn.Module) -> Tensor:
        """What the last layer returns."""
        if not torch.compiler.is_compiling():
            planned = self._planned(x, roots)
            if planned is not None:
                return planned
        return self.each(x, [member for member, _ in self._walk(roots)])

    def _walk(self, roots: tuple[nn.Module, ...]) -> Any:
        """Each module, with those on the way to it and where these are found."""
        for name in (name for step in self.steps for name in step.names):
            first, _, rest = name.partition(".")
            module = roots[self.roots.index(first)]
            links = []
            for key in rest.split(".") if rest else ():
                child: Any = module._modules[key]
                links.append((module._modules, key, child))
                module = child
            yield module, links

    def each(self, x: Tensor, members: Any) -> Tensor:
        """One layer after the other."""
        values, rest = [x], iter(members)
        for step in self.steps:
            member, gate = next(rest), [next(rest) for _ in step.gate]
            arguments = [values[step.input]]
            if gate:
                arguments[0] = arguments[0] * _scale(arguments[0], *gate)
            if step.residual is not None:
                arguments.append(values[step.residual])
            values.append(member(*arguments))
        return values[-1]

    def _planned(self, x: Tensor, roots: tuple[nn.Module, ...]) -> Tensor | None:
        """The result of the native chain, if there is one for such a call."""
        if _modes() or _runtime.backend() == "reference" or not plain(x) or x.dim() != 4:
            return None
        cache, grad = self._members(roots), torch.is_grad_enabled()
        if _listened() or any(map(_busy, cache.members)) or (grad and x.requires_grad):
            return None
        count = threads()
        try:
            tensors: list[Tensor | None] = [at[key] for at, key in cache.places]
            settings = [at[key] for at, key in cache.settings]
            solid = [t for t in tensors if t is not None]
            marks = [*map(Tensor.data_ptr, solid), *map(_version, solid)]
        except (RuntimeError, KeyError):  # made in inference mode, or not there
            return None
        if not count or (grad and any(t.requires_grad for t in solid)):
            return None
        state = cache.state
        same = len(tensors) == len(state.tensors)
        if not (
            same
            and all(map(operator.is_, tensors, state.tensors))
            and marks == state.marks
            and settings == state.settings
        ):
            if not all(map(plain, solid)):
                return None
            state = cache.state = _State(tensors, marks, settings)
        calls = state.calls
        key = x.shape, x.dtype, count
        try:
            call = calls[key]
        except KeyError:
            call = self._made(x, cache.members)
            if len(calls) >= CAPACITY:
                calls.clear()
            calls[key] = call
        if call is None:
            return None
        try:
            result: Tensor = call(x)
        except RuntimeError as error:
            raise memory_error(NAME, x.shape, error, "the result for x") from None
        return result

    def _members(self, roots: tuple[nn.Module, ...]) -> _Cache:
        """What is known of these layers: made anew, for other threads keep what they have."""
        cache = self._cache
        if len(roots) == len(cache.roots) and all(map(operator.is_, roots, cache.roots)):
            for where, key, module in cache.links:
                if where.get(key) is not module:
                    break
            else:
                return cache
        walked = list(self._walk(roots))
        links = {(id(at), key): (at, key, m) for _, found in walked for at, key, m in found}
        cache = _Cache()
        cache.roots, cache.links = roots, list(links.values())
        cache.members = tuple(member for member, _ in walked)
        for member in cache.members:
            places, settings = _owned(member)
            cache.places += places
            cache.settings += settings
        self._cache = cache
        return cache

    def _made(self, x: Tensor, members: tuple[nn.Module, ...]) -> Callable[..., Tensor] | None:
        """The native chain for such an image, unless the layers alone were measured quicker."""
        if x.numel() == 0:
            return None
        tuned = any(getattr(member, "format", None) == "tuned" for member in members)
        if tuned:
            self.each(x, members)  # measures variants
        chain = self.chain(x, members)
        if chain is None or not tuned:
            return chain
        calls: dict[str, Callable[[], object]] = {
            "chain": lambda: chain(x),
            "layers": lambda: self.each(x, members),
        }
        seconds = _execution.measure(calls, x.device)
        return chain if seconds["chain"] < seconds["layers"] else None

    def chain(self, x: Tensor, members: tuple[nn.Module, ...]) -> _sparseconv.Chain | None:
        """The native chain for such an image; None where there is none."""
        rest = iter(members)
        layers: list[tuple[Any, list[Any]]]
        layers = [(next(rest), [next(rest) for _ in step.gate]) for step in self.steps]
        sizes = self._sizes(x, [layer for layer, _ in layers])
        if sizes is None or not all(_gates.has_scale(gate) for _, gate in layers if gate):
            return None  # a gate may have been put there since the graph was made
        able = [_takes_group(layer) and not gate for layer, gate in layers]
        alone = max((i + 1 for i, can in enumerate(able) if not can), default=0)
        group = _sparseconv.Chain.grouping(sizes, x.dtype, x.shape[0], alone)
        stages: list[_sparseconv.Stage] = []
        for i, (layer, gate) in enumerate(layers):
            step, (_, height, width) = self.steps[i], sizes[i + 1]
            if isinstance(layer, SparseWeightConv2d):
                pixels = height * width * (group[1] if i >= group[0] else 1)
                packed = _packed(layer, x, pixels)
                product = step.residual, packed, layer.bias, layer.activation
                scale = _gate(gate) if gate else None
                stages.append(_sparseconv.Chain.pointwise(step.input, *product, scale))
                continue
            kind = "depthwise" if isinstance(layer, DepthwiseConv2d) else "first"
            filters = step.input, layer.weight, layer.bias, *layer._settings()
            stages.append(getattr(_sparseconv.Chain, kind)(*filters))
        try:
            return _sparseconv.Chain(x.shape, x.dtype, stages, group)
        except (TypeError, ValueError):
            return None  # which is told in the words of the layer

    def _sizes(self, x: Tensor, layers: list[Any]) -> list[tuple[int, int, int]] | None:
        """Channels, height and width by tensor; None where a layer is not native."""
        sizes = [(int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))]
        for step, layer in zip(self.steps, layers, strict=True):
            _, height, width = sizes[step.input]
            if type(layer) is SparseWeightConv2d:
                if layer.stride != 1 or layer.format == "dense":
                    return None
            elif type(layer) in (DepthwiseConv2d, FirstConv2d):
                first = type(layer) is FirstConv2d
                if first and not _sparseconv.first_is_native(layer.in_channels):
                    return None
                *place, _ = layer._settings()
                height, width = _sparseconv.output_size((height, width), layer.weight, *place)
                if height < 1 or width < 1:
                    return None  # which is told in the words of the layer
            else:
                return None  # a class of their own may compute something else
            sizes.append((layer.out_channels, height, width))
        return sizes

    def extra_repr(self) -> str:
        return ", ".join(step.name for step in self.steps)


def _takes_group(layer: Any) -> bool:
    """Whether a stage takes interleaved images: of depthwise convolutions, small filters."""
    if not isinstance(layer, DepthwiseConv2d):
        return isinstance(layer, SparseWeightConv2d)
    stride, _, dilation, _ = layer._settings()
    small: bool = layer.weight.shape[2:] in ((3, 3), (5, 5)) and stride <= 2 and dilation == 1
    return small


def _scale(
    x: Tensor,
    pool: nn.Module,
    squeeze: nn.Module,
    act: nn.Module,
    excite: nn.Module,
    sigmoid: nn.Module,
) -> Tensor:
    """What the channels of x are multiplied by, (B, C, 1, 1)."""
    mean = pool(x)
    flat = mean.flatten(1) if isinstance(squeeze, nn.Linear) else mean
    scale: Tensor = sigmoid(excite(act(squeeze(flat))))
    return scale.reshape(mean.shape)


def _gate(modules: list[nn.Module]) -> tuple[Any, ...]:
    """The same as a stage takes it."""
    _, squeeze, act, excite, sigmoid = modules
    weights = squeeze.weight, squeeze.bias, excite.weight, excite.bias
    return *weights, activation_of(act) or "none", isinstance(sigmoid, nn.Hardsigmoid)


_LISTENERS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def _listened() -> bool:
    """Whether there are hooks on all modules; names are private to torch."""
    torch_modules = nn.modules.module
    return any(getattr(torch_modules, name, None) for name in _LISTENERS)


_version = operator.attrgetter("_version")


def _busy(member: nn.Module) -> Any:
    """Whether a layer is training or someone listens to it."""
    at = member.__dict__
    return (
        at["training"]
        or at["_forward_hooks"]
        or at["_forward_pre_hooks"]
        or at["_backward_hooks"]
        or at["_backward_pre_hooks"]
        or "forward" in at  # of this object alone
    )


def _owned(member: nn.Module) -> tuple[list[Any], list[Any]]:
    """Where a layer keeps its tensors, and the attributes that decide what it does."""
    parameters: Any = member._parameters
    buffers: Any = member._buffers
    if isinstance(member, SparseWeightConv2d):
        places: list[tuple[Any, str]] = [(parameters, "values"), (parameters, "bias")]
        places += [(buffers, "crow_indices"), (buffers, "col_indices")]
        names: tuple[str, ...] = ("format", "activation", "stride")
    else:
        places = [(parameters, name) for name in ("weight", "bias") if name in parameters]
        names = ()
        if isinstance(member, (DepthwiseConv2d, FirstConv2d)):
            names = "_step", "_sides", "_spread", "activation"
    return places, [(member.__dict__, name) for name in names]


def _packed(member: SparseWeightConv2d, x: Tensor, pixels: int) -> _sparseconv.Packed:
    """The values in the order of the variant that is the quickest for so many pixels."""
    entry = _patterns.lookup(
        member.crow_indices, member.col_indices, member.values.shape[1:] or (1, 1), member.shape
    )
    batch, count = x.shape[0], torch.get_num_threads()
    share = 1 if batch > 1 else count  # of the threads: several images are shared instead
    variant = member.format
    if not _execution.is_variant(variant, False):
        names = _sparseconv.variants(entry.pattern, x.dtype, 1, pixels, share)
        wanted = x.dtype, 1, pixels, share, _runtime.isa(), x.device
        found = entry.choices.get(wanted, "")
        variant = found if _execution.is_variant(found, False) else names[0]
    packed: _sparseconv.Packed = _execution.pack(entry, member.values, x, variant)
    return packed
