"""The optimizers of the Hutchinson family: parameters, losses and products of every kind."""

from __future__ import annotations

import contextlib
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from adahessian_steps import batches, error, network, same, values
from curvkern import _hutchinson, _runtime, curvature
from curvkern._tangents import kernels
from hutchinson_optimizers import (
    EVERY,
    advance,
    every_optimizer,
    given,
    snapshot,
    state_of,
    unchanged,
    with_products,
    without_loss,
)


@every_optimizer
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_changes_nothing(name: str, bad: float) -> None:
    """R14: a loss, or a gradient of a finite loss."""
    model = network()
    optimizer = EVERY[name](model.parameters())
    x = batches(1)[0]
    advance(optimizer, lambda: error(model, x))
    before = [*values(model), *state_of(optimizer)]

    def spoiled() -> Tensor:
        w = model[0].weight
        return error(model, x) + (w - w.detach()).abs().sqrt().sum()  # 0, with slope infinity

    with pytest.raises(ValueError, match="loss must be finite"):
        advance(optimizer, lambda: error(model, x) * bad)
    with pytest.raises(ValueError, match="gradients must be finite"):
        advance(optimizer, spoiled)
    assert same([*values(model), *state_of(optimizer)], before)


@every_optimizer
def test_kinds_of_parameters(name: str) -> None:
    """R19, R20: linear, unused, frozen, 0-dim, empty; a loss that is no scalar."""
    linear, unused, scalar, empty = (
        torch.ones(s, requires_grad=True) for s in ((3,), (4,), (), (0,))
    )
    frozen = torch.ones(2)
    optimizer = EVERY[name]([linear, unused, scalar, empty, frozen])
    for _ in range(3):
        advance(optimizer, lambda: (linear.sum() + 9).relu() + scalar**2 + empty.sum())
    assert float(linear.detach().sum()) < 3
    assert torch.equal(unused, torch.ones(4))
    assert torch.equal(frozen, torch.ones(2))
    assert unused not in optimizer.state
    with pytest.raises(ValueError, match="loss must be a scalar, got shape"):
        advance(optimizer, lambda: linear * 2)
    with pytest.raises(TypeError, match="loss must be a tensor, got float"):
        advance(optimizer, lambda: 1.0)


@every_optimizer
@pytest.mark.parametrize("bad", [torch.ones(2, dtype=torch.complex64), torch.ones(2).int()])
def test_kinds_that_are_refused(name: str, bad: Tensor) -> None:
    """R25, R30"""
    with pytest.raises(TypeError, match=f"{name}: parameters must be real and floating, got"):
        EVERY[name]([bad])
    with pytest.raises(ValueError, match="empty"):
        EVERY[name]([])
    with pytest.raises(TypeError):
        EVERY[name]([torch.ones(2)], lrr=0.1)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_stay_finite(name: str, dtype: torch.dtype) -> None:
    """R25: bfloat16 by compiled steps, float16 by plain ones, with states in float32."""
    p = torch.ones(300, dtype=dtype, requires_grad=True)
    optimizer = EVERY[name]([p])
    for _ in range(4):
        advance(optimizer, lambda: (p**2).mean() * 100)
    assert p.dtype is dtype
    assert bool(p.isfinite().all())
    assert float(p.detach().max()) < 1
    assert all(t.dtype is torch.float32 for t in state_of(optimizer))


@every_optimizer
def test_layouts_of_parameters(name: str) -> None:
    """R23: views that are not contiguous equal contiguous ones, also as gradients."""
    found = []
    for kind in ("contiguous", "transposed", "channels_last"):
        torch.manual_seed(2)
        p = torch.randn(4, 3, 2, 2)
        if kind == "channels_last":
            p = p.contiguous(memory_format=torch.channels_last)
        elif kind == "transposed":
            p = p.transpose(0, 1).contiguous().transpose(0, 1)
        p.requires_grad_()
        optimizer = EVERY[name]([p])
        for _ in range(3):
            advance(optimizer, lambda p=p: (p**4).mean() + p.mean() ** 2)
        found.append(p.detach().contiguous())
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-5)


# What is refused, and leaves everything as it was ---------------------------------------------


@with_products
@pytest.mark.parametrize("what", ["hz", "probes"])
@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (np.ones((3, 4)), TypeError, "must hold tensors, got ndarray"),
        (torch.ones(3, 4).to_sparse(), TypeError, r"must be dense and real.*torch\.sparse_coo"),
        (torch.ones(3, 4, dtype=torch.complex64), TypeError, r"real, got torch\.complex64"),
        (torch.ones(3, 4, device="meta"), ValueError, "is on meta but its parameter on cpu"),
        (torch.ones(4, 3), ValueError, r"shape \(4, 3\) for a parameter of shape \(3, 4\)"),
    ],
    ids=["array", "sparse", "complex", "meta", "shape"],
)
def test_products_and_probes_that_are_refused(
    name: str, what: str, bad: Any, kind: type[Exception], words: str
) -> None:
    """R22, R24, R25, R26, R28"""
    model = torch.nn.Linear(4, 3, bias=False)
    optimizer = EVERY[name](model.parameters())
    x = torch.randn(5, 4)
    advance(optimizer, lambda: model(x).square().mean())
    before = snapshot(model, optimizer)
    optimizer._numbers["step"] += optimizer._update_every - 1  # a step that takes products
    before[1]["step"] = optimizer._numbers["step"]
    with pytest.raises(kind, match=f"{name}: {what} .*{words}"):
        optimizer.step(loss=model(x).square().mean(), **{what: given(optimizer, [bad])})
    assert unchanged(before, snapshot(model, optimizer))


@every_optimizer
def test_parameters_that_no_step_can_write_to(name: str) -> None:
    """R28, R31: sparse ones; and more elements than memory, in a view of one."""
    with pytest.raises(TypeError, match=rf"{name}: .*dense, got layout torch\.sparse_coo"):
        EVERY[name]([torch.eye(3).to_sparse().requires_grad_()])
    huge = torch.ones(1).expand(2**40, 2**10).requires_grad_()
    with pytest.raises(ValueError, match=f"{name}: .*must not share memory, got shape .*clone"):
        EVERY[name]([huge])
    with pytest.raises(TypeError, match="ndarray"):
        EVERY[name]([np.ones(3)])


@without_loss
def test_states_beyond_memory(name: str, tmp_path: Path) -> None:
    """R31: 4 TiB of parameters in a file without contents; their state fits nowhere."""
    n = 2**40
    huge = torch.from_numpy(np.memmap(tmp_path / "p", np.float32, "w+", shape=(n,)))
    params = [torch.ones(3, requires_grad=True), huge.requires_grad_()]
    optimizer = EVERY[name](params)
    for p in params:
        p.grad = p.detach()
    before = snapshot(torch.nn.ParameterList(params[:1]), optimizer)
    with pytest.raises(MemoryError, match=rf"{name}: a result of shape \({n},\) is too large"):
        optimizer.step(hz=given(optimizer, [p.grad for p in params]))
    assert torch.equal(params[0], torch.ones(3))
    assert before[1] == optimizer.state_dict()["hutchinson"]
    params[1].grad = None
    optimizer.step(hz=given(optimizer, [params[0].grad, None]))
    assert not torch.equal(params[0], torch.ones(3))


@every_optimizer
def test_losses_that_are_refused(name: str) -> None:
    """R24, R27, R30, R34: arrays, what has no value or no graph."""
    model = network()
    optimizer = EVERY[name](model.parameters())
    x = batches(1)[0]
    advance(optimizer, lambda: error(model, x))
    before = snapshot(model, optimizer)
    with pytest.raises(TypeError, match="loss must be a tensor, got ndarray"):
        advance(optimizer, lambda: np.ones(()))
    with pytest.raises(ValueError, match="loss must have a value, got a tensor on meta"):
        advance(optimizer, lambda: error(model, x).to("meta"))
    with pytest.raises(ValueError, match="loss must depend on a parameter"):
        advance(optimizer, lambda: error(model, x).detach())
    with torch.inference_mode(), pytest.raises(ValueError, match="loss must depend on a"):
        advance(optimizer, lambda: error(model, x))
    assert unchanged(before, snapshot(model, optimizer))


# What is unusual, and works ---------------------------------------------------------------


@without_loss
def test_arrays(name: str) -> None:
    """R24: tensors over memory of NumPy's in Fortran's order move as contiguous ones."""
    values = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    found = []
    for order in "CF":
        p, g, h = (torch.from_numpy(np.array(v, order=order)) for v in values[:, None])
        p.requires_grad_().grad = g
        optimizer = EVERY[name]([p])
        for _ in range(3):
            optimizer.step(hz=given(optimizer, [h]))
        found.append(p.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@every_optimizer
def test_negative_bit(name: str) -> None:
    """R29: a parameter that is minus what is stored, with such gradients and products."""
    found = []
    for negative in (True, False):
        p = torch.full((4, 3), 0.5)
        if negative:
            p = torch.full((4, 3), -0.5j).conj().imag
            assert p.is_neg()
        p.requires_grad_()
        optimizer = EVERY[name]([p])
        for _ in range(3):
            advance(optimizer, lambda p=p: (p**4).sum() + p.sum() ** 2)
        found.append(p.detach().clone())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert float(found[0].abs().max()) < 0.5


@with_products
def test_negative_bit_of_what_is_given(name: str) -> None:
    """R29"""
    found = []
    for negative in (True, False):
        p = torch.ones(5, requires_grad=True)
        h = torch.arange(5.0)
        if negative:
            h = torch.complex(h, -h).conj().imag
        assert h.is_neg() is negative
        optimizer = EVERY[name]([p])
        optimizer.step(
            loss=(p**2).sum(), hz=given(optimizer, [h]), probes=given(optimizer, [h])
        )
        p.grad = h
        if name != "SANIA":
            optimizer.step(hz=given(optimizer, [h]))
        found.append(p.detach())
    assert torch.equal(*found)


class Labelled(torch.Tensor):
    """A subclass that changes nothing."""


@every_optimizer
def test_subclass(name: str) -> None:
    """R28: moves as a plain tensor, bit by bit."""
    found = []
    for kind in (Tensor, Labelled):
        p = torch.linspace(0.5, 1, 12).view(4, 3).as_subclass(kind).requires_grad_()
        optimizer = EVERY[name]([p])
        for _ in range(3):
            advance(optimizer, lambda p=p: (p**4).mean() + p.mean() ** 2)
        found.append(p.detach().as_subclass(Tensor))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["AdaHessian", "SophiaH"])
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shapes_without_numbers(name: str, kind: str) -> None:
    """R27: steps of given products make states of the right shapes."""
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        p = torch.ones(4, 3, requires_grad=True)
        optimizer = EVERY[name]([p])
        for _ in range(2):
            p.grad = torch.ones(4, 3)
            optimizer.step(hz=given(optimizer, [torch.ones(4, 3)]))
        tensors = [t for t in optimizer.state[p].values() if torch.is_tensor(t)]
        assert len(tensors) == 2
        assert all(t.shape == (4, 3) and t.device == p.device for t in tensors)


def test_lengths_need_numbers() -> None:
    """R27"""
    p = torch.ones(3, device="meta", requires_grad=True)
    optimizer = EVERY["OASIS"]([p])
    p.grad = torch.ones(3, device="meta")
    with pytest.raises(ValueError, match="OASIS: step lengths need numbers"):
        optimizer.step(hz=given(optimizer, [p.grad]))
    assert not optimizer.state


@every_optimizer
def test_autocast(name: str) -> None:
    """R36: states are float32, and a loss of sums and powers alone gives the same bits."""
    found = []
    for enabled in (False, True):
        p = torch.linspace(0.5, 1, 12).view(4, 3).requires_grad_()
        optimizer = EVERY[name]([p])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for _ in range(3):
                advance(optimizer, lambda p=p: (p**4).mean() + p.mean() ** 2)
        assert all(t.dtype is torch.float32 for t in state_of(optimizer))
        found.append(p.detach())
    assert torch.equal(*found)


@every_optimizer
def test_what_a_graph_has_saved(name: str) -> None:
    """R34: after a step, backward of an older graph of the parameters is an error."""
    p = torch.ones(3, requires_grad=True)
    optimizer = EVERY[name]([p])
    older = (p * p).sum()
    advance(optimizer, lambda: (p**4).sum())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        older.backward()


def test_versions_in_an_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """R34: where each tensor's version is counted by a call of its own."""
    count = torch.autograd.graph.increment_version

    def one(tensor: Tensor) -> None:
        assert isinstance(tensor, Tensor)
        count(tensor)

    monkeypatch.setattr(torch.autograd.graph, "increment_version", one)
    monkeypatch.setattr(_hutchinson, "COUNTS_LISTS", False)
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    optimizer = EVERY["AdaHessian"](params)
    before = [p._version for p in params]
    optimizer.step(loss=sum((p**4).sum() for p in params))
    assert all(p._version > n for p, n in zip(params, before, strict=True))


@without_loss
@pytest.mark.parametrize("foreach", [False, True])
def test_inference_mode(name: str, foreach: bool) -> None:
    """R34: a state made there serves outside of it; no step leaves a graph."""
    found = []
    for mode in (torch.inference_mode, torch.no_grad, contextlib.nullcontext):
        p = torch.ones(3, requires_grad=True)
        optimizer = EVERY[name]([p], foreach=foreach)
        for where in (mode, contextlib.nullcontext):
            with where():
                p.grad = torch.arange(3.0)
                optimizer.step(hz=given(optimizer, [torch.ones(3)]))
        assert p.requires_grad
        assert p.is_leaf
        assert not any(t.requires_grad for t in state_of(optimizer))
        found.append(p.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@every_optimizer
def test_reference_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, probes, diagonals and native products go by without a compiled operation."""
    found = []
    for backend in ("native", "reference"):
        with monkeypatch.context() as patch:
            patch.setattr(_runtime, "_BACKEND", backend)
            if backend == "reference":
                patch.setattr(_hutchinson, "_native", lambda: pytest.fail("compiled"))
                patch.setattr(kernels, "module", lambda: pytest.fail("compiled"))
            model = network(torch.float64)
            model.insert(1, torch.nn.LayerNorm(4, dtype=torch.float64))
            optimizer = EVERY[name](model.parameters())
            for x in batches(3, torch.float64):
                advance(optimizer, lambda m=model, x=x: error(m, x))
            params = list(model.parameters())
            v = [torch.ones_like(p) for p in params]
            generator = torch.Generator().manual_seed(1)
            loss = functools.partial(error, model, x)
            curved = [
                *curvature.hvp(loss, params, v, mode="native"),
                *curvature.hessian_diagonal(loss, params, 2, generator=generator),
                *curvature.fisher_diagonal(lambda x, m=model: error(m, x), params, [x]),
            ]
            found.append([*values(model), *state_of(optimizer), *curved])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
