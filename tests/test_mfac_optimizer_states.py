"""curvkern.optim.MFAC: states and settings that are refused, states resumed, memory."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from curvkern.optim import MFAC
from test_mfac_optimizer import backward, batches, bits, network, same, train, values

State = dict[str, Any]


def put(value: Any, *path: Any) -> Callable[[State], None]:
    """Writes a value into a state."""

    def change(state: State) -> None:
        part: Any = state
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value

    return change


def drop(*path: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        part: Any = state
        for key in path[:-1]:
            part = part[key]
        del part[path[-1]]

    return change


def twice(name: str) -> Callable[[State], None]:
    return lambda state: state.update({name: state[name] + copy.deepcopy(state[name])})


FISHER = ("windows", 0, "fisher")
NAN = float("nan")
WINDOW = torch.ones(3, 39)  # as many numbers as the network has, for three steps
HOSTILE: dict[str, tuple[Callable[[State], None], str]] = {
    **{f"no {name}": (drop(name), name) for name in ("windows", "state", "param_groups")},
    "windows text": (put("", "windows"), "windows"),
    "windows None": (put(None, "windows"), "windows"),
    "a window twice": (twice("windows"), "share a parameter"),
    "a window of nothing": (put(7, "windows", 0), "params, steps and fisher"),
    "no fisher": (drop("windows", 0, "fisher"), "fisher"),
    "fisher None": (put(None, *FISHER), "dict"),
    "no rows": (drop(*FISHER, "window"), "lacks window"),
    "parameter 9": (put([0, 9], "windows", 0, "params"), "parameter 9"),
    "parameter -1": (put([0, -1], "windows", 0, "params"), "parameter -1"),
    "parameter in words": (put(["0"], "windows", 0, "params"), "'0'"),
    "parameter twice": (put([0, 0], "windows", 0, "params"), "share a parameter"),
    "too few columns": (put([0, 1], "windows", 0, "params"), "d is 39"),
    "no parameters": (put([], "windows", 0, "params"), "list its params"),
    "steps": (put(-5, "windows", 0, "steps"), "steps"),
    "steps True": (put(True, "windows", 0, "steps"), "steps"),
    "head": (put(10**9, *FISHER, "head"), "head"),
    "count": (put(-1, *FISHER, "count"), "count"),
    "capacity": (put(10**12, *FISHER, "capacity"), "capacity"),
    "shape of rows": (put(WINDOW[:, 1:], *FISHER, "window"), "window"),
    "rows NaN": (put(WINDOW * NAN, *FISHER, "window"), "window must be finite"),
    "rows float64": (put(WINDOW.double(), *FISHER, "window"), "float64"),
    "gram inf": (put(torch.full((3, 3), torch.inf).double(), *FISHER, "gram"), "gram"),
    "gram below 0": (put(-torch.eye(3).double(), *FISHER, "gram"), "gram"),
    "gram lopsided": (put(torch.ones(3, 3).double().tril(), *FISHER, "gram"), "symmetric"),
    "factor of zeros": (put(torch.zeros(3, 3).double(), *FISHER, "factor"), "factor"),
    "damping of rows": (put(0.0, *FISHER, "damping"), "damping"),
    "damping": (put(-1.0, "param_groups", 0, "damping"), "damping"),
    "lr NaN": (put(NAN, "param_groups", 0, "lr"), "lr"),
    "window": (put(4, "param_groups", 0, "window"), "capacity"),
    "lacks": (drop("param_groups", 0, "warmup"), "lacks warmup"),
    "groups twice": (twice("param_groups"), "share a parameter"),
    "no group": (put([], "param_groups"), "param"),
    "a group of nothing": (put(None, "param_groups", 0), "params"),
    "too few in a group": (put([0, 1], "param_groups", 0, "params"), "param"),
    "equals in a group": (put([0, 0, 2, 3], "param_groups", 0, "params"), "share a parameter"),
    "a stranger": (put({"momentum_buffer": torch.ones(2)}, "state", 99), "99"),
    "shape of momentum": (put(torch.ones(7), "state", 0, "momentum_buffer"), "shape"),
    "momentum NaN": (put(torch.full((4, 5), NAN), "state", 0, "momentum_buffer"), "finite"),
    "momentum a number": (put(1.0, "state", 0, "momentum_buffer"), "momentum_buffer"),
    "more than momentum": (put(torch.ones(2), "state", 0, "exp_avg"), "momentum_buffer"),
}


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_states(name: str, in_backward: bool) -> None:
    """R40: refused in words; the optimizer goes on bit by bit as if nothing had been."""
    change, words = HOSTILE[name]
    data = batches(6)
    model = network()
    optimizer = MFAC(model.parameters(), window=3, in_backward=in_backward)
    train(model, optimizer, data[:3])
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    before = bits(optimizer)
    hostile = copy.deepcopy(optimizer.state_dict())
    change(hostile)
    with pytest.raises((ValueError, TypeError), match=words):
        optimizer.load_state_dict(hostile)
    assert same(bits(optimizer), before)
    got = train(model, optimizer, data[3:])
    wanted = train(twin, twin_optimizer, data[3:])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_a_state_that_is_none() -> None:
    with pytest.raises(TypeError, match="must be a dict, got NoneType"):
        MFAC(network().parameters()).load_state_dict(None)  # type: ignore[arg-type]


def reloaded(optimizer: MFAC) -> State:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state: State = torch.load(file, weights_only=True)
    return state


def test_a_damping_changed_before_the_state_was_saved() -> None:
    """The windows of the state know the old one; the next step takes the new one."""
    data = batches(8)
    model = network()
    optimizer = MFAC(model.parameters(), window=3, damping=0.1)
    train(model, optimizer, data[:4])
    optimizer.param_groups[0]["damping"] = 0.02
    twin = copy.deepcopy(model)
    other = MFAC(twin.parameters(), window=3, damping=0.1)
    other.load_state_dict(reloaded(optimizer))
    wanted = train(model, optimizer, data[4:])
    got = train(twin, other, data[4:])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert other.state_dict()["windows"][0]["fisher"]["damping"] == 0.02


def test_a_group_added_after_loading() -> None:
    """It has a window of its own, as after the first step; a state of both comes back."""
    data = batches(9)

    def start() -> tuple[torch.nn.Module, MFAC]:
        model = network()
        return model, MFAC(model[0].parameters(), window=3)

    def extend(model: torch.nn.Module, optimizer: MFAC) -> None:
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.01, "warmup": 2})

    model, optimizer = start()
    train(model, optimizer, data[:4])
    twin, other = start()
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(reloaded(optimizer))
    for m, o in ((model, optimizer), (twin, other)):
        extend(m, o)
    got, wanted = train(twin, other, data[4:6]), train(model, optimizer, data[4:6])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    windows = other.state_dict()["windows"]
    assert [w["params"] for w in windows] == [[0, 1], [2, 3]]
    assert [w["steps"] for w in windows] == [6, 2]

    third, last = start()
    with pytest.raises(ValueError, match="param"):  # of one group, not yet of two
        last.load_state_dict(reloaded(optimizer))
    third.load_state_dict(model.state_dict())
    extend(third, last)
    last.load_state_dict(reloaded(optimizer))
    got, wanted = train(third, last, data[6:]), train(model, optimizer, data[6:])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("damping", -1.0, ValueError),
        ("lr", NAN, ValueError),
        ("momentum", 1.5, ValueError),
        ("weight_decay", "0.1", TypeError),
        ("window", 8, ValueError),
        ("window_dtype", torch.float64, ValueError),
    ],
)
def test_settings_changed_to_what_cannot_be(name: str, value: Any, kind: type) -> None:
    """Refused before any group has moved."""
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    optimizer = MFAC(groups, window=3, grouping="per_group")
    train(model, optimizer, batches(2))
    before, weights = bits(optimizer), values(model)
    backward(model, batches(3)[2])
    right = optimizer.param_groups[1][name]
    optimizer.param_groups[1][name] = value
    with pytest.raises(kind, match=name):
        optimizer.step()
    optimizer.param_groups[1][name] = right
    assert same(bits(optimizer), before)
    assert all(torch.equal(a, b) for a, b in zip(values(model), weights, strict=True))


def test_refused_parameters() -> None:
    p = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="twice"), pytest.warns(UserWarning, match="duplicate"):
        MFAC([p, p])
    meta = torch.ones(2, device="meta", requires_grad=True)
    with pytest.raises(ValueError, match="parameters are on cpu and meta"):
        MFAC([p, meta]).step()
    for window in (10**7, 2**62):
        with pytest.raises(MemoryError, match="too large"):
            MFAC([p], window=window).step()
    MFAC([p]).step()


# Memory ---------------------------------------------------------------------------------------


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def tensors() -> int:
    return sum(isinstance(o, Tensor) for o in gc.get_objects())


def hooks(model: torch.nn.Module) -> int:
    return sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.usefixtures("no_collection")
def test_memory_is_flat(in_backward: bool) -> None:
    """R37: over steps, refused steps, refused and accepted states; without the collector."""
    data = batches(60)
    model = network()
    optimizer = MFAC(model.parameters(), window=3, in_backward=in_backward)
    train(model, optimizer, data[:5])
    state = optimizer.state_dict()
    hostile = copy.deepcopy(state)
    hostile["windows"][0]["fisher"]["head"] = 10**9
    optimizer.load_state_dict(state)
    train(model, optimizer, data[:1])
    before = tensors(), hooks(model)
    assert before[1] == (4 if in_backward else 0)
    train(model, optimizer, data)
    assert (tensors(), hooks(model)) == before
    for _ in range(300):
        with pytest.raises(ValueError, match="head"):
            optimizer.load_state_dict(hostile)
    for _ in range(20):
        optimizer.load_state_dict(state)
    train(model, optimizer, data[:1])
    assert (tensors(), hooks(model)) == before
    model[0].bias.grad[0] = NAN
    for _ in range(300):
        with pytest.raises(ValueError, match="finite"):
            optimizer.step()
    train(model, optimizer, data[:1])
    assert (tensors(), hooks(model)) == before
    known = weakref.ref(optimizer._windows[0])
    del optimizer
    assert known() is None
    assert hooks(model) == 0


def test_a_deep_copy_meets_its_own_gradients() -> None:
    model = network()
    optimizer = MFAC(model.parameters(), window=3, in_backward=True)
    train(model, optimizer, batches(2))
    twin, other = copy.deepcopy((model, optimizer))
    assert hooks(twin) == hooks(model) == 4
    backward(twin, batches(3)[2])
    assert all(p is not None for p in other._windows[0]._products)
    assert all(p is None for p in optimizer._windows[0]._products)
