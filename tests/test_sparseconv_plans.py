"""Modules in evaluation skip the checks of earlier calls: never for other numbers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from curvkern import nn, sparse
from curvkern.nn import _plans
from sparseconv_chains import measuring

X = torch.linspace(-2, 2, 8 * 7 * 7).reshape(1, 8, 7, 7)


def sparse_module(**options: Any) -> Any:
    conv = torch.nn.Conv2d(8, 12, 1)
    kept = torch.rand(12, 8) < 0.4
    kept[:, 0] = True
    return nn.SparseWeightConv2d.from_dense(conv, kept, **options).eval()


def truth(module: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """By torch's dense convolution in float64."""
    if isinstance(module, nn.SparseWeightConv2d):
        dense = module.to_dense().double()
        z = dense(x.double())
        z = z if residual is None else z + residual.double()
    else:
        left, right, top, bottom = module._sides
        weight, bias = module.weight.double(), module.bias.double()
        padded = F.pad(x.double(), (left, right, top, bottom))
        z = F.conv2d(padded, weight, bias, module._step, 0, module._spread, module.groups)
    return {"none": lambda z: z, "relu": F.relu, "silu": F.silu}[module.activation](z)


@torch.no_grad()
def check(module: Any, x: Tensor = X, residual: Tensor | None = None) -> None:
    given = (x,) if residual is None else (x, residual)
    dtype = next(module.parameters()).dtype
    bar = 2e-2 if dtype is torch.bfloat16 else 1e-5
    for _ in range(3):  # the first may be checked, the others are not
        y = module(*(t.to(dtype) for t in given))
        assert y.dtype is dtype
        assert_close(y.double(), truth(module, *given), rtol=bar, atol=bar)


def other_state(module: Any) -> dict[str, Tensor]:
    return sparse_module().state_dict()


CHANGES: dict[str, Callable[[Any], object]] = {
    "in place": lambda m: m.values.detach().mul_(2),
    "bias in place": lambda m: m.bias.detach().add_(3),
    "data": lambda m: setattr(m.values, "data", m.values.data * 2),
    "bias data": lambda m: setattr(m.bias, "data", m.bias.data + 1),
    "values": lambda m: setattr(m, "values", torch.nn.Parameter(m.values.detach() * 3)),
    "bias": lambda m: setattr(m, "bias", torch.nn.Parameter(torch.zeros(12))),
    "mask": lambda m: m.set_mask_(torch.rand(12, 8) < 0.5),
    "state": lambda m: m.load_state_dict(other_state(m)),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "float64": lambda m: m.double(),
    "activation": lambda m: setattr(m, "activation", "silu"),
    "format": lambda m: setattr(m, "format", "dense"),
}


@pytest.mark.parametrize("format", ["auto", "tuned", "dense", "strip4"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change: str, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, chain=1.0, dense=1.9)
    module = sparse_module(format=format)
    check(module)
    CHANGES[change](module)
    check(module)


def test_steps_of_training_between_evaluations() -> None:
    module = sparse_module(activation="relu")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        check(module.eval())
        module.train()
        module(X).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    check(module.eval())


@pytest.mark.parametrize("dense", [0.3, 1.9])
def test_shapes_layouts_and_residuals(
    dense: float, thread_counts: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, chain=1.0, dense=dense)
    module = sparse_module(activation="relu", format="tuned")
    for threads in (1, 2):
        thread_counts(threads)
        for side in (7, 10):
            for batch in (1, 3):
                x = torch.randn(batch, 8, side, side)
                residual = torch.randn(batch, 12, side, side)
                check(module, x)
                check(module, x, residual)
                check(module, x.to(memory_format=torch.channels_last))
                check(module, x, residual.transpose(2, 3))
                check(module, x, residual[:, :1])
                check(module, x[..., ::2])
        check(module, X[0])
        assert module(X[:0]).shape == (0, 12, 7, 7)
    module.format = "auto"
    for size in range(1, 2 * _plans.CAPACITY):
        check(module, torch.randn(1, 8, 1, size))
    assert 0 < len(module._plans._state[2]) <= _plans.CAPACITY


@pytest.mark.parametrize("first", [False, True])
def test_windows(first: bool) -> None:
    module: Any = (
        nn.FirstConv2d(8, 6, 3, padding=(0, 1, 0, 1), activation="relu")
        if first
        else nn.DepthwiseConv2d(8, padding=(0, 1, 2, 1), activation="relu")
    ).eval()
    check(module)
    with torch.no_grad():
        module.weight.mul_(2)
    check(module)
    module.weight.data = -module.weight.data
    check(module)
    module.activation = "silu"
    check(module)
    check(module, torch.randn(2, 8, 5, 9))
    check(module.double())
    check(copy.deepcopy(module))


@torch.no_grad()
def test_refusals_are_those_of_a_first_call() -> None:
    modules = (sparse_module(), nn.DepthwiseConv2d(8).eval(), nn.FirstConv2d(8, 4, 3).eval())
    for module in modules:
        for wrong in (X[:, :5], X.double(), X[0, 0], X.to(torch.int32), None):
            fresh = copy.deepcopy(module)
            with pytest.raises((TypeError, ValueError)) as first:
                fresh(wrong)
            module(X)
            with pytest.raises(first.type) as later:
                module(wrong)
            assert str(later.value) == str(first.value)


def test_derivatives_and_transforms_after_evaluation() -> None:
    module = sparse_module()
    with torch.no_grad():
        y = module(X)
    x = X.clone().requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None
    assert module.values.grad is not None
    assert_close(x.grad[0, :, 0, 0], module.to_dense().weight.detach().sum(0).flatten())
    with torch.no_grad():
        assert_close(vmap(module)(torch.stack([X, 2 * X]))[0], y)
        assert_close(grad(lambda x: module(x).sum())(X), x.grad)
        twice = {name: 2 * p for name, p in module.named_parameters()}
        assert_close(functional_call(module, twice, (X,)), 2 * y)
        assert_close(module(X), y, rtol=0, atol=0)
    module.requires_grad_(False)
    assert module(X).grad_fn is None
    with torch.inference_mode():
        assert module(X).is_inference()


@torch.no_grad()
@pytest.mark.parametrize("format", ["auto", "dense"])
def test_autocast_changes_nothing(format: str) -> None:
    """R36: also where torch's own product is the quickest."""
    for module in (sparse_module(format=format), nn.FirstConv2d(8, 4, 3).eval()):
        expected = module(X), module(X)
        with torch.autocast("cpu", torch.bfloat16):
            found = module(X), module(X)
        assert_close(found, expected, rtol=0, atol=0)


@torch.no_grad()
def test_traces_have_no_constants() -> None:
    """``torch.jit.trace`` records the operation, not what it gave."""
    model = torch.nn.Sequential(
        nn.FirstConv2d(8, 8, 3), nn.DepthwiseConv2d(8, padding=1), sparse_module()
    ).eval()
    model(X)
    traced = torch.jit.trace(model, X)
    assert_close(traced(2 * X), model(2 * X))


@torch.no_grad()
def test_copies_and_pickles() -> None:
    module = sparse_module()
    y = module(X)
    for other in (copy.copy(module), copy.deepcopy(module)):
        assert_close(other(X), y, rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    loaded.values.mul_(2)
    loaded.bias.mul_(2)
    assert_close(loaded(X), 2 * y, rtol=0, atol=0)
    assert_close(module(X), y, rtol=0, atol=0)


@torch.no_grad()
def test_random_numbers_are_left_alone() -> None:
    """R48: tuning, pruning and reports draw nothing from the global generator."""
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 12, 1)).eval()
    before = torch.get_rng_state()
    sparse.magnitude_prune_(model, 0.8)
    quick = sparse.sparsify(model, example_input=X)
    assert_close(quick(X), model(X))
    sparse.report(quick)
    assert torch.equal(before, torch.get_rng_state())
