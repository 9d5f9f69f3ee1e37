"""AdaHessian: refusals, states, and the company of schedulers, scalers and hooks."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from adahessian_steps import (
    batches,
    error,
    network,
    quiet,
    same,
    train,
    values,
)
from curvkern.optim import AdaHessian
from hutchinson_truth import Model

# Refusals -----------------------------------------------------------------------------------


def snapshot(model: torch.nn.Module, optimizer: AdaHessian) -> list[Any]:
    state = optimizer.state_dict()
    tensors = [t for s in state["state"].values() for t in s.values() if isinstance(t, Tensor)]
    return [*values(model), *(t.clone() for t in tensors)], state["hutchinson"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient", "product"])
def test_what_is_not_finite_changes_nothing(what: str, bad: float) -> None:
    model = network()
    optimizer = AdaHessian(model.parameters())
    train(model, optimizer, batches(2))
    before = snapshot(model, optimizer)

    class Spoiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * bad

    loss = error(model, batches(1)[0])
    if what == "loss":
        loss, words = loss * bad, "loss must be finite, got"
    elif what == "gradient":
        loss, words = Spoiled.apply(loss), "gradients must be finite, got 39 elements"
    else:
        w = model[0].weight
        loss, words = loss + (w - w.detach()).abs().pow(1.5).sum(), "Hessian products must be"
    with pytest.raises(ValueError, match=words):
        optimizer.step(loss=loss)
    after = snapshot(model, optimizer)
    assert same(before[0], after[0])
    assert before[1] == after[1]
    train(model, optimizer, batches(1))


@quiet
def test_steps_that_are_refused() -> None:
    model = network()
    optimizer = AdaHessian(model.parameters(), n_probes=2)
    error(model, batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match=r"no graph; call loss\.backward\(create_graph=True"):
        optimizer.step()
    with pytest.raises(ValueError, match="loss must be a scalar, got shape"):
        optimizer.step(loss=model(batches(1)[0]))
    with pytest.raises(TypeError, match="loss must be a tensor, got float"):
        optimizer.step(loss=0.5)
    with pytest.raises(ValueError, match="depend on a parameter"):
        optimizer.step(loss=torch.ones(()))
    with pytest.raises(ValueError, match="exclude each other"):
        optimizer.step(lambda: None, loss=torch.ones(()))
    loss = error(model, batches(1)[0])
    loss.backward()
    with pytest.raises(RuntimeError, match="a closure returns the loss and leaves"):
        optimizer.step(loss=loss)
    z = [torch.ones_like(p) for p in model.parameters()]
    for bad, words in (
        ([z], "a list of 2 lists, one for each probe, got 1"),
        ([z, z[1:]], "4 tensors for each probe, got 3"),
        ([z, [z[1], *z[1:]]], "has shape"),
    ):
        for what in ("hz", "probes"):
            with pytest.raises(ValueError, match=f"{what} m?.*{words}"):
                optimizer.step(loss=error(model, batches(1)[0]), **{what: bad})
    model[0].weight.grad = model[0].weight.detach().to_sparse()
    with pytest.raises(TypeError, match="gradients must be dense, got layout"):
        optimizer.step(hz=[z, z])
    assert optimizer.state_dict()["hutchinson"]["step"] == 0


def test_attention_without_second_derivative_is_explained() -> None:
    q = torch.randn(1, 2, 8, 4, requires_grad=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    optimizer = AdaHessian([q], hvp="reverse")
    with pytest.raises(RuntimeError, match=r"SDPBackend\.MATH"):
        optimizer.step(loss=attention(q, q, q).square().sum())
    AdaHessian([q]).step(loss=attention(q, q, q).square().sum())  # native products have one
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        optimizer.step(loss=attention(q, q, q).square().sum())


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"lr": -1.0}, ValueError, "lr must be finite and not negative, got -1"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, got str"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas must be in \[0, 1\), got 1"),
        ({"betas": 0.9}, TypeError, "betas must be two numbers"),
        ({"eps": math.nan}, ValueError, "eps must be"),
        ({"hessian_power": 3.0}, ValueError, r"hessian_power must be in \[0, 2\], got 3"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"n_probes": 0}, ValueError, "n_probes must be at least 1, got 0"),
        ({"update_every": 1.5}, TypeError, "update_every must be an int, got float"),
        ({"lazy": "stale"}, ValueError, "one of ema_on_refresh, ema_stale, got 'stale'"),
        ({"bias": "none"}, ValueError, "bias must be one of refresh, step"),
        ({"average": "mean"}, ValueError, "average must be one of abs, signed"),
        ({"update": "sign"}, ValueError, "update must be one of standard, atan2"),
        ({"spatial": "image"}, ValueError, "one of none, conv, row or four block lengths"),
        ({"spatial": (1, 2)}, TypeError, "four block lengths"),
        ({"spatial": (1, 2, 0, 1)}, ValueError, "positive or -1, got 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 1 << 63}, ValueError, "below 2"),
        ({"fused": True, "foreach": True}, ValueError, "exclude each other"),
        ({"fused": 1}, TypeError, "fused must be a bool"),
        ({"maximize": 1}, TypeError, "maximize must be a bool"),
        ({"params": [torch.ones(2, dtype=torch.complex64)]}, TypeError, "complex64"),
        ({"params": []}, ValueError, "empty"),
        ({"hesitant": True}, TypeError, "hesitant"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    options = {"params": [torch.ones(2, requires_grad=True)], **options}
    with pytest.raises(kind, match=words):
        AdaHessian(options.pop("params"), **options)


# Company ------------------------------------------------------------------------------------


def test_schedules_and_hooks() -> None:
    model, twin = network(), network()
    one, two = AdaHessian(model.parameters(), lr=0.1), AdaHessian(twin.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(one, 1, 0.5)
    calls: list[int] = []
    one.register_step_post_hook(lambda *_: calls.append(1))
    for t, x in enumerate(batches(4)):
        returned = one.step(lambda x=x: error(model, x))
        two.param_groups[0]["lr"] = torch.tensor(0.1 * 0.5**t, dtype=torch.float64)
        torch.testing.assert_close(returned, two.step(loss=error(twin, x)))
        schedule.step()
        assert same(values(model), values(twin))
    assert len(calls) == 4


def test_maximize() -> None:
    model, twin = network(torch.float64), network(torch.float64)
    one, two = AdaHessian(model.parameters(), maximize=True), AdaHessian(twin.parameters())
    for x in batches(3, torch.float64):
        one.step(loss=-error(model, x))
        two.step(loss=error(twin, x))
    torch.testing.assert_close(values(model), values(twin), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"average": "signed"}, {"update_every": 3}, {"update_every": 2, "lazy": "ema_stale"}],
    ids=str,
)
def test_resume_bit_by_bit(options: dict[str, Any], dtype: torch.dtype) -> None:
    """R38, R39: another bug of others, whose random numbers were in no state."""
    data = batches(9, dtype)
    model = network(dtype)
    optimizer = AdaHessian(model.parameters(), seed=5, spatial="row", **options)
    train(model, optimizer, data[:4])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    copied, copied_optimizer = copy.deepcopy((model, optimizer))
    wanted = train(model, optimizer, data[4:])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = network(dtype)
    other = AdaHessian(fresh.parameters(), spatial="row", **options)
    train(fresh, other, data[:2] + 1)
    fresh.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    state = saved["optimizer"]["state"][0]["exp_avg"].clone()
    assert same(train(fresh, other, data[4:]), wanted)
    assert torch.equal(saved["optimizer"]["state"][0]["exp_avg"], state)  # not shared
    assert same(train(copied, copied_optimizer, data[4:]), wanted)


def test_new_group_and_late_parameter() -> None:
    model = network()
    optimizer = AdaHessian(model[0].parameters(), update_every=2)
    train(model, optimizer, batches(1))
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.01})
    weight = model[2].weight.detach().clone()
    train(model, optimizer, batches(1))  # it waits for products
    assert torch.equal(model[2].weight, weight)
    train(model, optimizer, batches(1))
    assert not torch.equal(model[2].weight, weight)
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "lr": -1.0})
    assert len(optimizer.param_groups) == 2


def test_accumulated_model_of_the_truth() -> None:
    """The stored gradient is that of the model, so that the other tests test what they say."""
    for name in ("tanh", "conv3", "attention"):
        model = Model(name)
        grads = torch.autograd.grad(model.loss(), model.params)
        torch.testing.assert_close(model.flat(grads), model.field.tensor("grad"))
