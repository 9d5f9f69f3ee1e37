"""Squeeze and excitation in chains of layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from curvkern import _sparseconv, sparse
from curvkern.nn import SparseWeightConv2d
from curvkern.nn._fused import FusedConvs
from curvkern.sparse import _execution
from sparseconv_chains import (
    LIMITS,
    assert_fenced,
    counted,
    fence_weights,
    fused_modules,
    guarded,
)


class Excited(torch.nn.Module):
    """A depthwise convolution, squeeze and excitation, a projection and what follows."""

    def __init__(
        self, c: int, r: int, act: Any, sigmoid: Any, linear: bool, bias: bool
    ) -> None:
        super().__init__()
        conv = torch.nn.Conv2d
        layer: Any = torch.nn.Linear if linear else lambda i, o, bias: conv(i, o, 1, bias=bias)
        self.first = conv(c, c, 3, padding=1, groups=c)
        self.pool, self.act, self.sigmoid = torch.nn.AdaptiveAvgPool2d(1), act, sigmoid
        self.down, self.up = layer(c, r, bias=bias), layer(r, c, bias=bias)
        self.project, self.last = conv(c, 2 * c, 1), conv(2 * c, 2 * c, 3, groups=2 * c)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x))
        mean = self.pool(x).flatten(1) if self.linear else self.pool(x)
        scale = self.sigmoid(self.up(self.act(self.down(mean))))
        x = scale.unflatten(1, (-1, 1, 1)) * x if self.linear else x * scale
        y: Tensor = self.last(F.relu(self.project(x)))
        return y


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@torch.no_grad()
def test_squeeze_and_excitation(
    limits: Any, thread_counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sparseconv.Chain, "limits", limits)
    calls = counted(monkeypatch)
    for c, r, act, sigmoid, linear, bias in (
        (2, 1, torch.nn.ReLU(), torch.nn.Sigmoid(), False, True),
        (40, 7, torch.nn.SiLU(), torch.nn.Sigmoid(), True, True),
        (33, 16, torch.nn.ReLU(), torch.nn.Hardsigmoid(), False, False),
        (600, 20, torch.nn.Hardswish(), torch.nn.Hardsigmoid(), True, False),
        (24, 17, torch.nn.ReLU6(), torch.nn.Sigmoid(), True, True),
    ):
        model = Excited(c, r, act, sigmoid, linear, bias).eval()
        sparse.magnitude_prune_(model.project, 0.8)
        model.project(torch.zeros(1, c, 1, 1))  # masks apply
        quick = sparse.sparsify(model, autotune=False, min_sparsity=0.5)
        (fused,) = fused_modules(quick)
        assert [bool(step.gate) for step in fused.steps] == [False, True, False]
        for size in ((3, 3), (7, 9), (24, 26)):
            for batch in (1, 3):
                x = torch.randn(batch, c, *size)
                wide = copy.deepcopy(model).double()(x.double())
                results = []
                for threads in (1, 2):
                    thread_counts(threads)
                    results.append(quick(x))
                assert torch.equal(*results)
                assert (results[0] - wide).abs().max() < 1e-5 * (1 + wide.abs().max())
        before = calls[0]
        assert before > 0
        for changed in (model, quick):
            changed.up.weight.mul_(3)
        wide = copy.deepcopy(model).double()(x.double())
        assert (quick(x) - wide).abs().max() < 1e-5 * (1 + wide.abs().max())
        assert calls[0] == before + 1
        seen: list[int] = []
        handle = quick.sigmoid.register_forward_hook(lambda *_: seen.append(1))  # noqa: B023
        y = quick(x)
        handle.remove()
        assert (len(seen), calls[0]) == (1, before + 1)
        assert (y - quick(x)).abs().max() < 1e-5 * (1 + y.abs().max())
        quick.double()
        assert quick(x.double()).dtype is torch.float64


def stages(quick: torch.nn.Module, fused: FusedConvs) -> tuple[torch.nn.Module, ...]:
    return tuple(quick.get_submodule(name) for step in fused.steps for name in step.names)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("limits", LIMITS, ids=str)
@torch.no_grad()
def test_nothing_beyond_the_ends_is_touched(
    limits: Any, thread_counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R54, and that nothing is read that was not written."""
    fence_weights(monkeypatch)
    monkeypatch.setattr(_sparseconv.Chain, "limits", limits)
    for c, r, linear, bias in ((5, 1, False, True), (33, 17, True, False), (16, 8, True, True)):
        model = Excited(c, r, torch.nn.ReLU(), torch.nn.Sigmoid(), linear, bias).eval()
        sparse.magnitude_prune_(model.project, 0.8)
        quick = sparse.sparsify(model, autotune=False, min_sparsity=0.5)
        for parameter in quick.parameters():
            parameter.data = guarded(parameter.data)[0]
        (fused,) = fused_modules(quick)
        for batch, size in ((1, (7, 7)), (3, (5, 9)), (1, (23, 26))):
            x = torch.randn(batch, c, *size)
            expected = model(x)
            for threads in (1, 2):
                thread_counts(threads)
                chain = fused.chain(x, stages(quick, fused))
                assert chain is not None
                assert_fenced(chain, x, expected, 1e-5 * float(1 + expected.abs().max()))


@torch.no_grad()
def test_scales_in_other_dtypes_are_computed_by_torch() -> None:
    """Only float32 has a native gate; layers before and after it are then called alone."""
    model = Excited(16, 5, torch.nn.SiLU(), torch.nn.Sigmoid(), True, True).eval()
    sparse.magnitude_prune_(model.project, 0.8)
    x = torch.randn(2, 16, 9, 9)
    for dtype, bar in ((torch.float64, 1e-12), (torch.bfloat16, 2.0**-5)):
        given, image = copy.deepcopy(model).to(dtype), x.to(dtype)
        quick = sparse.sparsify(given, autotune=False, min_sparsity=0.5)
        (fused,) = fused_modules(quick)
        members = stages(quick, fused)
        assert fused.chain(image, members) is None
        y = quick(image)
        assert y.dtype is dtype
        assert torch.equal(y, fused.each(image, members))
        wide = given.double()(image.double())
        assert (y.double() - wide).abs().max() <= bar * (1 + wide.abs().max())


@torch.no_grad()
def test_what_is_left_of_a_chain_that_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer goes back to being dense; the scale stays with the layers after it."""
    model = Excited(8, 3, torch.nn.ReLU(), torch.nn.Sigmoid(), False, True).eval()
    sparse.magnitude_prune_(model.project, 0.8)
    x = torch.randn(1, 8, 9, 9)
    expected, lost = model(x), []

    def seconds(calls: Any, _: Any) -> Any:
        for call in calls.values():
            call()
        found = {"layers": 2.0, "new": 1.0, "dense": 1.9, "chain": 1.0 if lost else 3.0}
        if "chain" in calls:
            lost.append(True)
        elif not dense:  # the first layer
            found["dense"] = 0.9
            dense.append(True)
        return {name: found.get(name, 0.5) for name in calls}

    dense: list[bool] = []
    monkeypatch.setattr(_execution, "measure", seconds)
    quick = sparse.sparsify(model, example_input=x, min_sparsity=0.5)
    assert type(quick.first) is torch.nn.Conv2d
    (fused,) = fused_modules(quick)
    assert [bool(step.gate) for step in fused.steps] == [True, False]
    assert (quick(x) - expected).abs().max() < 1e-5 * (1 + expected.abs().max())


@torch.no_grad()
def test_modules_that_are_put_in_place_of_those_of_a_scale() -> None:
    """They are called, one by one, if the chain computes something else."""
    x = torch.randn(2, 8, 5, 7)

    class Whole(torch.nn.Module):
        """Not traced, so that convolutions of a scale are among those to be replaced."""

        def __init__(self, body: torch.nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return y if bool(y.isfinite().all()) else x

    for linear in (False, True):
        model = Excited(8, 3, torch.nn.ReLU(), torch.nn.Sigmoid(), linear, True).eval()
        sparse.magnitude_prune_(model.project, 0.8)
        quick = sparse.sparsify(model, autotune=False, min_sparsity=0.5)
        assert fused_modules(quick)
        whole = sparse.sparsify(Whole(quick), autotune=False, min_sparsity=0)
        assert linear or type(whole.get_submodule("body.down")) is SparseWeightConv2d
        for name, other in (
            ("", None),
            ("sigmoid", torch.nn.Tanh()),
            ("act", torch.nn.Tanh()),
            ("pool", torch.nn.AdaptiveMaxPool2d(1)),
            ("up", torch.nn.Sequential(copy.deepcopy(model.up), torch.nn.Tanh())),
        ):
            for root in (model, quick, whole.body):
                if name:
                    setattr(root, name, other)
            expected = model(x)
            for found in (quick(x), whole(x)):
                assert (found - expected).abs().max() < 1e-5 * (1 + expected.abs().max())
