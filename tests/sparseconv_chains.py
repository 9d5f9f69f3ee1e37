"""Chains of layers, what is fixed and counted about them, and memory between guard pages."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curvkern import _sparseconv, nn
from curvkern.nn._fused import FusedConvs, Step

#: Bytes of a whole tensor and of a band: bands of a row, of some, and none at all.
LIMITS = [(0, 0), (0, 4000), (1 << 10, 1 << 14), (1 << 40, 1 << 40)]

Layer = tuple[Any, int, "int | None"]  # a module, its input, its residual


def pointwise(inputs: int, outputs: int, activation: str = "none", bias: bool = True) -> Any:
    mask = torch.rand(outputs, inputs) < 0.4
    mask[0, 0] = True
    options = {"mask": mask, "activation": activation, "bias": bias}
    return nn.SparseWeightConv2d(inputs, outputs, **options).eval()  # type: ignore[arg-type]


def depthwise(
    channels: int, kernel: Any = 3, outputs: int | None = None, **options: Any
) -> Any:
    return nn.DepthwiseConv2d(channels, outputs, kernel, **options).eval()


def chains(c: int) -> dict[str, list[Layer]]:
    """Chains by name, of c channels."""
    return {
        "separable": [
            (depthwise(c, padding=1, activation="relu6"), 0, None),
            (pointwise(c, 2 * c, "relu"), 1, None),
            (depthwise(2 * c, stride=2, padding=1, activation="relu"), 2, None),
            (pointwise(2 * c, c + 3), 3, None),
        ],
        "inverted": [
            (pointwise(c, 3 * c, "relu6"), 0, None),
            (depthwise(3 * c, padding=1, activation="relu6"), 1, None),
            (pointwise(3 * c, c), 2, 0),
            (pointwise(c, 2 * c, "hardswish", bias=False), 3, None),
            (depthwise(2 * c, 5, padding=(1, 3, 0, 4), activation="silu"), 4, None),
            (pointwise(2 * c, c, "silu"), 5, 3),
        ],
        "tensorflow": [
            (depthwise(c, 3, stride=2, padding=(0, 2, 0, 2)), 0, None),
            (depthwise(c, 5, 2 * c, stride=2, padding=(1, 3, 1, 3), bias=False), 1, None),
            (pointwise(2 * c, c, "silu"), 2, None),
        ],
        "odd": [
            (depthwise(c, (1, 2), stride=3, padding=(0, 1, 0, 0)), 0, None),
            (pointwise(c, 1), 1, None),
            (
                depthwise(1, 3, 4, padding=(2, 2, 4, 3), dilation=2, activation="hardswish"),
                2,
                None,
            ),
            (depthwise(4, 7, stride=4, padding=(6, 5, 6, 6)), 3, None),
            (pointwise(4, 5), 4, None),
        ],
        "first": [
            (nn.FirstConv2d(c, 9, 3, activation="relu6").eval(), 0, None),
            (depthwise(9, padding=1, activation="relu"), 1, None),
            (pointwise(9, 5), 2, None),
            (nn.FirstConv2d(5, 4, (2, 3), stride=3, padding=(1, 2, 0, 3)).eval(), 3, None),
        ],
        "pointwise": [
            (pointwise(c, 2 * c, "relu"), 0, None),
            (pointwise(2 * c, c), 1, 0),
            (pointwise(c, c, "hardswish"), 2, 1 if c == 0 else None),
        ],
    }


class Model(torch.nn.Module):
    """Layers under a root, and the chain of them; first convolutions by the compiled kernel."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.body = torch.nn.ModuleList(layer for layer, _, _ in layers)
        steps = tuple(Step(f"body.{i}", a, b) for i, (_, a, b) in enumerate(layers))
        self.fused = FusedConvs(steps, ("body",))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fused(x, self.body)
        return result

    def one_by_one(self, x: Tensor) -> Tensor:
        return self.fused.each(x, list(self.body))


def native(model: Model, x: Tensor) -> _sparseconv.Chain:
    chain = model.fused.chain(x, tuple(model.body))
    assert chain is not None
    return chain


def first_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every instruction set, and for so many channels."""
    monkeypatch.setattr(_sparseconv, "MOST_CHANNELS", dict.fromkeys(("v2", "v3", "v4"), 99))


def guarded(tensor: Tensor, *, front: bool = False) -> tuple[Tensor, Any]:
    """A copy between pages that may not be touched: one begins with the first byte after it.

    ``front``: instead, the other one ends with the last byte before it.
    """
    page = mmap.PAGESIZE
    size = tensor.numel() * tensor.element_size()
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    protect = libc.mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for beyond in (start, start + page + whole):
        assert protect(beyond, page, 0) == 0
    array = np.frombuffer(memory, np.uint8, size, page if front else page + whole - size)
    copy = torch.from_numpy(array).view(tensor.dtype).reshape(tensor.shape)
    copy.copy_(tensor)
    return copy, memory


def assert_fenced(chain: _sparseconv.Chain, x: Tensor, expected: Tensor, error: float) -> None:
    """Results are right between pages that may not be touched, whatever lay there before."""
    size = (chain._native.workspace(),)
    for front in (False, True):
        image, _kept = guarded(x, front=front)
        y, _also = guarded(torch.empty_like(expected), front=front)
        workspace, _too = guarded(torch.empty(size), front=front)
        for _ in range(2):
            for memory in (y, workspace):
                memory.view(torch.uint8).fill_(255)  # NaN in each dtype
            chain._native.run(image, workspace, y)
            assert (y - expected).abs().max() <= error


def fence_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed values end where a page begins that may not be touched."""
    pack = _sparseconv._pack

    def packed(*arguments: Any) -> _sparseconv.Packed:
        made = pack(*arguments)
        return _sparseconv.Packed(made.plan, guarded(made.values)[0])

    monkeypatch.setattr(_sparseconv, "_pack", packed)


def grouped(monkeypatch: pytest.MonkeyPatch, group: tuple[int, int]) -> None:
    """Let chains run the last stages, from that one on, for so many images at once."""
    monkeypatch.setattr(_sparseconv.Chain, "grouping", lambda *_: group)


def fused_modules(model: torch.nn.Module) -> list[FusedConvs]:
    return [module for module in model.modules() if isinstance(module, FusedConvs)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often native chains were called."""
    calls = [0]
    call = _sparseconv.Chain.__call__

    def count(self: _sparseconv.Chain, x: Tensor) -> Tensor:
        calls[0] += 1
        return call(self, x)

    monkeypatch.setattr(_sparseconv.Chain, "__call__", count)
    return calls


def measuring(monkeypatch: pytest.MonkeyPatch, *, chain: float, dense: float) -> None:
    """Fix what a run as one call and a dense layer take; layers one by one 2, sparse ones 1."""
    from curvkern.sparse import _execution

    def seconds(calls: Any, _: Any) -> Any:
        for call in calls.values():
            call()
        known = {"chain": chain, "layers": 2.0, "new": 1.0, "dense": dense}
        return {name: known.get(name, 0.5) for name in calls}

    monkeypatch.setattr(_execution, "measure", seconds)
