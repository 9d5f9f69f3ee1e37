"""Arguments of convolutions and of chains that are wrong or too large: refused in words."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern import _runtime, _sparseconv, nn, sparse
from sparseconv_chains import Model, counted, depthwise, pointwise


@pytest.mark.parametrize("far", [2**21, 2**31, 2**60, 2**63 - 1])
def test_steps_that_are_too_large(far: int) -> None:
    """R31"""
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3)
    too_large = pytest.raises((ValueError, MemoryError), match="too large")
    with too_large:
        sparse.depthwise_conv2d(x, w, stride=far)
    with too_large:
        _sparseconv.first_native(x, torch.randn(2, 4, 3, 3), None, far, [0] * 4, "none")
    y = torch.randn(1, 4, 1, 1)
    for steps in ((far, 1, 0, 0), (1, far, 0, 0), (1, 1, far, 0), (1, 1, 0, far)):
        for gradient in ("depthwise_input_grad", "depthwise_weight_grad"):
            with pytest.raises(ValueError, match="too large"):
                getattr(_runtime.cpu_module(), gradient)(x, w, y, *steps)


def test_gradients_of_nothing() -> None:
    """The native calls have no images to sum over."""
    w = torch.randn(4, 1, 3, 3)
    for x, y in (((0, 4, 5, 5), (0, 4, 3, 3)), ((1, 4, 5, 5), (1, 4, 0, 3))):
        for gradient in ("depthwise_input_grad", "depthwise_weight_grad"):
            with pytest.raises(ValueError, match="must not be empty"):
                getattr(_runtime.cpu_module(), gradient)(
                    torch.zeros(x), w, torch.zeros(y), 1, 1, 0, 0
                )


@torch.no_grad()
def test_chains_of_large_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """R31: what lies between stages may be large where the result is small."""
    x = torch.randn(1, 4, 5, 5)
    for far in (2**20, 2**21, 2**31 - 1):
        around = depthwise(4, padding=far)
        stages = [
            _sparseconv.Chain.depthwise(0, around.weight, None, 1, [far] * 4, 1, "none"),
            _sparseconv.Chain.depthwise(1, around.weight, None, far, [0] * 4, 1, "none"),
        ]
        with pytest.raises((ValueError, MemoryError, RuntimeError), match=r"large|memory"):
            _sparseconv.Chain(x.shape, x.dtype, stages)(x)
        model = Model([(pointwise(4, 4), 0, None), (around, 1, None)]).eval()
        with pytest.raises((ValueError, MemoryError), match="too large"):
            model(x)
    for shape in ((2**40, 2**40, 2**40), (2**62, 1, 2)):
        with pytest.raises(ValueError, match="too large"):
            _sparseconv.Chain((1, *shape), x.dtype, stages)


@torch.no_grad()
def test_an_image_that_is_too_small() -> None:
    """The layer that it does not fit says so."""
    model = Model([(depthwise(4), 0, None), (pointwise(4, 5), 1, None)]).eval()
    with pytest.raises(ValueError, match=r"weight must have a kernel of at least"):
        model(torch.randn(1, 4, 2, 2))


@torch.no_grad()
def test_layers_that_compute_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class or an object with a forward of its own is asked."""

    class Twice(nn.DepthwiseConv2d):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = 2 * super().forward(x)
            return y

    model = Model([(pointwise(6, 6), 0, None), (depthwise(6, padding=1), 1, None)]).eval()
    x = torch.randn(1, 6, 9, 9)
    calls = counted(monkeypatch)
    expected = model(x)
    layer: Any = model.body[1]
    layer.forward = lambda x: 3 * nn.DepthwiseConv2d.forward(layer, x)
    assert torch.equal(model(x), 3 * expected)
    del layer.forward
    other = Twice(6, 6, 3, padding=1).eval()
    other.load_state_dict(layer.state_dict())
    model.body[1] = other
    assert torch.equal(model(x), 2 * expected)
    assert calls == [1]


@torch.no_grad()
def test_stages_are_held_when_their_list_changes() -> None:
    layer = depthwise(6, padding=1)
    stages = [_sparseconv.Chain.depthwise(0, layer.weight, None, 1, [1] * 4, 1, "none")]
    stage = stages[0]
    before = sys.getrefcount(stage)
    chain = _sparseconv.Chain((1, 6, 9, 9), torch.float32, stages)
    stages.clear()
    assert sys.getrefcount(stage) == before  # the chain's in place of the list's
    chain(torch.randn(1, 6, 9, 9))


@torch.no_grad()
def test_one_module_for_two_models_in_two_threads() -> None:
    """R45: roots are those of the call, whoever calls at the same time."""
    models = [
        Model([(pointwise(6, 8, "relu"), 0, None), (depthwise(8, padding=1), 1, None)]).eval()
        for _ in range(4)
    ]
    shared = models[0].fused
    x = torch.randn(1, 6, 9, 9)
    expected = [model.one_by_one(x) for model in models]
    wrong: list[int] = []

    def call(i: int) -> None:
        torch.set_num_threads(1)
        for _ in range(150):
            if not torch.equal(shared(x, models[i].body), expected[i]):
                wrong.append(i)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=call, args=(i,)) for i in range(len(models))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
