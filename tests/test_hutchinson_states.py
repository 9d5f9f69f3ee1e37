"""The optimizers of the Hutchinson family: states, memory, probes, scalers, checkpoints."""

from __future__ import annotations

import copy
import gc
import io
import math
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adahessian_steps import batches, error, network, quiet, same, values
from curvkern.optim import OASIS, SophiaG
from hutchinson_optimizers import (
    EVERY,
    advance,
    every_optimizer,
    snapshot,
    state_of,
    unchanged,
)


def train(model: torch.nn.Module, optimizer: Any, data: Tensor) -> list[Tensor]:
    for x in data:
        advance(optimizer, lambda x=x: error(model, x))
    return values(model)


# States -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EVERY, "OASIS fixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resume_bit_by_bit(name: str, dtype: torch.dtype) -> None:
    """R38, R39: from a file, loaded with weights_only, and from a copy."""
    make = EVERY.get(name, lambda p: OASIS(p, 0.05, adaptive=False))
    data = batches(7, dtype)
    model = network(dtype)
    optimizer = make(model.parameters())
    train(model, optimizer, data[:3])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    copied = copy.deepcopy((model, optimizer))
    wanted = train(model, optimizer, data[3:])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = network(dtype)
    other = make(fresh.parameters())
    fresh.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert same(train(fresh, other, data[3:]), wanted)
    assert same(train(*copied, data[3:]), wanted)
    assert all(p.isfinite().all() for p in wanted)


def _first(state: dict[str, Any]) -> dict[str, Any]:
    return state["state"][0]


def _tensor(state: dict[str, Any]) -> str:
    return next(key for key, value in _first(state).items() if torch.is_tensor(value))


def _setting(optimizer: Any) -> str:
    return optimizer._group_settings[0]


#: Change of a state, by name: change(state, optimizer).
HOSTILE: dict[str, Callable[[Any, Any], object]] = {
    "no numbers": lambda s, _: s.pop("hutchinson"),
    "number": lambda s, _: s["hutchinson"].update(other=1.0),
    "seed": lambda s, _: s["hutchinson"].update(seed=-5),
    "step": lambda s, _: s["hutchinson"].update(step=1.5),
    "step of 64 bits": lambda s, _: s["hutchinson"].update(step=1 << 63),
    "count": lambda s, _: _first(s).update(step=-5),
    "no refresh": lambda s, _: _first(s).update(refreshes=0),
    "more refreshes than steps": lambda s, _: _first(s).update(refreshes=1000),
    "count of 64 bits": lambda s, _: _first(s).update(step=10**400),
    "count that is none": lambda s, _: _first(s).update(step=1e9),
    "shape": lambda s, _: _first(s).update({_tensor(s): torch.ones(7)}),
    "no tensor": lambda s, _: _first(s).update({_tensor(s): 0.5}),
    "complex": lambda s, _: _first(s).update({_tensor(s): _first(s)[_tensor(s)] * 1j}),
    "sparse": lambda s, _: _first(s).update({_tensor(s): _first(s)[_tensor(s)].to_sparse()}),
    "NaN": lambda s, _: _first(s)[_tensor(s)].fill_(math.nan),
    "unknown": lambda s, _: _first(s).update(momentum=torch.ones(4, 5)),
    "missing tensor": lambda s, _: _first(s).pop(_tensor(s)),
    "missing count": lambda s, _: _first(s).pop("refreshes"),
    "no dict": lambda s, _: s["state"].update({0: [1, 2]}),
    "setting": lambda s, o: s["param_groups"][0].update({_setting(o): -0.5}),
    "kind of setting": lambda s, o: s["param_groups"][0].update({_setting(o): "much"}),
    "missing setting": lambda s, o: s["param_groups"][0].pop(_setting(o)),
    "groups": lambda s, _: s["param_groups"].append(copy.deepcopy(s["param_groups"][0])),
}


@pytest.mark.filterwarnings("ignore:Casting complex")
@every_optimizer
@pytest.mark.parametrize("change", HOSTILE)
def test_hostile_states(name: str, change: str) -> None:
    """R40: refused in words; the optimizer goes on as if nothing had been."""
    model, data = network(), batches(5)
    optimizer = EVERY[name](model.parameters())
    train(model, optimizer, data[:3])
    before = snapshot(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    HOSTILE[change](state, optimizer)
    with pytest.raises((ValueError, TypeError), match=rf"{name}: |param"):
        optimizer.load_state_dict(state)
    assert unchanged(before, snapshot(model, optimizer))
    twin = network()
    expected = train(twin, EVERY[name](twin.parameters()), data)
    assert same(train(model, optimizer, data[3:]), expected)


@pytest.mark.parametrize("numbers", [{"scale": -1.0}, {"scale": math.inf}, {"theta": math.nan}])
def test_hostile_lengths(numbers: dict[str, float]) -> None:
    """R40: what OASIS keeps beside."""
    model = network()
    optimizer = EVERY["OASIS"](model.parameters())
    train(model, optimizer, batches(2))
    before = snapshot(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    state["hutchinson"].update(numbers)
    with pytest.raises(
        ValueError, match=rf"OASIS: {next(iter(numbers))} of state_dict must be"
    ):
        optimizer.load_state_dict(state)
    assert unchanged(before, snapshot(model, optimizer))


@every_optimizer
def test_states_of_others(name: str) -> None:
    """R40: what is no dict, and the state of another optimizer."""
    model = network()
    optimizer = EVERY[name](model.parameters())
    with pytest.raises(TypeError, match=f"{name}: state_dict must be a dict, got list"):
        optimizer.load_state_dict([optimizer.state_dict()])
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(
        ValueError, match=f"{name}: state_dict must have 'hutchinson' with seed"
    ):
        optimizer.load_state_dict(adam.state_dict())


# Memory -------------------------------------------------------------------------------------


@quiet
@every_optimizer
def test_memory_is_flat(name: str, thread_counts: Callable[[int], None]) -> None:
    """R37: 60 steps, and 300 that are refused, without the garbage collector."""
    thread_counts(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(200, 200), torch.nn.Tanh(), torch.nn.Linear(200, 10)
    )
    size = sum(p.numel() for p in model.parameters())
    optimizer = EVERY[name](model.parameters())
    x = torch.randn(16, 200)

    def loss() -> Tensor:
        return model(x).square().mean() + 1

    def by_loss() -> None:
        advance(optimizer, loss)

    def by_backward() -> None:
        optimizer.zero_grad()
        value = loss()
        value.backward(create_graph=True)
        if isinstance(optimizer, SophiaG):
            optimizer.step(sampled_loss=loss)
        else:
            optimizer.step(loss=value if name == "SANIA" else None)

    def refused() -> None:
        for bad, words in ((math.nan, "loss must be finite"), (torch.ones(2), "a scalar")):
            with pytest.raises(ValueError, match=words):
                advance(optimizer, lambda bad=bad: loss() * bad)

    def run(work: Callable[[], None], times: int) -> tuple[int, int]:
        for _ in range(times):
            work()
        tensors = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
        return tensors, psutil.Process().memory_info().rss

    gc.collect()
    gc.disable()
    try:
        for work, times in ((by_loss, 60), (by_backward, 60), (refused, 150)):
            tensors, memory = run(work, 20)
            tensors_after, memory_after = run(work, times)
            assert tensors_after <= tensors
            # A graph that stays holds gradients, at least.
            assert memory_after - memory < times * 4 * size / 4
    finally:
        gc.enable()


# Probes -------------------------------------------------------------------------------------


@every_optimizer
def test_generators_of_torch_are_left_alone(name: str) -> None:
    """R48: probes are those of the seed, whatever torch has drawn; torch draws as before."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = network(torch.float64)  # which draws
        optimizer = EVERY[name](model.parameters())
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        train(model, optimizer, batches(4, torch.float64))
        if name != "SophiaG":
            optimizer.draw_probes()
        assert torch.equal(torch.get_rng_state(), before)
        found.append(values(model))
    assert same(*found)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "SophiaG"])
def test_seeds(name: str) -> None:
    """R48: one seed, one path; another, another."""
    found = []
    for seed in (3, 3, 4):
        model = network(torch.float64)
        optimizer = EVERY[name](model.parameters(), seed=seed)
        found.append(train(model, optimizer, batches(3, torch.float64)))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


# Company ------------------------------------------------------------------------------------


def scaled_step(
    scaler: torch.amp.GradScaler, optimizer: Any, loss: Callable[[], Tensor]
) -> Any:
    """A step by ``.grad`` of a loss that is multiplied by the scale, once it is called."""
    optimizer.zero_grad()
    value = scaler.scale(loss())
    value.backward(create_graph=True)
    more: dict[str, Any] = {"sampled_loss": loss} if isinstance(optimizer, SophiaG) else {}
    more |= {"loss": value} if type(optimizer).__name__ == "SANIA" else {}
    return lambda: scaler.step(optimizer, **more)


@quiet
@every_optimizer
def test_grad_scaler(name: str) -> None:
    """Gradients, products and losses are scaled alike; an overflow changes nothing."""
    model, twin = network(torch.float64), network(torch.float64)
    one, two = EVERY[name](model.parameters()), EVERY[name](twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for x in batches(4, torch.float64):
        scaled_step(scaler, one, lambda x=x: error(model, x))()
        scaler.update()
        advance(two, lambda x=x: error(twin, x))
        torch.testing.assert_close(values(model), values(twin), rtol=1e-9, atol=1e-11)
    before = snapshot(model, one)
    step = scaled_step(scaler, one, lambda: error(model, batches(1, torch.float64)[0]))
    next(model.parameters()).grad.data[0, 0] = math.inf
    step()
    scaler.update()
    assert scaler.get_scale() == 512
    assert unchanged(before, snapshot(model, one))


@quiet
@pytest.mark.parametrize("name", ["AdaHessian", "OASIS", "SophiaH"])
def test_scale_that_is_unknown(name: str) -> None:
    """Unscaled gradients with products of the scaled graph would be silently wrong."""
    model = network(torch.float64)
    optimizer = EVERY[name](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    step = scaled_step(scaler, optimizer, lambda: error(model, batches(1, torch.float64)[0]))
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="unscale_"):
        step()
    assert state_of(optimizer) == []


@every_optimizer
@pytest.mark.parametrize("hvp", ["auto", "reverse", "native"])
def test_activation_checkpoints(name: str, hvp: str) -> None:
    """Moves as without, bit by bit, where the products are computed in one way."""
    if name == "SophiaG":
        if hvp != "auto":
            return
        options = {}
    else:
        options = {"hvp": hvp}
    found = []
    for segments in (False, True):
        model = network(torch.float64)

        def forward(x: Tensor, m: Any = model, segments: bool = segments) -> Tensor:
            return checkpoint(m, x, use_reentrant=False) if segments else m(x)

        optimizer = EVERY[name](model.parameters(), **options)
        for x in batches(4, torch.float64):
            advance(optimizer, lambda x=x: error(forward, x))
        found.append(values(model))
    assert same(*found)
