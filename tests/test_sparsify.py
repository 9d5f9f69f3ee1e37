"""Modules of sparse weights, whole models with them, and their training."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch.nn.utils import prune
from torch.testing import assert_close

from curvkern import _sparseconv, nn, sparse
from sparseconv_chains import measuring
from sparseconv_truth import NET, arrays, error

ACTIVATIONS = {"relu6": torch.nn.ReLU6, "relu": torch.nn.ReLU, "silu": torch.nn.SiLU,
               "hardswish": torch.nn.Hardswish, "none": torch.nn.Identity}  # fmt: skip


def stored_network() -> torch.nn.Sequential:
    """The network of the stored case, as plain modules in evaluation mode."""
    stored, layers = arrays(NET), []
    for i, (kind, *sizes) in enumerate(NET["cfg"]):
        weight = stored[f"{i}.weight"]
        stride = sizes[2] if kind in ("conv", "dw") else 1
        groups = sizes[0] if kind == "dw" else 1
        n, k = weight.shape[0], weight.shape[2]
        conv = torch.nn.Conv2d(sizes[0], n, k, stride, k // 2, groups=groups, bias=False)
        bn = torch.nn.BatchNorm2d(n)
        names = {
            "weight": "gamma",
            "bias": "beta",
            "running_mean": "mean",
            "running_var": "var",
        }
        with torch.no_grad():
            conv.weight.copy_(weight)
            for name, key in names.items():
                getattr(bn, name).copy_(stored[f"{i}.{key}"])
        layers += [conv, bn, ACTIVATIONS[sizes[-1]]()]
    return torch.nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"fuse_bn": False}, {"autotune": False}, {"fuse_activation": False},
     {"autotune": False, "min_sparsity": 0.5, "block": (2, 1)}, {"example_input": True}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dense", [0.3, 1.9])
def test_stored_network(
    options: dict[str, Any], dense: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, chain=1.0, dense=dense)
    stored = arrays(NET)
    if "example_input" in options:
        options = {"example_input": stored["x"]}
    model = stored_network()
    quick = sparse.sparsify(model, **options)
    x = stored["x"].requires_grad_()
    y = quick(x).mean((2, 3))
    y.backward(stored["gy"])
    assert error(y, stored["y"]) < 1e-5
    assert error(x.grad, stored["gx"]) < 1e-4
    with torch.no_grad():
        assert error(quick(x).mean((2, 3)), stored["y"]) < 1e-5
    if options == {"fuse_bn": False}:
        for i, (kind, *_) in enumerate(NET["cfg"]):
            if kind == "pw":
                assert error(quick[3 * i].values.grad, stored[f"{i}.gvalues"]) < 1e-4
    assert all(type(m) is not nn.SparseWeightConv2d for m in model.modules())


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """With statistics such as training leaves behind."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "efficientnet_b0"])
def test_models(name: str) -> None:
    model = randomised(getattr(sparse.models, name)(0.25, 7)).eval()
    sparse.magnitude_prune_(model, 0.9)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        fused = sparse.sparsify(model, autotune=False)
        kept = sparse.sparsify(copy.deepcopy(model), autotune=False, inplace=True)
        for quick in (fused, kept):
            assert error(quick(x), expected.double()) < 1e-5
            assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in kept.modules())
    count = sum(isinstance(m, nn.SparseWeightConv2d) for m in fused.modules())
    assert count == sum(m.kernel_size == (1, 1) for m in model.modules()
                        if isinstance(m, torch.nn.Conv2d))  # fmt: skip
    rows = sparse.report(fused)
    assert len(rows) >= count
    assert all(0 <= row.sparsity <= 1 for row in rows)
    training = sparse.sparsify(model.train(), autotune=False)
    training(x).sum().backward()
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in training.modules())


@pytest.mark.parametrize("dense", [0.3, 1.9])
def test_choices_are_kept(dense: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variant of a shape is measured once, and results are bitwise equal ever after."""
    measuring(monkeypatch, chain=1.0, dense=dense)
    conv = torch.nn.Conv2d(32, 32, 1)
    mask = torch.rand(32, 32) > 0.9
    module = nn.SparseWeightConv2d.from_dense(conv, mask, format="tuned").eval()
    x = torch.randn(1, 32, 7, 7)
    with torch.no_grad():
        first = module(x)
        times = copy.deepcopy(module.timings())
        assert next(iter(times.values()))["dense"] == dense
        monkeypatch.undo()
        for _ in range(3):
            assert torch.equal(module(x), first)
        assert module.timings() == times
        module.values.add_(1)  # what was packed is made anew
        assert_close(module(x), module.to_dense()(x))


def test_what_is_made_in_inference_mode_is_kept_packed(monkeypatch: Any) -> None:
    """Tensors made there have no versions; a module of such would be packed at every call."""
    model = sparse.magnitude_prune_(torch.nn.Conv2d(16, 32, 1).eval(), 0.9)
    x, made = torch.randn(1, 16, 4, 4), []
    pack = _sparseconv.pack
    monkeypatch.setattr(_sparseconv, "pack", lambda *args: made.append(0) or pack(*args))
    with torch.inference_mode():
        quick = sparse.sparsify(model, autotune=False)
        assert_close(quick(x), model(x))
        assert quick(x).is_inference()
    assert not quick.values.is_inference()
    assert len(made) == 1


def test_module_and_its_states() -> None:
    """R38, R40: bitwise continuation, dense checkpoints, hostile states."""
    conv = torch.nn.Conv2d(6, 4, 1)
    prune.random_unstructured(conv, "weight", 0.5)
    module = nn.SparseWeightConv2d.from_dense(conv)
    x = torch.randn(2, 6, 3, 3)
    assert_close(module(x), conv(x))
    assert_close(module.to_dense()(x), conv(x))
    assert torch.equal(module.weight_csr().to_dense(), conv.weight[:, :, 0, 0])
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = nn.SparseWeightConv2d(6, 4)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    fresh = nn.SparseWeightConv2d(6, 4)
    fresh.load_state_dict(conv.state_dict())  # weight_orig and weight_mask
    assert torch.equal(fresh(x), module(x))
    dense = torch.nn.Conv2d(6, 4, 1)
    fresh.load_state_dict(dense.state_dict())  # the mask stays
    assert torch.equal(fresh.weight_csr().to_dense(), dense.weight[:, :, 0, 0] * module.mask())
    state = module.state_dict()
    for tensor in state.values():  # what torch.save writes
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    for name, bad in (("values", torch.ones(3)), ("col_indices", state["col_indices"].float()),
                      ("crow_indices", torch.zeros(3, dtype=torch.int64))):  # fmt: skip
        before = other(x)
        with pytest.raises(ValueError, match=r"SparseWeightConv2d|sparse_conv1x1"):
            other.load_state_dict({**state, name: bad})
        assert torch.equal(other(x), before)


@pytest.mark.parametrize("block", [(1, 1), (2, 3)])
def test_set_mask(block: tuple[int, int]) -> None:
    module = nn.SparseWeightConv2d(6, 4, block=block)
    dense = module.weight_csr().to_dense().detach()
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(1, 6, 3, 3)).sum().backward()
    optimizer.step()
    dense = module.weight_csr().to_dense().detach()
    mask = torch.zeros(4, 6)
    mask[0, 0] = mask[3, 5] = 1
    module.set_mask_(mask, optimizer)
    assert module.values.numel() == 2 * block[0] * block[1]
    assert_close(module.weight_csr().to_dense(), dense * mask)
    module(torch.randn(1, 6, 3, 3)).sum().backward()
    optimizer.step()


def test_gradual_pruning() -> None:
    """Masks follow the cubic schedule and weights that went stay zero."""
    model = sparse.models.mobilenet_v1(0.25, 3)
    schedule = sparse.CubicSchedule(1, 5, every=2)
    pruning = sparse.magnitude_prune_(model, 0.8, schedule=schedule)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x, y = torch.randn(4, 3, 32, 32), torch.randint(3, (4,))
    seen = []
    for _ in range(6):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        seen.append(pruning.step())
    assert_close(seen, [0.0, 0.0, 0.8 * (1 - 0.5**3), 0.8 * (1 - 0.5**3), 0.8, 0.8])
    model.eval()
    layers = [m for m in model.modules() if getattr(m, "kernel_size", 0) == (1, 1)]
    for conv in layers:
        assert float((conv.weight_mask == 0).double().mean()) == pytest.approx(0.8, abs=0.01)
    quick = sparse.sparsify(model, autotune=False)
    with torch.no_grad():
        assert error(quick(x), model(x).double()) < 1e-5


def test_threads_and_repetition(thread_counts: Any) -> None:
    """R47: the same bits whatever the number of threads."""
    conv = torch.nn.Conv2d(64, 96, 1)
    module = nn.SparseWeightConv2d.from_dense(conv, torch.rand(96, 64) > 0.9)
    x = torch.randn(2, 64, 14, 14, requires_grad=True)
    found = []
    for threads in (1, 1, 2, 3):
        thread_counts(threads)
        y = module(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, module.values))))
    for others in found[1:]:
        assert_close(others, found[0], rtol=0, atol=0)


def test_fork_after_parallel_use(run_python: Any) -> None:
    """R46: the child finishes."""
    run_python(
        """
        import os, torch
        from curvkern import nn
        module = nn.SparseWeightConv2d(64, 64)
        x = torch.randn(4, 64, 28, 28).to(memory_format=torch.channels_last)
        with torch.no_grad():
            expected = module(x)
        child = os.fork()
        if child == 0:
            with torch.no_grad():
                os._exit(0 if torch.equal(module(x), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"inplace": "no"}, TypeError, "inplace must be a bool, got str"),
        ({"autotune": 1}, TypeError, "autotune must be a bool, got int"),
        ({"fuse_bn": None}, TypeError, "fuse_bn must be a bool, got NoneType"),
        ({"example_input": "x"}, TypeError, "example_input must be a tensor or a tuple"),
        ({"min_sparsity": "a"}, TypeError, "min_sparsity must be a number, got str"),
        ({"min_sparsity": 1.5}, ValueError, r"min_sparsity must be in \[0, 1\], got 1.5"),
        ({"block": "b"}, ValueError, "block must be 'auto' or a pair, got 'b'"),
    ],
)
def test_arguments_of_sparsify(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1))
    with pytest.raises(error, match=f"sparsify: {words}"):
        sparse.sparsify(model, **options)
    assert type(model[0]) is torch.nn.Conv2d
