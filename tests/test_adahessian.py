"""curvkern.optim.AdaHessian: trajectories against dense algebra, and the ways to step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from adahessian_steps import (
    WAYS,
    advance,
    batches,
    error,
    make,
    network,
    off,
    quiet,
    values,
)
from curvkern.optim import AdaHessian
from curvkern.reference import philox
from hutchinson_truth import Trajectory, trajectories


@quiet
@trajectories(None)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("foreach", [False, True], ids=["fused", "foreach"])
def test_trajectories(name: str, way: str, foreach: bool) -> None:
    for dtype in (torch.float64, torch.float32):
        at = Trajectory(name)
        if way != "loss" and not name.startswith("conv2/"):
            continue
        c, model = at.meta, at.model(dtype)
        optimizer = make(c, model.params, foreach=foreach)
        loose = c["id"] in ("A", "B", "C", "D", "E", "T") or c["id"].startswith("H")
        bar = 1e-10 if dtype is torch.float64 else 2e-3 if loose else 1e-4
        for t in range(c["steps"]):
            probes = [model.split(z) for z in at.field["Z"][t]]
            advance(way, optimizer, model.params, model.loss, probes)
            expected = at.field.tensor(f"P{t + 1}")
            assert off(model.flat(), expected) <= bar, (t, dtype)
        for key, field in (("exp_avg", "m_end"), ("exp_hessian_diag_sq", "v_end")):
            state = model.flat([optimizer.state[p][key] for p in model.params])
            assert off(state, at.field.tensor(field)) <= 10 * bar


@quiet
@pytest.mark.parametrize("options", [{}, {"n_probes": 3}, {"average": "signed"}], ids=str)
def test_own_probes(options: dict[str, Any]) -> None:
    """Every way draws the signs of (seed, step, probe), as the kernel does that stores none."""
    found = []
    for way in WAYS:
        model = network(torch.float64)
        params = list(model.parameters())
        optimizer = AdaHessian(params, seed=11, spatial="row", **options)
        for t, x in enumerate(batches(4, torch.float64)):
            probes = optimizer.draw_probes()
            size = sum(p.numel() for p in params)
            for i, probe in enumerate(probes):
                flat = torch.cat([z.reshape(-1) for z in probe])
                assert torch.equal(flat, philox.signs(size, 0, 11, t, i).double())
            given = probes if way == "hz" else None
            if way == "hz":  # products given, signs drawn again in the kernel
                grads = torch.autograd.grad(error(model, x), params, create_graph=True)
                hz = [torch.autograd.grad(grads, params, z, retain_graph=True) for z in given]
                for p, g in zip(params, grads, strict=True):
                    p.grad = g.detach()
                optimizer.step(hz=hz)
            else:
                advance(way, optimizer, params, lambda m=model, x=x: error(m, x), given)
        found.append(values(model))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-12, atol=1e-14)


def test_probes_are_not_always_minus_one() -> None:
    """A bug that others shipped: with off-diagonal curvature both signs have to show."""
    p = torch.zeros(200, dtype=torch.float64, requires_grad=True)
    optimizer = AdaHessian([p], lr=0.0, betas=(0.0, 0.0))
    seen = []
    for _ in range(20):
        optimizer.step(loss=0.5 * p.sum() ** 2 + p.sum())
        seen.append(optimizer.state[p]["exp_hessian_diag_sq"].sqrt()[0].item())
    sums = [abs(float(philox.signs(200, 0, 0, t, 0).sum())) for t in range(20)]
    assert seen == pytest.approx(sums)
    assert len(set(seen)) > 3
    assert max(seen) < 60


@quiet
def test_groups_see_their_own_gradients() -> None:
    """Another: two groups are what two optimizers of the same offsets and settings are."""
    model, twin = network(torch.float64), network(torch.float64)
    settings = [{"lr": 0.1, "betas": (0.5, 0.9)}, {"lr": 0.02, "hessian_power": 0.5}]
    layers = model[0], model[2]
    groups = [
        {"params": list(m.parameters()), **s} for m, s in zip(layers, settings, strict=True)
    ]
    optimizer = AdaHessian(groups)
    params = list(twin.parameters())
    state = [[torch.zeros_like(p), torch.zeros_like(p)] for p in params]
    for t, x in enumerate(batches(4, torch.float64)):
        probes = optimizer.draw_probes()[0]
        optimizer.step(loss=error(model, x))
        grads = torch.autograd.grad(error(twin, x), params, create_graph=True)
        hz = torch.autograd.grad(grads, params, probes)
        with torch.no_grad():
            for i, p in enumerate(params):
                s = {"betas": (0.9, 0.999), "hessian_power": 1.0, **settings[i // 2]}
                (b1, b2), (m, v) = s["betas"], state[i]
                m.mul_(b1).add_((1 - b1) * grads[i])
                v.mul_(b2).add_((1 - b2) * hz[i] ** 2)
                root = (v.sqrt() / math.sqrt(1 - b2 ** (t + 1))) ** s["hessian_power"]
                p -= s["lr"] * m / (1 - b1 ** (t + 1)) / (root + 1e-4)
        torch.testing.assert_close(values(model), values(twin), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_any_dimension(dims: int) -> None:
    """A crash in others."""
    kind = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[dims - 1]
    layer = kind(2, 3, 2)
    for spatial in ("conv", "row", (1, 2, 3, 4), (-1, -1, -1, -1), (7, 5, 3, 11)):
        optimizer = AdaHessian(layer.parameters(), spatial=spatial)
        x = torch.randn(2, 2, *[5] * dims)
        for _ in range(2):
            optimizer.step(loss=layer(x).tanh().square().mean())
        assert all(p.isfinite().all() for p in layer.parameters())


@quiet
def test_parameters_of_every_kind() -> None:
    """Linear, unused, frozen, 0-dim, empty: D is zero, or the parameter stays as it is."""
    shapes = [(3,), (2, 3), (), (0,), (2, 2, 2, 2, 2), (4,)]
    for way in ("loss", "backward"):
        linear, curved, scalar, empty, five, unused = params = [
            torch.ones(s, requires_grad=True) for s in shapes
        ]
        frozen = torch.ones(2)
        optimizer = AdaHessian([*params, frozen], weight_decay=0.1, spatial="conv")
        for _ in range(3):
            loss = linear.sum() + (curved**4).sum() + scalar**2 + empty.sum() + five.exp().sum()
            if way == "loss":
                optimizer.step(loss=loss)
            else:
                optimizer.zero_grad()
                loss.backward(create_graph=True)
                optimizer.step()
        assert not optimizer.state[linear]["exp_hessian_diag_sq"].any()
        assert float(linear[0].detach()) < -1  # lr / eps times as far
        assert all(p.isfinite().all() for p in params)
        assert torch.equal(unused, torch.ones(4))
        assert torch.equal(frozen, torch.ones(2))
        assert unused not in optimizer.state


def test_layouts() -> None:
    """channels_last, expanded gradients and halves go where the compiled step does not."""
    p = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    q = p.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    for t in (p, q):
        optimizer = AdaHessian([t], spatial="conv", average="signed")
        for _ in range(3):
            optimizer.step(loss=(t**3).sum() + t.sum() ** 2)
    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    half = torch.ones(5, dtype=torch.float16, requires_grad=True)
    AdaHessian([half], n_probes=2).step(loss=(half**2).sum())
    assert float(half[0].detach()) == pytest.approx(0.85, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_state_dtype(dtype: torch.dtype) -> None:
    p = torch.ones(300, dtype=dtype, requires_grad=True)
    optimizer = AdaHessian([p], lr=0.01)
    for _ in range(5):
        optimizer.step(loss=(p**2).sum())
    wide = torch.float32 if dtype is torch.bfloat16 else torch.float64
    assert optimizer.state[p]["exp_avg"].dtype is wide
    assert p.dtype is dtype
    assert 0.9 < float(p[0].detach()) < 0.97
