"""What became of the layers of a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..nn._depthwise import DepthwiseConv2d, FirstConv2d
from ..nn._fused import FusedConvs
from ..nn._sparse_weight import SparseWeightConv2d
from . import _patterns


@dataclass(frozen=True)
class Record:
    """Seconds of a layer on an input of a shape, and of a dense convolution in its place."""

    shape: tuple[int, ...]
    threads: int
    sparse: float
    dense: float


@dataclass(frozen=True)
class Layer:
    """A convolution of a model.

    Attributes
    ----------
    name, kind
        Of the module; its class.
    shape
        (O, C) of its weights, with the kernel if that is not 1 x 1.
    sparsity
        The share of weights that are zero or not stored.
    block
        (r, c) of the stored blocks; None where weights are dense.
    format
        The variant of the kernels that runs; "torch" for torch's own convolution. Those that
        were measured for several shapes are joined by commas.
    sparse_seconds, dense_seconds
        As measured by :func:`sparsify`, or when the shape was first met; None where nothing
        was measured. Of the layer alone, whether or not it runs with others.
    fused
        The name of the module that runs it with those beside it in one call, or None. Its
        format then is that of the layer alone.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    sparsity: float
    block: tuple[int, int] | None
    format: str
    sparse_seconds: float | None
    dense_seconds: float | None
    fused: str | None = None

    @property
    def dense_wins(self) -> bool:
        """Whether the dense convolution was measured the quicker one.

        Not of a layer that runs with others, as these were measured together.
        """
        if self.fused or self.sparse_seconds is None or self.dense_seconds is None:
            return False
        return self.dense_seconds < self.sparse_seconds


class Report(list[Layer]):
    """The layers of a model; its text is a table."""

    def __str__(self) -> str:
        head = ("layer", "kind", "weights", "sparsity", "block", "format", "sparse", "dense")
        rows = [head, *(_cells(layer) for layer in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join(line.rstrip() for line in lines)


def _cells(layer: Layer) -> tuple[str, ...]:
    def micro(seconds: float | None) -> str:
        return "-" if seconds is None else f"{1e6 * seconds:.0f} us"

    return (
        layer.name,
        layer.kind,
        "x".join(map(str, layer.shape)),
        f"{layer.sparsity:.3f}",
        "-" if layer.block is None else "x".join(map(str, layer.block)),
        f"{layer.format} in {layer.fused}" if layer.fused else layer.format,
        micro(layer.sparse_seconds),
        micro(layer.dense_seconds),
    )


def report(model: nn.Module) -> Report:
    """What the convolutions of a model are, how they are computed, and measured times.

    Parameters
    ----------
    model
        A model, after :func:`sparsify` or with modules of :mod:`curvkern.nn` of its own.

    Returns
    -------
    Report
        A list of :class:`Layer`; printed, a table.

    Raises
    ------
    TypeError
        ``model`` is no module.

    Warns
    -----
    UserWarning
        Where a layer whose weights are sparse was measured slower than a dense convolution.

    Examples
    --------
    >>> import torch
    >>> from curvkern import sparse
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 4, 1))
    >>> _ = sparse.magnitude_prune_(model, 0.75)
    >>> print(sparse.report(sparse.sparsify(model, autotune=False)))
    layer  kind                weights  sparsity  block  format  sparse  dense
    0      SparseWeightConv2d  4x8      0.750     1x1    auto    -       -
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"report: model must be a torch.nn.Module, got {type(model).__name__}")
    layers = Report(_layers(model))
    losing = [layer.name for layer in layers if layer.dense_wins]
    if losing:
        warnings.warn(
            f"report: dense convolutions were measured quicker in {len(losing)} of "
            f"{len(layers)} layers: {', '.join(losing)}",
            stacklevel=2,
        )
    return layers


def _layers(model: nn.Module) -> Iterator[Layer]:
    fused = {
        f"{name.rpartition('.')[0]}.{step.name}".removeprefix("."): name
        for name, module in model.named_modules()
        if isinstance(module, FusedConvs)
        for step in module.steps
    }
    for name, module in model.named_modules():
        record: Any = getattr(module, "sparsify_record", None)
        times: tuple[float | None, float | None]
        times = (None, None) if record is None else (record.sparse, record.dense)
        together = fused.get(name)
        if isinstance(module, SparseWeightConv2d):
            entry = _patterns.lookup(
                module.crow_indices, module.col_indices, module.block, module.shape
            )
            formats = sorted(set(entry.choices.values())) or [module.format]
            if record is None and entry.seconds:
                times = _last(entry)
            yield Layer(
                name,
                type(module).__name__,
                module.shape,
                module.sparsity,
                module.block,
                ",".join(formats) if module.format == "tuned" else module.format,
                *times,
                together,
            )
        elif isinstance(module, nn.Conv2d):
            weight = module.weight
            zeros = float((weight == 0).float().mean()) if weight.numel() else 0.0
            ours = isinstance(module, (DepthwiseConv2d, FirstConv2d))
            shape = tuple(weight.shape)
            yield Layer(
                name,
                type(module).__name__,
                shape[:2] if shape[2:] == (1, 1) else shape,
                zeros,
                None,
                "curvkern" if ours else "torch",
                *times,
                together,
            )


def _last(entry: _patterns.Entry) -> tuple[float | None, float | None]:
    """The times of the shape that was measured last."""
    seconds = list(entry.seconds.values())[-1]
    sparse = [s for name, s in seconds.items() if name != "dense"]
    return (min(sparse) if sparse else None), seconds.get("dense")
