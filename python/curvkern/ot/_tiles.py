"""Sums over the kernel e_ij with derivatives of every order, in memory for a block of rows.

Values and derivatives are made of two functions of a problem and its potentials:

    products:  e v  and  e' u              for v (B, m, k) and u (B, n, l)
    totals:    sum (P - a b'),  sum P C  and  sum P (f + g - C) / eps

Each is a sum over blocks of rows, and so is its vector-Jacobian product, which is a function of
the same sort again: of the inputs and the cotangents, with the gradients for outputs. So
derivatives of every order are computed from blocks that are made anew for each, and no graph
holds the n m entries of the kernel. The Jacobian-vector product is the derivative of the
vector-Jacobian product in the cotangents, in which it is linear.

A function of this sort goes by a string: "products" or "totals", with ":1,5" behind it for the
vector-Jacobian product in the inputs 1 and 5, and so on from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _operands
from .._ops import library
from .._sinkhorn import KINDS, Problem
from . import _compiled_tiles
from ._function import Function, define_gate, register_derivatives, zeros_for
from ._kernel import LARGEST_EXPONENT, Kernel, costs, kernel, row_blocks

Tensors = Sequence[Tensor | None]


class Inputs(NamedTuple):
    """Of both functions: the geometry; then u and v of the products, or a and b."""

    cost: Tensor | None
    x: Tensor | None
    y: Tensor | None
    eps: Tensor
    f: Tensor
    g: Tensor
    row: Tensor
    column: Tensor


def inputs(problem: Problem, f: Tensor, g: Tensor, row: Tensor, column: Tensor) -> Inputs:
    """Points in float64, in which their gradients are summed over the blocks."""
    x, y = (None if t is None else t.to(torch.float64) for t in (problem.x, problem.y))
    return Inputs(problem.cost, x, y, problem.eps, f, g, row, column)


def tangents(
    problem: Problem,
    f: Tensor | None,
    g: Tensor | None,
    row: Tensor | None,
    column: Tensor | None,
) -> Tensors:
    """Those of the inputs, from those of a problem and the rest; None for 0."""
    x, y = (None if t is None else t.to(torch.float64) for t in (problem.x, problem.y))
    return problem.cost, x, y, problem.eps, f, g, row, column


def geometry_gradients(problem: Problem, found: dict[str, Tensor]) -> list[Tensor | None]:
    """As those of a problem in cost, x, y, kind and scale."""
    pairs = [(getattr(problem, name), found.get(name)) for name in ("cost", "x", "y")]
    return [None if t is None else t.to(of.dtype) for of, t in pairs] + [None, None]


# The functions, differentiable --------------------------------------------------------------


def products(
    problem: Problem, f: Tensor, g: Tensor, v: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """e v and e' u; one of them may have no columns."""
    given = inputs(problem, f, g, u, v)
    ev, eu = _tiles("products", problem.kind, problem.scale, *given)
    return ev, eu


def plain_products(
    problem: Problem, f: Tensor, g: Tensor, v: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """The same without the compiled pass, rounded as whoever recomputes the plan has it."""
    given = inputs(problem, f, g, u, v)
    ev, eu = _by_blocks("products", problem.kind, problem.scale, given)
    return ev, eu


def totals(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mass of the plan above that of a b', <P, C> and <P, exponent>, each (B,)."""
    given = inputs(problem, f, g, problem.a, problem.b)
    excess, linear, pairing = _tiles("totals", problem.kind, problem.scale, *given)
    return excess, linear, pairing


def gradients(
    function: str,
    problem: Problem,
    given: Inputs,
    cotangents: Sequence[Tensor],
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """The vector-Jacobian product in those inputs that are wanted and are there."""
    names = [name for name in wanted if getattr(given, name) is not None]
    if not names:
        return {}
    step = _step(Inputs._fields.index(name) for name in names)
    found = _tiles(function + step, problem.kind, problem.scale, *given, *cotangents)
    return dict(zip(names, found, strict=True))


def pushed(
    function: str, problem: Problem, given: Inputs, tangents: Tensors
) -> tuple[Tensor, ...]:
    """The Jacobian-vector product; None for a tangent of 0."""
    outputs = _outputs(function, given)
    return _pushed(function, problem.kind, problem.scale, given, outputs, tangents)


def _pushed(
    function: str,
    kind: str,
    scale: float,
    tensors: Tensors,
    outputs: Sequence[Tensor],
    tangents: Tensors,
) -> tuple[Tensor, ...]:
    zeros = [torch.zeros_like(t) for t in outputs]
    moving = [(k, t) for k, t in enumerate(tangents) if t is not None]
    if not moving:
        return tuple(zeros)
    places, given = zip(*moving, strict=True)
    name = function + _step(places) + _step(range(len(tensors), len(tensors) + len(zeros)))
    result: tuple[Tensor, ...] = _tiles(name, kind, scale, *tensors, *zeros, *given)
    return result


def _step(places: Any) -> str:
    return ":" + ",".join(map(str, places))


def evaluated(
    function: str, kind: str, scale: float, *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """The outputs of a function, without derivatives."""
    found = operation(function, len(tensors))(function, kind, scale, *tensors)
    return (found,) if isinstance(found, Tensor) else tuple(found)


class _Tiles(Function):
    """Any of the functions."""

    @staticmethod
    def forward(function: str, kind: str, scale: float, *tensors: Tensor | None) -> Any:
        return evaluated(function, kind, scale, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.function, ctx.kind, ctx.scale, *tensors = inputs
        output = (output,) if isinstance(output, Tensor) else output
        ctx.count = len(tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        tensors, outputs = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        given = [zeros_for(c, t) for c, t in zip(cotangents, outputs, strict=True)]
        places = [
            k
            for k, (t, wanted) in enumerate(zip(tensors, ctx.needs_input_grad[3:], strict=True))
            if wanted and t is not None
        ]
        result: list[Tensor | None] = [None] * (3 + ctx.count)
        if places:
            name = ctx.function + _step(places)
            found = _tiles(name, ctx.kind, ctx.scale, *tensors, *given)
            for place, gradient in zip(places, found, strict=True):
                result[3 + place] = gradient
        return tuple(result)

    @staticmethod
    def tangents(ctx: Any, saved: Any, tangents: Any) -> Any:
        tensors, outputs = saved[: ctx.count], saved[ctx.count :]
        return _pushed(ctx.function, ctx.kind, ctx.scale, tensors, outputs, tangents[3:])


_tiles = define_gate(_Tiles)


# Blocks -------------------------------------------------------------------------------------


class _Tiled(NamedTuple):
    """A function of a block, and which of its inputs and outputs have a dimension of rows."""

    call: Callable[..., tuple[Tensor, ...]]  # of kind, scale and tensors
    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]


def _block(kind: str, scale: float, given: Inputs) -> Kernel:
    return kernel(costs(*given[:3], kind, scale), given.f, given.g, given.eps)


def _block_products(kind: str, scale: float, *tensors: Any) -> tuple[Tensor, ...]:
    given = Inputs(*tensors)
    e = _block(kind, scale, given).e
    return e @ given.column, e.mT @ given.row


def _block_totals(kind: str, scale: float, *tensors: Any) -> tuple[Tensor, ...]:
    given = Inputs(*tensors)
    cost, exponent, e = _block(kind, scale, given)
    a, b = given.row[:, :, None], given.column[:, None, :]
    P = a * (b * e)
    # Not the difference of two sums: times a large eps its rounding would drown the value.
    grown = torch.where(e > 0, torch.expm1(exponent.clamp_max(LARGEST_EXPONENT)), -1.0)
    excess = (a * (b * grown)).sum((1, 2))
    return excess, (P * cost).sum((1, 2)), (P * exponent).sum((1, 2))


_HAVE_ROWS = tuple(name in ("cost", "x", "f", "row") for name in Inputs._fields)
_FUNCTIONS = {
    "products": _Tiled(_block_products, _HAVE_ROWS, (True, False)),
    "totals": _Tiled(_block_totals, _HAVE_ROWS, (False, False, False)),
}


@cache
def _named(function: str) -> _Tiled:
    before, colon, step = function.rpartition(":")
    if not colon:
        return _FUNCTIONS[function]
    places = tuple(map(int, step.split(",")))
    return _pullback(_named(before), places)


def _pullback(of: _Tiled, places: tuple[int, ...]) -> _Tiled:
    """The vector-Jacobian product in some inputs."""
    count = len(of.inputs)

    def call(kind: str, scale: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        is_inner = torch.is_grad_enabled()  # of another one, which differentiates this
        given = list(tensors[:count])
        with torch.enable_grad():
            for place in places:
                given[place] = _variable(given[place])
            outputs = of.call(kind, scale, *given)
        moved = [
            pair for pair in zip(outputs, tensors[count:], strict=True) if pair[0].requires_grad
        ]
        variables = [given[place] for place in places]
        if not moved:
            return tuple(torch.zeros_like(t) for t in variables)
        ends, cotangents = zip(*moved, strict=True)
        found = torch.autograd.grad(
            ends, variables, cotangents, create_graph=is_inner, allow_unused=True
        )
        return tuple(zeros_for(d, t) for d, t in zip(found, variables, strict=True))

    return _Tiled(call, of.inputs + of.outputs, tuple(of.inputs[k] for k in places))


def _variable(tensor: Tensor) -> Tensor:
    """The tensor in this place alone: it may stand in others, too."""
    if tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


# torch.func would do the same, but what watches an operation from outside, as opcheck does,
# cannot look into its tensors.
@torch.inference_mode(False)
@torch.no_grad()
def _by_blocks(function: str, kind: str, scale: float, tensors: Tensors) -> list[Tensor]:
    """Rows of blocks behind each other, and sums of the rest."""
    tiled, (batch, n), m = _named(function), _first(tensors).f.shape, _first(tensors).g.shape[1]
    # All there is before the blocks come: what stayed between them would keep malloc from
    # giving the memory of one block to the next.
    outputs = [t.zero_() for t in _outputs(function, tensors)]
    tensors = [t.clone() if t is not None and t.is_inference() else t for t in tensors]
    for at in row_blocks(batch, n, m):
        part = [
            t[:, at] if t is not None and has_rows else t
            for t, has_rows in zip(tensors, tiled.inputs, strict=True)
        ]
        found = tiled.call(kind, scale, *part)
        for output, new, has_rows in zip(outputs, found, tiled.outputs, strict=True):
            target = output[:, at] if has_rows else output
            target += new
    return outputs


def _first(tensors: Tensors) -> Inputs:
    return Inputs(*tensors[: len(Inputs._fields)])  # type: ignore[arg-type]


def _evaluate(
    function: str, kind: str, scale: float, *tensors: Tensor | None
) -> Tensor | tuple[Tensor, ...]:
    _check(function, kind, tensors)
    found = _compiled_tiles.evaluated(function, kind, scale, tensors)
    if found is None:
        found = _by_blocks(function, kind, scale, tensors)
    return found[0] if len(found) == 1 else tuple(found)


def _outputs(function: str, tensors: Tensors) -> list[Tensor]:
    """Tensors of the shapes of the outputs."""
    colon, step = function.rpartition(":")[1:]
    if colon:
        like = [tensors[int(k)] for k in step.split(",")]
        return [torch.empty_like(t) for t in like if t is not None]
    given = _first(tensors)
    if function == "totals":
        return [torch.empty_like(given.eps) for _ in range(3)]
    return [
        given.f.new_empty(*given.f.shape, given.column.shape[2]),
        given.g.new_empty(*given.g.shape, given.row.shape[2]),
    ]


def _check(function: str, kind: str, tensors: Tensors) -> None:
    """Refuse dtypes and shapes that do not fit, of fake tensors, too."""
    op = f"ot_tiles_{len(tensors)}_{_count(function)}"
    before, *steps = function.split(":")
    given, cotangents = _first(tensors), tensors[len(Inputs._fields) :]
    batch, n, m = _check_geometry(op, kind, given)
    columns: tuple[Sequence[int], Sequence[int]] = (), ()
    if before == "products":
        for name, tensor in (("row", given.row), ("column", given.column)):
            _operands.dimensions(op, name, tensor, 3)
        columns = given.row.shape[2:], given.column.shape[2:]
    for name, tensor, shape in (
        ("eps", given.eps, (batch,)),
        ("f", given.f, (batch, n)),
        ("g", given.g, (batch, m)),
        ("row", given.row, (batch, n, *columns[0])),
        ("column", given.column, (batch, m, *columns[1])),
    ):
        _operands.shaped(op, name, tensor, shape)
    place = len(Inputs._fields)
    for step in steps:
        for like in _outputs(before, tensors):
            _check_cotangent(op, f"t{place}", tensors[place], like)
            place += 1
        before = f"{before}:{step}"
    assert len(cotangents) == place - len(Inputs._fields)


def _check_geometry(op: str, kind: str, given: Inputs) -> tuple[int, int, int]:
    """B, n and m."""
    if given.cost is not None:
        _operands.dimensions(op, "cost", given.cost, 3)
        batch, n, m = given.cost.shape
        return batch, n, m
    assert given.x is not None
    assert given.y is not None
    if kind not in KINDS:
        raise ValueError(f"{op}: cost must be one of {', '.join(KINDS)}, got '{kind}'")
    _operands.dimensions(op, "x", given.x, 3)
    _operands.dimensions(op, "y", given.y, 3)
    batch, n, dims = given.x.shape
    m = given.y.shape[1]
    _operands.shaped(op, "x", given.x, (batch, n, dims))
    _operands.shaped(op, "y", given.y, (batch, m, dims))
    return batch, n, m


def _check_cotangent(op: str, name: str, tensor: Tensor | None, like: Tensor) -> None:
    assert tensor is not None
    _operands.floating(op, name, tensor)
    _operands.has_shape(op, name, tensor, like.shape)
    if tensor.dtype is not like.dtype:
        raise TypeError(f"{op}: {name} must be {str(like.dtype).removeprefix('torch.')}")


# Operations, one for each number of inputs and outputs: what vmaps over operations without a
# rule, as is_grads_batched does, takes no lists.

_defining = threading.Lock()


def operation(function: str, inputs: int) -> Any:
    """The operation for a function of so many tensors."""
    with _defining:
        return _operation(inputs, _count(function))


def _count(function: str) -> int:
    """Outputs of a function."""
    colon, step = function.rpartition(":")[1:]
    return step.count(",") + 1 if colon else len(_FUNCTIONS[function].outputs)


@cache
def _operation(inputs: int, outputs: int) -> Any:
    name = f"ot_tiles_{inputs}_{outputs}"
    tensors = "".join(f", Tensor? t{k}" for k in range(inputs))
    results = ", ".join(["Tensor"] * outputs)
    library.define(
        f"{name}(str function, str kind, float scale{tensors}) -> ({results})",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    library.impl(name, _evaluate, "CPU")
    library.impl(name, _evaluate, "CUDA")
    torch.library.register_fake(f"curvkern::{name}", _fake, lib=library)
    register_derivatives(name, _Tiles)
    return getattr(torch.ops.curvkern, name)


def _fake(function: str, kind: str, scale: float, *tensors: Tensor | None) -> Any:
    _check(function, kind, tensors)
    shapes = _outputs(function, tensors)
    return shapes[0] if len(shapes) == 1 else tuple(shapes)
