"""Native Hessian products of odd graphs: equal to double backward, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvkern.curvature import hvp
from curvkern.curvature._hvp import Hessian
from curvkern.optim import AdaHessian
from tangent_models import filled

Case = Callable[[Tensor], Tensor]

#: Nodes without a rule, of inputs that are broadcast, or with odd backward passes.
UNKNOWN: dict[str, Case] = {
    "prelu": lambda y: F.prelu(y, y[0]),
    "hypot": lambda y: torch.hypot(y, y[:1].exp()),
    "atan2": lambda y: torch.atan2(y, y[:, :1].exp()),
    "xlogy": lambda y: torch.xlogy(y, y[:1].exp()),
    "lerp": lambda y: torch.lerp(y, y[:1].sin(), y[:, :1].sigmoid()),
    "logcumsumexp": lambda y: y.logcumsumexp(1),
    "clamp between tensors": lambda y: y.clamp(-(y[:1] ** 2), y[:, :1] ** 2),
    "clamp below a tensor": lambda y: y.clamp(max=y[:1] ** 2),
}


def agree(found: list[Tensor], truth: Any, bar: float) -> None:
    for a, b in zip(found, truth, strict=True):
        assert float((a - b).norm()) <= bar * max(float(b.norm()), 1e-6)


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_nodes(name: str) -> None:
    p = filled(4, 4).requires_grad_()
    loss = UNKNOWN[name](p * 0.9).pow(3).sum()
    v = filled(4, 4, seed=1)
    agree([hvp(loss, p, v, mode="native")], [hvp(loss, p, v, mode="reverse")], 1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(3, 6, 4), (5, 5, 4)])
@pytest.mark.parametrize(("layers", "bias"), [(2, True), (1, False)])
def test_fused_lstm(batch_first: bool, shape: Any, layers: int, bias: bool) -> None:
    """As many steps as examples show which is which no less than other numbers."""
    torch.manual_seed(0)
    module = nn.LSTM(4, 5, layers, bias=bias, batch_first=batch_first)
    x = filled(*shape, dtype=torch.float32)
    params = list(module.parameters())
    v = [filled(*p.shape, seed=i, dtype=torch.float32) for i, p in enumerate(params)]
    found = hvp(module(x)[0].pow(3).sum(), params, v, mode="native")
    module.double()
    params = list(module.parameters())
    grads = torch.autograd.grad(module(x.double())[0].pow(3).sum(), params, create_graph=True)
    truth = torch.autograd.grad(grads, params, [one.double() for one in v])
    agree(found, truth, 1e-5)


def test_parameters_given_twice() -> None:
    p = filled(3).requires_grad_()
    v = [filled(3, seed=1), filled(3, seed=2)]
    loss = p.pow(3).sum()
    agree(hvp(loss, [p, p], v), [6 * p.detach() * (v[0] + v[1])] * 2, 1e-12)
    with pytest.raises(ValueError, match="each parameter once"):
        hvp(loss, [p, p], v, mode="native")


Networks = tuple[nn.Sequential, Callable[[], Tensor]]


def hooked(kind: str, seen: list[float]) -> Networks:
    """Layers so large that "auto" is native."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256))
    x = filled(256, 256, dtype=torch.float32)

    def loss() -> Tensor:
        y = model[1](model[0](x))
        if kind == "scales":
            y.register_hook(lambda g: g * 2)
        elif kind == "scales in place":
            y.register_hook(lambda g: g.mul_(2))
        elif kind == "watches":
            y.register_hook(lambda g: seen.append(float(g.detach().norm())))
        elif kind == "node":
            y.grad_fn.register_prehook(lambda g: (g[0] * 2,))
        elif kind == "removed":
            y.register_hook(lambda g: g * 2).remove()
            y.grad_fn.register_hook(lambda *g: (g[0][0] * 2,)).remove()
        value: Tensor = model[2](y).pow(3).mean()
        return value

    if kind == "module":
        model[1].register_full_backward_hook(lambda m, g, _: (g[0] * 2,))
    elif kind == "parameter":
        model[0].weight.register_hook(lambda g: g * 2)
    return model, loss


HOOKS = ["scales", "scales in place", "node", "module", "parameter"]


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_that_change_gradients(kind: str) -> None:
    """ "auto" does what double backward does; "native" says that it does not."""
    model, loss = hooked(kind, [])
    params = list(model.parameters())
    v = [filled(*p.shape, dtype=p.dtype) for p in params]
    agree(hvp(loss, params, v), hvp(loss, params, v, mode="reverse"), 1e-6)
    with pytest.raises(RuntimeError, match=r"hvp: .*hook.*'reverse'"):
        hvp(loss, params, v, mode="native")
    moved = []
    for mode in ("auto", "reverse"):
        model, loss = hooked(kind, [])
        optimizer = AdaHessian(model.parameters(), hvp=mode)
        for _ in range(2):
            optimizer.step(loss)
        moved.append([p.detach() for p in model.parameters()])
    agree(*moved, bar=1e-6)  # type: ignore[misc]
    model, loss = hooked(kind, [])
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"AdaHessian: .*hook.*'reverse'"):
        AdaHessian(model.parameters(), hvp="native").step(loss)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("kind", ["watches", "removed"])
def test_hooks_that_change_nothing(kind: str) -> None:
    """They see what ``backward`` shows them, and products stay native."""
    seen: list[float] = []
    model, loss = hooked(kind, seen)
    params = list(model.parameters())
    loss().backward()
    expected = list(seen)
    seen.clear()
    v = [filled(*p.shape, dtype=p.dtype) for p in params]
    hessian = Hessian("hvp", loss, params)
    assert hessian.graph is not None
    found = hessian.product(v)
    assert seen == pytest.approx(expected, rel=1e-5)
    agree(found, hvp(loss, params, v, mode="reverse"), 1e-5)
