"""OASIS, SANIA and Sophia: trajectories against dense algebra, states, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from adahessian_steps import advance, batches, error, network, off, quiet, values
from curvkern.optim import OASIS, SANIA, SophiaG, SophiaH
from hutchinson_optimizers import EVERY
from hutchinson_optimizers import advance as descend
from hutchinson_truth import Trajectory, trajectories

BAR = 1e-10


def probes_at(at: Trajectory, model: Any, t: int) -> list[list[Tensor]]:
    return [model.split(z) for z in at.field["Z"][t]]


@quiet
@trajectories("oasis")
@pytest.mark.parametrize("way", ["loss", "backward", "hz"])
def test_oasis(name: str, way: str) -> None:
    at = Trajectory(name)
    c, model = at.meta, at.model()
    optimizer = OASIS(model.params, c["lr0"], beta2=c["beta2"], alpha=c["alpha"],
                      adaptive=c["adaptive"])  # fmt: skip
    warm = [model.split(z) for z in at.field["Z0"]]
    for t in range(c["steps"] + 1):
        z = warm if t == 0 else probes_at(at, model, t - 1)
        advance(way, optimizer, model.params, model.loss, z)
        assert off(model.flat(), at.field.tensor("W")[t]) < BAR
        eta = optimizer.state_dict()["hutchinson"]["scale"] * c["lr0"]
        assert eta == pytest.approx(float(at.field["eta"][t]), rel=1e-9)
        D = model.flat([optimizer.state[p]["hessian_diag"] for p in model.params])
        assert off(D, at.field.tensor("D")[t]) < BAR


@quiet
@trajectories("sophiah")
@pytest.mark.parametrize("way", ["loss", "backward", "hz"])
def test_sophia_h(name: str, way: str) -> None:
    at = Trajectory(name)
    c, model = at.meta, at.model()
    optimizer = SophiaH(
        model.params, c["lr"], (c["b1"], c["b2"]), gamma=c["gamma"], eps=c["eps"],
        weight_decay=c["wd"], update_every=c["every"],
    )  # fmt: skip
    for t in range(c["steps"]):
        advance(way, optimizer, model.params, model.loss, probes_at(at, model, t))
        assert off(model.flat(), at.field.tensor("W")[t]) < BAR
        for key, field in (("exp_avg", "m"), ("hessian_diag", "h")):
            got = model.flat([optimizer.state[p][key] for p in model.params])
            assert off(got, at.field.tensor(field)[t]) < BAR


@trajectories("sania_hutch")
def test_sania(name: str) -> None:
    at = Trajectory(name)
    c, model = at.meta, at.model()
    optimizer = SANIA(model.params, beta2=c["beta2"], alpha=c["alpha"], f_star=c["fstar"])
    warm = [model.split(z) for z in at.field["Z0"]]
    for t in range(c["steps"]):
        z = (warm if t == 0 else []) + probes_at(at, model, t)
        loss = optimizer.step(loss=model.loss(), probes=z)
        assert float(loss.detach()) == pytest.approx(at.field["loss_ups_lam"][t][0], rel=1e-9)
        assert off(model.flat(), at.field.tensor("W")[t]) < BAR


def test_sania_does_not_ascend_and_needs_the_loss() -> None:
    p = torch.ones(3, requires_grad=True)
    optimizer = SANIA([p], f_star=10.0)
    optimizer.step(loss=(p**2).sum())
    assert torch.equal(p, torch.ones(3))
    with pytest.raises(ValueError, match="SANIA: step needs the loss"):
        optimizer.step()


def test_sophia_g_by_hand() -> None:
    """Labels drawn from the model; the mean of their squared gradients is the Gauss-Newton."""
    x = torch.randn(6, 4, dtype=torch.float64)
    w = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    entropy = torch.nn.functional.cross_entropy
    lr, b1, b2, gamma, wd = 0.02, 0.9, 0.8, 0.3, 0.1
    optimizer = SophiaG([w], lr, (b1, b2), gamma=gamma, weight_decay=wd, update_every=2)
    expected, m, h = w.detach().clone(), 0.0, 0.0
    for t in range(4):
        labels = torch.distributions.Categorical(logits=x @ w.detach().T).sample()
        (g,) = torch.autograd.grad(entropy(x @ w.T, y), w)
        m = b1 * m + (1 - b1) * g
        if t % 2 == 0:
            (s,) = torch.autograd.grad(entropy(x @ w.T, labels), w)
            h = b2 * h + (1 - b2) * 6 * s * s
        expected = expected * (1 - lr * wd) - lr * (m / (gamma * h).clamp_min(1e-12)).clamp(
            -1, 1
        )
        optimizer.step(
            loss=entropy(x @ w.T, y),
            sampled_loss=lambda z=labels: entropy(x @ w.T, z),
            batch_size=6,
        )
        torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="this step needs sampled_loss"):
        optimizer.step(loss=entropy(x @ w.T, y))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        optimizer.step(loss=entropy(x @ w.T, y), batch_size=0)


@pytest.mark.parametrize("name", EVERY)
def test_compiled_equals_plain(name: str) -> None:
    """fused and foreach are the same numbers."""
    found = []
    for foreach in (False, True):
        model = network(torch.float64)
        optimizer = EVERY[name](model.parameters(), foreach=foreach)
        for x in batches(6, torch.float64):
            descend(optimizer, lambda m=model, x=x: error(m, x))
        found.append(values(model))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda p: OASIS(p, -1.0), ValueError, "OASIS: lr must be"),
        (lambda p: OASIS(p, 0.1, alpha=0.0), ValueError, "alpha must be positive and finite"),
        (lambda p: OASIS(p, 0.1, beta2=1.0), ValueError, r"beta2 must be in \[0, 1\)"),
        (lambda p: OASIS(p, 0.1, adaptive=1), TypeError, "adaptive must be a bool"),
        (
            lambda p: OASIS(p, 0.1, warmup_probes=0),
            ValueError,
            "warmup_probes must be at least",
        ),
        (lambda p: SANIA(p, f_star=math.nan), ValueError, "f_star must be finite"),
        (lambda p: SophiaH(p, gamma=-1.0), ValueError, "SophiaH: gamma must be positive"),
        (lambda p: SophiaH(p, betas=(1.0, 0.9)), ValueError, "betas must be in"),
        (lambda p: SophiaG(p, update_every=0), ValueError, "update_every must be at least 1"),
    ],
)
def test_refusals(make: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make([torch.ones(2, requires_grad=True)])
