"""Gradients and their products with probes, of a loss or of gradients that have a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _hutchinson
from .._tangents import Graph, HookError
from ..reference import hutchinson as reference
from . import _shards

Tensors = Sequence[Tensor | None]


def checked_loss(name: str, loss: Any) -> Tensor:
    """A finite scalar that depends on something that requires grad."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name}: loss must be a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"{name}: loss must be a scalar, got shape {tuple(loss.shape)}")
    if loss.is_meta:
        raise ValueError(f"{name}: loss must have a value, got a tensor on meta")
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ValueError(f"{name}: loss must be finite, got {value}; nothing was changed")
    if not loss.requires_grad:
        raise ValueError(f"{name}: loss must depend on a parameter that requires grad")
    return loss


def gradients(name: str, loss: Tensor, params: Sequence[Tensor], graph: bool) -> Tensors:
    """d loss / d p, None where the loss does not depend on p."""
    try:
        with torch.enable_grad():
            return torch.autograd.grad(loss, params, create_graph=graph, allow_unused=True)
    except RuntimeError as error:
        if "second time" in str(error):
            raise _gone(name) from error
        raise explained(name, error) from error


def native_graph(name: str, loss: Tensor, params: Sequence[Tensor], mode: str) -> Graph | None:
    """Of a loss whose products are to be native; None where "auto" prefers double backward."""
    if mode == "reverse" or not loss.requires_grad:
        return None
    if any(map(_shards.is_sharded, params)):
        if mode == "native":
            raise NotImplementedError(
                f"{name}: mode 'native' takes parameters that are whole on each rank; use "
                "mode 'reverse'"
            )
        return None
    if mode == "auto" and not all(map(_takes_native, [loss, *params])):
        return None
    if not tells_shapes(loss.grad_fn):
        if mode == "native":
            raise RuntimeError(
                f"{name}: mode 'native' needs a torch whose graphs tell the shapes within, got "
                f"{torch.__version__}; update torch, or use mode 'reverse'"
            )
        return None
    if not all(p.is_leaf for p in params):
        if mode == "native":
            raise ValueError(f"{name}: mode 'native' takes parameters that are leaves")
        return None
    if len(set(params)) < len(params):
        if mode == "native":
            raise ValueError(f"{name}: mode 'native' takes each parameter once")
        return None
    graph = Graph(loss, params)
    if graph.is_complex():
        if mode == "native":
            raise TypeError(
                f"{name}: mode 'native' takes real tensors, got complex ones within"
            )
        return None
    if mode == "native":
        if graph.is_hooked():
            raise RuntimeError(
                f"{name}: mode 'native' calls no hooks of parameters, modules or nodes; use "
                "mode 'reverse'"
            )
        return graph
    chosen = graph.is_large() and not graph.unknown() and graph.is_plain()
    return graph if chosen and not graph.is_hooked() else None


def tells_shapes(node: Any) -> bool:
    """Whether nodes of a graph say what they take: those of the oldest torch do not."""
    return node is None or hasattr(node, "_input_metadata")


def _takes_native(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def native_products(
    name: str, graph: Graph, probes: Sequence[Sequence[Tensor]], keep: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients, and products with each probe in turn; zeros where there is no dependence."""
    found: list[Tensor] = []
    try:
        for at, z in enumerate(probes):
            found += graph.products(z, keep or len(probes) > 1)[1]
            if at + 1 == len(probes) and not keep:
                graph.kept = None
    except HookError as error:
        raise HookError(f"{name}: {error}") from None
    except RuntimeError as error:
        if "second time" in str(error):
            raise _gone(name) from error
        raise RuntimeError(f"{name}: {error}") from error
    grads = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(graph.params, graph.grads, strict=True)
    ]
    check_dense(name, grads + found)
    return grads, found


def _gone(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name}: the graph of the loss is gone; a closure returns the loss and leaves "
        "backward() to step()"
    )


def products(
    name: str,
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    probes: Sequence[Sequence[Tensor]],
    keep: bool = False,
) -> list[Tensor]:
    """d (g . z) / d p for each probe in turn; zeros where g does not depend on p."""
    known = [i for i, g in enumerate(grads) if g.requires_grad]
    found: list[Tensor] = []
    for at, z in enumerate(probes):
        parts: Tensors = [None] * len(params)
        if known:
            try:
                with torch.enable_grad():
                    parts = torch.autograd.grad(
                        [grads[i] for i in known],
                        params,
                        grad_outputs=[z[i] for i in known],
                        retain_graph=keep or at + 1 < len(probes),
                        allow_unused=True,
                    )
            except RuntimeError as error:
                raise explained(name, error) from error
        if any(part is None for part in parts):
            _check_twice(name, [grads[i] for i in known])
        found += [
            torch.zeros_like(p) if part is None else part.detach()
            for p, part in zip(params, parts, strict=True)
        ]
    return found


def _check_twice(name: str, grads: Sequence[Tensor]) -> None:
    """Refuse what ``once_differentiable`` made: torch cuts the graph there, without a word."""
    stack = [g.grad_fn for g in grads]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node is None:
            continue
        if node.name().endswith("Error"):
            raise RuntimeError(
                f"{name}: a function of the loss is marked with once_differentiable; it has no "
                "second derivative"
            )
        fresh = {child for child, _ in node.next_functions} - seen
        seen |= fresh
        stack += fresh


def explained(name: str, error: RuntimeError) -> RuntimeError:
    """The error, with a way out where one is known."""
    if "aot_autograd" in str(error):
        return RuntimeError(
            f"{name}: what torch.compile makes has no second derivative, but for backend "
            "'eager'; compute the loss by the model that is not compiled"
        )
    if "scaled_dot_product" not in str(error) and "flash_attention" not in str(error):
        return error
    return RuntimeError(
        f"{name}: the fused kernels of scaled_dot_product_attention have no second derivative; "
        "run the model under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
    )


def check_dense(name: str, tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        if tensor.layout is not torch.strided:
            raise TypeError(f"{name}: gradients must be dense, got layout {tensor.layout}")


def check_finite(name: str, kind: str, tensors: Sequence[Tensor]) -> None:
    if not _hutchinson.is_finite(tensors):
        bad = sum(int((~torch.isfinite(t)).sum()) for t in tensors)
        raise ValueError(
            f"{name}: {kind} must be finite, got {bad} elements that are not; "
            "nothing was changed"
        )


def draw_signs(
    params: Sequence[Tensor], offsets: Sequence[int], seed: int, step: int, probe: int
) -> list[Tensor]:
    """One probe, a tensor of signs for each parameter."""
    out = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in params]
    if all(map(_hutchinson.is_native, out)):
        if out:
            torch.ops.curvkern.hutchinson_signs(out, offsets, seed, step, probe)
    else:
        reference.fill_signs(out, offsets, seed, step, probe)
    return out
