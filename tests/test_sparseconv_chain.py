"""Chains of layers in one call: the numbers of the layers, whatever bands and threads."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize

from curvkern import _sparseconv, nn, sparse
from curvkern.nn._fused import FusedConvs, Step
from test_sparseconv_kernels import guarded

ACTIVATIONS: dict[str, Any] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}
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
    """On every instruction set, and for so many channels."""
    monkeypatch.setattr(_sparseconv, "MOST_CHANNELS", dict.fromkeys(("v2", "v3", "v4"), 99))


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


def grouped(monkeypatch: pytest.MonkeyPatch, group: tuple[int, int]) -> None:
    """Let chains run the last stages, from that one on, for so many images at once."""
    monkeypatch.setattr(_sparseconv.Chain, "grouping", lambda *_: group)


@pytest.mark.parametrize("name", chains(1))
@torch.no_grad()
def test_bits_do_not_depend_on_groups(name: str, thread_counts: Any) -> None:
    found = 0
    for batch in (1, 3, 8, 33):
        for size in ((1, 1), (2, 3), (4, 4), (7, 7)):
            model = Model(chains(6)[name]).eval()
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                model = model.to(dtype)
                x = torch.randn(batch, 6, *size).to(dtype)
                thread_counts(1)
                expected = model.one_by_one(x)
                for threads in (1, 2):
                    thread_counts(threads)
                    chain = native(model, x)
                    found += chain.group[1] > 1
                    for _ in range(2):  # what is left of a group does not reach the next
                        assert torch.equal(chain(x), expected), (batch, size, dtype, threads)
    assert found >= (0 if name == "first" else 60)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("name", ["separable", "inverted", "tensorflow", "pointwise"])
@torch.no_grad()
def test_groups_from_any_stage_on(
    name: str, limits: Any, thread_counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After bands, across residuals, of larger images, and nothing beyond the ends (R54)."""
    monkeypatch.setattr(_sparseconv.Chain, "limits", limits)
    for first in range(len(chains(1)[name])):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            model = Model(chains(5)[name]).eval().to(dtype)
            images = torch.randn(7, 5, 9, 11).to(dtype)
            expected = model.one_by_one(images)
            for count in (1, 3, 7):
                grouped(monkeypatch, (first, count))
                for threads in (1, 2):
                    thread_counts(threads)
                    chain = native(model, images)
                    if dtype is torch.bfloat16:  # which numpy, and guarded, do not know
                        assert torch.equal(chain(images), expected), (first, count, threads)
                        continue
                    x, _kept = guarded(images)
                    y, _also = guarded(torch.zeros_like(expected))
                    room = torch.full((chain._native.workspace(),), torch.nan)
                    workspace, _too = guarded(room)
                    chain._native.run(x, workspace, y)
                    assert torch.equal(y, expected), (first, count, threads)


@torch.no_grad()
def test_groups_are_of_small_images(thread_counts: Any) -> None:
    """As many images as fit, for each thread as many, and none where little is gained."""
    sizes = [(256, 16, 16), (64, 8, 8), (512, 4, 4), (512, 4, 4)]
    found = []
    for threads in (1, 2):
        thread_counts(threads)
        for batch in (1, 2, 5, 8, 20, 32, 33):
            found.append(_sparseconv.Chain.grouping(sizes, torch.float32, batch, 0))
    alone, late, early = (3, 1), 2, 1
    assert found[:7] == [alone, (late, 2), (late, 5), *((early, n) for n in (8, 10, 16, 11))]
    assert found[7:] == [alone, alone, (late, 3), (late, 4), *((early, n) for n in (10, 16, 9))]
    wide = [(8192, 4, 4)] * 2  # one image fits
    assert _sparseconv.Chain.grouping(wide, torch.float32, 32, 0) == (1, 1)
    assert _sparseconv.Chain.grouping(sizes, torch.float32, 32, 3) == alone


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("separable", (0, 0), "images of the batch"),
        ("separable", (0, 3), "images of the batch"),
        ("separable", (-1, 1), "begin at a stage"),
        ("separable", (5, 1), "begin at a stage"),
        ("first", (2, 2), "one image at a time"),
        ("odd", (3, 2), "one image at a time"),
    ],
)
def test_groups_that_are_refused(
    name: str, group: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = Model(chains(3)[name]).eval(), torch.randn(2, 3, 9, 9)
    stages: list[Any] = []
    make = _sparseconv.Chain.__init__

    def keep(self: _sparseconv.Chain, shape: Any, dtype: Any, made: Any, group: Any) -> None:
        stages[:] = made
        make(self, shape, dtype, made, group)

    monkeypatch.setattr(_sparseconv.Chain, "__init__", keep)
    native(model, x)
    with pytest.raises(ValueError, match=message):
        _sparseconv.Chain(x.shape, x.dtype, stages, group)


def network(activation: type[torch.nn.Module] = torch.nn.ReLU6) -> Any:
    model = sparse.models.mobilenet_v2(0.25, 10).eval()
    sparse.magnitude_prune_(model, 0.8)
    return model


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


def measuring(monkeypatch: pytest.MonkeyPatch, *, chain: float, dense: float) -> None:
    """Fix what a run as one call and a dense layer take; layers one by one 2, sparse ones 1."""
    from curvkern.sparse import _execution

    def seconds(calls: Any, _: Any) -> Any:
        for call in calls.values():
            call()
        known = {"chain": chain, "layers": 2.0, "new": 1.0, "dense": dense}
        return {name: known.get(name, 0.5) for name in calls}

    monkeypatch.setattr(_execution, "measure", seconds)


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
