"""Native Hessian-vector products: tangents through torch's own graph of a loss."""

from __future__ import annotations

from . import (  # their rules
    activations,
    attention,
    convolution,
    elementwise,
    kernels,
    linear,
    losses,
    normalization,
    recurrent,
    shapes,
)
from .graph import Graph, HookError

__all__ = [
    "Graph",
    "HookError",
    "activations",
    "attention",
    "convolution",
    "elementwise",
    "kernels",
    "linear",
    "losses",
    "normalization",
    "recurrent",
    "shapes",
]
