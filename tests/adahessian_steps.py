"""Optimizers of the truth's models and of a small network, and steps of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern.optim import AdaHessian
from hutchinson_truth import spatial_of

WAYS = ("loss", "closure", "backward", "hz")
LAZY = {
    "stale": {"lazy": "ema_stale"},
    "fresh_step": {"bias": "step"},
    "fresh_count": {},
}


def make(c: dict[str, Any], params: list[Tensor], **options: Any) -> AdaHessian:
    return AdaHessian(
        params, c["lr"], (c["b1"], c["b2"]), c["eps"], c["wd"], c["k"],
        n_probes=c["npr"], update_every=c.get("every", 1), spatial=spatial_of(c),
        average="signed" if c.get("signed") else "abs", update=c.get("update", "standard"),
        **LAZY[c.get("stale", "fresh_count")], **options,
    )  # fmt: skip


def advance(
    way: str, optimizer: Any, params: list[Tensor], loss: Callable[[], Tensor], probes: Any
) -> None:
    """One step in one of the ways, which have to agree."""
    if way == "loss":
        optimizer.step(loss=loss(), probes=probes)
    elif way == "closure":
        optimizer.step(loss, probes=probes)
    elif way == "backward":
        optimizer.zero_grad()
        torch.autograd.backward(loss(), create_graph=True)
        optimizer.step(probes=probes)
    else:
        grads = torch.autograd.grad(loss(), params, create_graph=True)
        hz = [torch.autograd.grad(grads, params, z, retain_graph=True) for z in probes]
        for p, g in zip(params, grads, strict=True):
            p.grad = g.detach()
        optimizer.step(hz=hz, probes=probes)


quiet = pytest.mark.filterwarnings("ignore:Using backward")


def off(got: Tensor, expected: Tensor) -> float:
    """The largest error relative to the entry or to a tenth of the largest one."""
    scale = expected.abs().clamp_min(0.1 * float(expected.abs().max()))
    return float(((got.double() - expected).abs() / scale).max())


def network(dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)
    ).to(dtype)


def batches(steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(steps, 6, 5, generator=generator).to(dtype)


def error(model: torch.nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def values(model: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def train(model: torch.nn.Module, optimizer: AdaHessian, data: Tensor) -> list[Tensor]:
    for x in data:
        optimizer.step(loss=error(model, x))
    return values(model)
