"""Chains of layers in one call: the numbers of the layers, whatever bands and threads."""

from __future__ import annotations

import copy
import io
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize

from curvkern import _sparseconv, nn, sparse
from sparseconv_chains import (
    LIMITS,
    Model,
    assert_fenced,
    chains,
    counted,
    depthwise,
    fence_weights,
    first_is_native,
    fused_modules,
    guarded,
    measuring,
    native,
    pointwise,
)

ACTIVATIONS: dict[str, Any] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def truth(model: Model, x: Tensor) -> Tensor:
    """By torch's dense convolutions in float64."""
    values = [x.double()]
    for step, layer in zip(model.fused.steps, model.body, strict=True):
        x = values[step.input]
        if isinstance(layer, nn.SparseWeightConv2d):
            z = layer.to_dense().double()(x)
        else:
            assert isinstance(layer, (nn.DepthwiseConv2d, nn.FirstConv2d))
            bias = None if layer.bias is None else layer.bias.double()
            padded = F.pad(x, layer._sides)
            weight, groups = layer.weight.double(), layer.groups
            z = F.conv2d(padded, weight, bias, layer._step, 0, layer._spread, groups)
        if step.residual is not None:
            z = z + values[step.residual]
        values.append(ACTIVATIONS[str(layer.activation)](z))
    return values[-1]


@pytest.fixture(autouse=True)
def _first_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    first_is_native(monkeypatch)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("name", chains(1))
@torch.no_grad()
def test_bits_are_those_of_the_layers(
    name: str, limits: Any, thread_counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sparseconv.Chain, "limits", limits)
    for channels, batch, size in (
        (1, 1, (1, 1)), (3, 2, (1, 9)), (5, 1, (7, 7)), (8, 8, (7, 7)), (4, 1, (23, 1)),
        (6, 1, (29, 31)), (16, 3, (14, 15)), (7, 1, (56, 56)),
    ):  # fmt: skip
        model = Model(chains(channels)[name]).eval()
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            model = model.to(dtype)
            x = torch.randn(batch, channels, *size).to(dtype)
            thread_counts(1)
            expected = model.one_by_one(x)
            for threads in (1, 2, 3):
                thread_counts(threads)
                chain = native(model, x)
                for _ in range(2):  # what is left of an image does not reach the next
                    assert torch.equal(chain(x), expected), (channels, size, dtype, threads)
                assert torch.equal(model(x), expected)
            if dtype is not torch.bfloat16:
                wide = truth(model, x)
                assert (expected.double() - wide).abs().max() <= 1e-5 * (1 + wide.abs().max())


@torch.no_grad()
def test_bands_are_cut_where_tensors_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(chains(8)["inverted"]).eval()
    x = torch.randn(1, 8, 40, 40)
    monkeypatch.setattr(_sparseconv.Chain, "limits", (1 << 40, 1 << 40))
    assert [rows for _, rows in native(model, x).segments()] == [0] * 6
    # 24 and 16 channels are large, 8 are not, and one is needed by a later residual
    monkeypatch.setattr(_sparseconv.Chain, "limits", (60_000, 60_000))
    segments = native(model, x).segments()
    assert [number for number, _ in segments] == [0, 0, 0, 1, 1, 1]
    assert all(0 < rows < 40 for _, rows in segments)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("name", chains(1))
@torch.no_grad()
def test_nothing_beyond_the_ends_is_touched(
    name: str, limits: Any, thread_counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R54, and that nothing is read that was not written."""
    fence_weights(monkeypatch)
    monkeypatch.setattr(_sparseconv.Chain, "limits", limits)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for batch, size in ((1, (7, 7)), (3, (13, 17)), (1, (30, 33))):
            model = Model(chains(5)[name]).eval().to(dtype)
            for parameter in model.parameters():
                parameter.data = guarded(parameter.data)[0]
            x = torch.randn(batch, 5, *size).to(dtype)
            expected = model.one_by_one(x)
            for threads in (1, 2):
                thread_counts(threads)
                assert_fenced(native(model, x), x, expected, 0.0)


def network(activation: type[torch.nn.Module] = torch.nn.ReLU6) -> Any:
    model = sparse.models.mobilenet_v2(0.25, 10).eval()
    sparse.magnitude_prune_(model, 0.8)
    return model


@pytest.mark.parametrize("build", ["mobilenet_v1", "mobilenet_v2", "efficientnet_b0"])
@torch.no_grad()
def test_networks(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = getattr(sparse.models, build)(0.25, 10).eval()
    sparse.magnitude_prune_(model, 0.8)
    quick = sparse.sparsify(model, autotune=False)
    layers = [layer for layer in sparse.report(quick) if layer.kind != "Conv2d"]
    together = [layer for layer in layers if layer.fused]
    assert len(together) > len(layers) / 2
    assert f"in {together[0].fused}" in str(sparse.report(quick))
    calls = counted(monkeypatch)
    for shape in ((1, 3, 64, 64), (2, 3, 37, 50)):
        x = torch.randn(*shape)
        expected, got = model.double()(x.double()), quick(x)
        model.float()
        bar = 1e-5 * expected.abs().max()
        assert (got - expected).abs().max() < bar
        for t in (x.to(memory_format=torch.channels_last), x[:, :, :, :].mT.contiguous().mT):
            assert (quick(t) - expected).abs().max() < bar
    assert calls[0] >= 2 * len(fused_modules(quick)) > 0


def test_names_and_copies_stay() -> None:
    model = network()
    quick = sparse.sparsify(model, autotune=False)
    own = {name.rpartition(".")[0] for name in quick.state_dict()}
    assert own == {name for name, m in model.named_modules() if hasattr(m, "weight")} - {
        name for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)
    }
    assert not any(name.startswith("fused") for name in quick.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = quick(x)
        twin = copy.deepcopy(quick)
        assert torch.equal(twin(x), expected)
        for parameter in twin.parameters():  # a copy, not a view
            parameter.zero_()
        assert torch.equal(quick(x), expected)
        assert not torch.equal(twin(x), expected)
        twin.load_state_dict(quick.state_dict())
        assert torch.equal(twin(x), expected)
        file = io.BytesIO()
        torch.save(quick, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert fused_modules(loaded)
        assert torch.equal(loaded(x), expected)
        assert loaded.state_dict().keys() == quick.state_dict().keys()
        again = sparse.sparsify(quick, autotune=False)
        assert torch.equal(again(x), expected)


@torch.no_grad()
def test_changes_are_noticed() -> None:
    model = Model(chains(6)["inverted"]).eval()
    x = torch.randn(1, 6, 20, 20)

    def check() -> None:
        for _ in range(2):
            y = model(x)
            assert torch.equal(y, model.one_by_one(x))
        wide = truth(model, x)
        assert (y.double() - wide).abs().max() < 1e-5 * (1 + wide.abs().max())

    first, second, third = model.body[0], model.body[1], model.body[2]
    check()
    first.values.mul_(2)
    check()
    second.weight.data = torch.randn_like(second.weight)
    check()
    third.bias = torch.nn.Parameter(torch.randn(6))
    check()
    third.bias = None
    check()
    first.activation = "silu"
    check()
    third.set_mask_(torch.rand(6, 18) < 0.5)
    check()
    model.body[0] = pointwise(6, 18, "relu")
    check()
    body = torch.nn.ModuleList(model.body)
    body[3] = pointwise(6, 12)
    model.body = body
    check()
    parametrize.register_parametrization(second, "weight", torch.nn.Softplus())
    check()


@torch.no_grad()
def test_it_steps_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where someone wants to see a layer, or numbers are not plain, each is called."""
    model = Model(chains(6)["inverted"]).eval()
    x = torch.randn(1, 6, 20, 20)
    calls = counted(monkeypatch)
    expected = model(x)
    assert calls == [1]
    seen: list[Any] = []
    handle = model.body[2].register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(model(x), expected)
    assert (calls, seen) == ([1], [1])
    handle.remove()
    model(x)
    assert calls == [2]
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(type(module))
    )
    model(x)
    handle.remove()
    assert calls == [2]
    assert seen.count(nn.SparseWeightConv2d) == 4
    model.body[1].train()
    assert torch.equal(model(x), expected)
    model.eval()
    assert torch.equal(model(x.mT.contiguous().mT), expected)
    assert torch.equal(model(x[0]), expected[0])
    assert model(x[:0]).shape == (0, *expected.shape[1:])
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    assert (torch.func.vmap(model)(x[None])[0] - expected).abs().max() < 1e-5
    assert calls == [2]
    with pytest.raises(ValueError, match="SparseWeightConv2d: x has 5 channels"):
        model(x[:, :5])
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
    assert calls == [3]


def test_gradients_pass_through() -> None:
    model = network()
    quick = sparse.sparsify(model, autotune=False)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    wanted = torch.autograd.grad(model(x).square().sum(), x)[0]
    found = torch.autograd.grad(quick(x).square().sum(), x)[0]
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    quick.train()
    loss = quick(x).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in quick.parameters())
    for p in quick.parameters():
        p.requires_grad_(False)
    quick.eval()
    y = quick(x)  # the image alone
    assert y.requires_grad


@torch.no_grad()
def test_compiled_and_exported() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 12, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(12, 12, 3, padding=1, groups=12),
        torch.nn.ReLU(),
        torch.nn.Conv2d(12, 4, 1),
    ).eval()
    sparse.magnitude_prune_(model, 0.7)
    quick = sparse.sparsify(model, autotune=False)
    assert len(fused_modules(quick)) == 1
    assert type(quick[0]) is nn.SparseWeightConv2d  # type: ignore[index]
    x = torch.randn(2, 4, 9, 9)
    expected = quick(x)
    exported = torch.export.export(quick, (x,)).module()
    assert (exported(x) - expected).abs().max() < 1e-5
    compiled = torch.compile(quick, backend="eager", fullgraph=True)
    assert (compiled(x) - expected).abs().max() < 1e-5


def test_what_is_fused() -> None:
    """Nothing whose result is used elsewhere, and no layer that is called twice."""

    class Branches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Conv2d(6, 6, 1) for _ in range(3))
            self.d = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
            self.e = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            b = F.relu(self.b(self.d(a)))
            c = self.c(b) + a
            e: Tensor = self.e(F.silu(c))
            return e + b + self.e(c * 2)

    model = Branches().eval()
    sparse.magnitude_prune_(model, 0.7)
    quick = sparse.sparsify(model, autotune=False)
    names = [[step.name for step in fused.steps] for fused in fused_modules(quick)]
    assert names == [["d", "b"]]
    x = torch.randn(1, 6, 8, 8)
    with torch.no_grad():
        assert (quick(x) - model(x)).abs().max() < 1e-5


@torch.no_grad()
def test_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an example, layers run together where that was the quicker; else as they were."""
    model = network()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)

    def bar(quick: torch.nn.Module) -> bool:
        return bool((quick(x) - expected).abs().max() < 1e-4 * (1 + expected.abs().max()))

    for chain in (1.0, 3.0):
        for dense in (1.9, 0.9):  # a layer that loses alone by less than half
            measuring(monkeypatch, chain=chain, dense=dense)
            quick = sparse.sparsify(model, example_input=x, min_sparsity=0.5)
            assert bar(quick)
            assert bool(fused_modules(quick)) == (chain == 1.0), (chain, dense)
            kept = sum(isinstance(m, nn.SparseWeightConv2d) for m in quick.modules())
            assert (kept > 0) == (chain == 1.0 or dense == 1.9)


@torch.no_grad()
def test_one_workspace_serves_all_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest that a thread needed, unless it takes much."""
    monkeypatch.setattr(_sparseconv, "_kept", threading.local())
    quick = sparse.sparsify(network(), autotune=False)
    needed = []
    for size in (40, 64, 48, 33):
        x = torch.randn(2, 3, size, size)
        expected = network()(x)
        assert (quick(x) - expected).abs().max() < 1e-4 * (1 + expected.abs().max())
        needed.append(_sparseconv._kept.workspace.numel())
    assert needed[0] < needed[1] == needed[2] == needed[3]
    monkeypatch.setattr(_sparseconv, "MOST_KEPT", 0)
    quick(torch.randn(2, 3, 40, 40))
    assert _sparseconv._kept.workspace is None


@torch.no_grad()
def test_a_layer_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that stores nothing is its bias, and a stage as others are."""
    calls = counted(monkeypatch)
    empty = nn.SparseWeightConv2d(6, 4, mask=torch.zeros(4, 6), activation="silu").eval()
    model = Model([(depthwise(6, padding=1), 0, None), (empty, 1, None)]).eval()
    x = torch.randn(3, 6, 5, 5)
    expected = F.silu(empty.bias)[:, None, None].expand(3, 4, 5, 5)
    torch.testing.assert_close(model(x), expected)
    assert calls == [1]


def test_interrupts(run_python: Any) -> None:
    """R43: within a call that would take long, with bands and without."""
    run_python(
        """
import os, signal, threading, time
import torch
from curvkern import _sparseconv, nn
from curvkern.nn._fused import FusedConvs, Step
signal.signal(signal.SIGINT, signal.default_int_handler)
layers = torch.nn.ModuleList()
for i in range(2):
    mask = torch.rand(96, 96) < 0.5
    layers.append(nn.SparseWeightConv2d(96, 96, mask=mask))
    layers.append(nn.DepthwiseConv2d(96, kernel_size=7, padding=3))
layers.eval()
steps = tuple(Step(f"body.{i}", i, None) for i in range(4))
fused = FusedConvs(steps, ("body",)).eval()
for threads in (1, 2):
    torch.set_num_threads(threads)
    for batch in (1, 4):
        x = torch.randn(batch, 96, 256, 256)
        for limits in ((0, 1 << 20), (1 << 40, 1)):
            _sparseconv.Chain.limits = limits
            with torch.no_grad():
                chain = fused.chain(x, tuple(layers))
                expected = chain(x)
                sent = []
                def interrupt():
                    sent.append(time.perf_counter())
                    os.kill(os.getpid(), signal.SIGINT)
                try:
                    threading.Timer(0.02, interrupt).start()
                    while True:
                        chain(x)
                except KeyboardInterrupt:
                    assert time.perf_counter() - sent[0] < 2
                assert torch.equal(chain(x), expected)
"""
    )
