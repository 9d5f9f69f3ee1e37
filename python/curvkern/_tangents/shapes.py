"""Views, copies, sums and choices: linear maps, whose backward is torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .rules import Op, Tangents, define, linear


def _one(t: Tangents) -> Tensor:
    assert t[0] is not None
    return t[0]


def _reshape(op: Op, t: Tangents) -> Any:
    return _one(t).reshape(op.outputs[0].shape)


def _expand(op: Op, t: Tangents) -> Any:
    return _one(t).expand(op.outputs[0].shape)


def _slice(op: Op, t: Tangents) -> Any:
    x, dim, step = _one(t), op.signed("dim"), op.saved("step")
    start = op.signed("start") if op.saved("start") is not None else 0
    size = x.shape[dim]
    start = max(0, start + size if start < 0 else min(start, size))
    count = op.outputs[0].shape[dim]
    end = min(size, start + step * count)
    return x[(slice(None),) * (dim % x.dim()) + (slice(start, end, step),)]


def _split(op: Op, t: Tangents) -> Any:
    dim = op.signed("dim")
    return _one(t).split([meta.shape[dim] for meta in op.outputs], dim)


def _filled(op: Op, t: Tangents) -> list[Tensor]:
    """The tangents of all inputs, in full."""
    like = next(one for one in t if one is not None)
    return [
        one if one is not None
        else like.new_zeros(_shape(op, i), dtype=like.dtype)
        for i, one in enumerate(t)
    ]  # fmt: skip


def _shape(op: Op, i: int) -> tuple[int, ...]:
    meta = op.inputs[i]
    if meta is not None:
        return tuple(meta.shape)
    if op.name == "StackBackward0":
        dim = op.signed("dim")
        shape = list(op.outputs[0].shape)
        del shape[dim]
        return tuple(shape)
    raise LookupError


def _cat(op: Op, t: Tangents) -> Any:
    dim, shape = op.signed("dim"), op.outputs[0].shape
    known = [meta is not None for meta in op.inputs]
    if known.count(False) > 1:
        return _cat_of_many(op, t)
    rest = shape[dim] - sum(m.shape[dim] for m in op.inputs if m is not None)
    like = next(one for one in t if one is not None)
    parts = []
    for one, meta in zip(t, op.inputs, strict=True):
        if one is None:
            sizes = list(shape)
            sizes[dim] = rest if meta is None else meta.shape[dim]
            one = like.new_zeros(sizes)
        parts.append(one)
    return torch.cat(parts, dim)


def _cat_of_many(op: Op, t: Tangents) -> Any:
    """Sizes of inputs without a gradient are not known: the backward tells the places."""
    dim, meta = op.signed("dim"), op.outputs[0]
    shape = [1] * len(meta.shape)
    shape[dim] = meta.shape[dim]
    like = next(one for one in t if one is not None)
    place = torch.arange(shape[dim], dtype=like.dtype, device=like.device).view(shape)
    y = like.new_zeros(meta.shape)
    for part, one in zip(op.vjp([place.expand(meta.shape)]), t, strict=True):
        if one is not None and part is not None and part.numel():
            y.narrow(dim, int(part.reshape(-1)[0]), part.shape[dim]).copy_(one)
    return y


def _to(op: Op, t: Tangents) -> Any:
    return _one(t).to(op.outputs[0].device, op.outputs[0].dtype)


def _sum(op: Op, t: Tangents) -> Any:
    return _one(t).sum(op.signed("dim"), keepdim=op.saved("keepdim"))


def _mean(op: Op, t: Tangents) -> Any:
    return _one(t).mean(op.signed("dim"), keepdim=op.saved("keepdim"))


def _index(op: Op, t: Tangents) -> Any:
    return _one(t)[tuple(slice(None) if i is None else i for i in op.saved("indices"))]


def _chosen(op: Op, t: Tangents) -> Any:
    """Of max and min along a dimension, and their indices."""
    x, index, dim = _one(t), op.saved("indices"), op.signed("dim")
    if x.dim() == 0:
        return x
    if op.saved("keepdim"):
        return x.gather(dim, index)
    return x.gather(dim, index.unsqueeze(dim)).squeeze(dim)


def _max_pool(op: Op, t: Tangents) -> Any:
    x, index = _one(t), op.saved("result1")
    return x.flatten(-2).gather(-1, index.flatten(-2)).view(index.shape)


def _average_pool(op: Op, t: Tangents) -> Any:
    return torch.nn.functional.avg_pool2d(
        _one(t), op.saved("kernel_size"), op.saved("stride") or None, op.saved("padding"),
        op.saved("ceil_mode"), op.saved("count_include_pad"), op.saved("divisor_override"),
    )  # fmt: skip


def _embedding(op: Op, t: Tangents) -> Any:
    index, padding = op.saved("indices"), op.signed("padding_idx")
    y = torch.nn.functional.embedding(index, _one(t))
    # The row of the padding has no gradient.
    return y if padding < 0 else y.masked_fill((index == padding).unsqueeze(-1), 0)


def _pad(op: Op, t: Tangents) -> Any:
    return torch.nn.functional.pad(_one(t), op.signed("pad"))


define(
    "View", "UnsafeView", "ReshapeAlias", "SqueezeBackward0", "SqueezeBackward1",
    "SqueezeBackward2", "Unsqueeze", rule=linear(_reshape),
)  # fmt: skip
define("Clone", "Alias", "ToCopy", "Identity", rule=linear(_to))
define("Expand", rule=linear(_expand))
define("T", rule=linear(lambda op, t: _one(t).t()))
define("Transpose", "TransposeBackward1", rule=linear(
    lambda op, t: _one(t).transpose(op.signed("dim0"), op.signed("dim1"))))  # fmt: skip
define("Permute", rule=linear(lambda op, t: _one(t).permute(op.signed("dims"))))
define("Select", rule=linear(
    lambda op, t: _one(t).select(op.signed("dim"), op.signed("index"))))  # fmt: skip
define("Slice", rule=linear(_slice))
define("Split", "UnsafeSplit", "SplitWithSizes", rule=linear(_split))
define("Unbind", rule=linear(lambda op, t: _one(t).unbind(op.signed("dim"))))
define("Cat", rule=linear(_cat))
define("Stack", rule=linear(lambda op, t: torch.stack(_filled(op, t), op.signed("dim"))))
define("SumBackward0", rule=linear(lambda op, t: _one(t).sum()))
define("SumBackward1", rule=linear(_sum))
define("MeanBackward0", rule=linear(lambda op, t: _one(t).mean()))
define("MeanBackward1", rule=linear(_mean))
define("Index", rule=linear(_index))
define("IndexSelect", rule=linear(
    lambda op, t: _one(t).index_select(op.signed("dim"), op.saved("index"))))  # fmt: skip
define("Gather", rule=linear(
    lambda op, t: _one(t).gather(op.signed("dim"), op.saved("index"))))  # fmt: skip
define("MaxBackward0", "MinBackward0", rule=linear(_chosen))
define("MaxPool2DWithIndices", rule=linear(_max_pool))
define("AvgPool2D", rule=linear(_average_pool))
define("AdaptiveAvgPool2D", rule=linear(
    lambda op, t: torch.ops.aten.adaptive_avg_pool2d(
        _one(t), list(op.outputs[0].shape[-2:]))))  # fmt: skip
define("Embedding", rule=linear(_embedding))
define("ConstantPadNd", rule=linear(_pad))
define("Repeat", rule=linear(lambda op, t: _one(t).repeat(op.saved("repeats"))))
define("Flip", rule=linear(lambda op, t: _one(t).flip(op.signed("dims"))))
define("Cumsum", rule=linear(lambda op, t: _one(t).cumsum(op.signed("dim"))))
