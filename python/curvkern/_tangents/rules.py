"""What a rule is, the table of them by the name of torch's node, and rules of common kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: One entry an input or output; None is zero.
Tangents = list[Tensor | None]
Tangent = Callable[["Op", Tangents], Any]
Reverse = Callable[["Op", Tangents, Tangents, Tangents, bool], tuple[Any, Any]]


@dataclass(frozen=True)
class Rule:
    """How a node carries tangents forward, and gradients with their tangents backward.

    ``tangent(op, t)`` are the outputs' tangents; ``reverse(op, t, g, gd, primal)`` the inputs'
    gradients (None unless ``primal``) and the tangents of these, where g and gd belong to the
    outputs. Shapes that were broadcast are put right by the graph.
    """

    tangent: Tangent
    reverse: Reverse
    keeps: bool = True  # whether reverse looks at t


class Meta(NamedTuple):
    """Of a tensor that is an input or an output."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def metadata(fn: Any) -> tuple[Meta, ...]:
    return tuple(
        Meta(torch.Size(map(int, m.shape)), m.dtype, m.device) for m in fn._input_metadata
    )


class Op:
    """A node of the graph; edges lead to ops, to parameters by number, or nowhere (None)."""

    __slots__ = ("at", "edges", "fn", "inputs", "name", "outputs", "rule", "tangents")

    def __init__(
        self,
        at: int,
        fn: Any,
        name: str,
        rule: Rule,
        edges: Sequence[tuple[Any, int]],
        inputs: Sequence[Meta | None],
    ) -> None:
        self.at, self.fn, self.name, self.rule = at, fn, name, rule
        self.edges = tuple(edges)
        self.outputs = metadata(fn)
        self.inputs = inputs
        self.tangents: Tangents = []

    def needs(self, i: int) -> bool:
        return self.edges[i][0] is not None

    def vjp(self, g: Sequence[Tensor | None]) -> Tangents:
        """The node itself: gradients of the inputs."""
        if all(one is None for one in g):
            return [None] * len(self.edges)
        call = self.fn if callable(self.fn) else self.fn.apply
        found = call(*g)
        return list(found) if isinstance(found, tuple) else [found]

    def saved(self, name: str) -> Any:
        return getattr(self.fn, "_saved_" + name)

    def signed(self, name: str) -> Any:
        """A saved dimension, or several: torch hands out negative ones without a sign."""
        value = self.saved(name)
        if isinstance(value, tuple):
            return tuple(map(_signed, value))
        return _signed(value)


def _signed(value: int | None) -> int | None:
    if value is None:
        return None
    return value - 2**64 if value >= 2**63 else value


RULES: dict[str, Rule] = {}


def define(*names: str, rule: Rule) -> None:
    """For nodes of these names, without their ``Backward0``, unless it is another."""
    for name in names:
        RULES[name if "Backward" in name else f"{name}Backward0"] = rule


def _reverse_linear(
    op: Op, t: Tangents, g: Tangents, gd: Tangents, primal: bool
) -> tuple[Any, Any]:
    return op.vjp(g) if primal else None, op.vjp(gd)


def linear(tangent: Tangent) -> Rule:
    """A map that is linear in all inputs together: backward it is torch's own."""
    return Rule(tangent, _reverse_linear, keeps=False)


def _same(op: Op, t: Tangents) -> Any:
    return op.vjp(t)


#: Linear, or piecewise, by a diagonal matrix: forward and backward are the same.
DIAGONAL = linear(_same)


def summed(g: Tensor, meta: Meta) -> Tensor:
    """A gradient in the shape and dtype of its input, which was broadcast."""
    if g.shape != meta.shape:
        g = g.sum_to_size(meta.shape)
    return g if g.dtype is meta.dtype else g.to(meta.dtype)


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum; None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a * b


def plus_product(sum_: Tensor | None, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """sum + a b, of shapes that broadcast."""
    if a is None or b is None:
        return sum_
    return a * b if sum_ is None else sum_.addcmul(a, b)
