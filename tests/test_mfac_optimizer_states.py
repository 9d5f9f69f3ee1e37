"""curvkern.optim.MFAC: states that are refused or resumed, memory, threads, forks, signals."""

from __future__ import annotations

import copy
import gc
import io
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

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


# Threads and processes ------------------------------------------------------------------------


def in_threads(works: list[Callable[[], object]]) -> None:
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


@pytest.mark.parametrize("in_backward", [False, True])
def test_eight_threads_on_models_of_their_own(in_backward: bool) -> None:
    """R45: each has the bits that it has alone."""
    data = batches(12)

    def run(seed: int, found: dict[int, list[Tensor]]) -> None:
        model = network()
        optimizer = MFAC(model.parameters(), window=4, in_backward=in_backward)
        found[seed] = train(model, optimizer, data * (1 + seed))

    alone: dict[int, list[Tensor]] = {}
    together: dict[int, list[Tensor]] = {}
    for seed in range(8):
        run(seed, alone)
    # torch.manual_seed is everybody's, so the networks are made of weights that were drawn.
    weights = network().state_dict()

    def again(seed: int) -> None:
        model = torch.nn.Sequential(
            torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)
        ).double()
        model.load_state_dict(weights)
        optimizer = MFAC(model.parameters(), window=4, in_backward=in_backward)
        together[seed] = train(model, optimizer, data * (1 + seed))

    in_threads([lambda seed=seed: again(seed) for seed in range(8)])
    for seed in range(8):
        pairs = zip(together[seed], alone[seed], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("in_backward", [False, True])
def test_four_threads_on_one_optimizer(in_backward: bool) -> None:
    """R45: steps come one after another, states between them; no gradient is met halfway."""
    options = {"lr": 1e-3, "damping": 0.1, "window": 5, "momentum": 0.5}
    gradient = torch.randn(300, dtype=torch.float64)

    def make() -> tuple[Tensor, MFAC]:
        w = torch.zeros(300, dtype=torch.float64, requires_grad=True)
        return w, MFAC([w], in_backward=in_backward, **options)

    w, optimizer = make()
    v, serial = make()

    def descend() -> None:
        for _ in range(50):
            optimizer.step()
            state = optimizer.state_dict()
            assert 0 < state["windows"][0]["steps"] <= 201

    for p, o in ((w, optimizer), (v, serial)):
        (p * gradient).sum().backward()
        o.step()
        p.grad = gradient.clone()
    in_threads([descend] * 4)
    for _ in range(200):
        serial.step()
    assert torch.equal(w, v)
    assert same(bits(optimizer), bits(serial))

    def backwards() -> None:
        for _ in range(50):
            (w * gradient).sum().backward()
            optimizer.step()

    in_threads([backwards] * 4)
    assert optimizer.state_dict()["windows"][0]["steps"] == 401
    assert torch.isfinite(w).all()
    fisher = optimizer._windows[0].fisher
    G = fisher._window[fisher._order].double()
    assert_close(fisher.gram(), G @ G.T)


def test_a_raising_closure_holds_no_lock() -> None:
    """R49: it propagates, nothing has moved, and another thread can step."""
    model = network()
    optimizer = MFAC(model.parameters(), window=3)
    train(model, optimizer, batches(2))
    before = values(model), bits(optimizer)

    def closure() -> Tensor:
        raise KeyError("loss")

    with pytest.raises(KeyError, match="loss"):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(values(model), before[0], strict=True))
    assert same(bits(optimizer), before[1])
    in_threads([optimizer.step])


@pytest.mark.parametrize("in_backward", [False, True])
def test_numbers_of_threads(thread_counts: Callable[[int], None], in_backward: bool) -> None:
    """R47: the same bits, for a window that is worth more than one thread."""
    results = []
    for threads in (1, 2, 2):
        thread_counts(threads)
        generator = torch.Generator().manual_seed(4)
        params = [torch.zeros(k, requires_grad=True) for k in (40_000, 7, 25_000)]
        optimizer = MFAC(params, window=6, in_backward=in_backward)
        for _ in range(9):
            optimizer.zero_grad()
            for p in params:
                (p * torch.randn(len(p), generator=generator)).sum().backward()
            optimizer.step()
        results.append([p.detach() for p in params])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


SCRIPT = """
    import copy, os, signal, threading, time, warnings
    warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads
    import torch
    from curvkern.optim import MFAC
    torch.set_num_threads(4)
    w = torch.zeros({d}, requires_grad=True)
    optimizer = MFAC([w], window={m}, in_backward={in_backward})
    generator = torch.Generator().manual_seed(1)
    w.grad = torch.randn({d}, generator=generator)
    for _ in range({m} + 2):
        optimizer.step()
"""


@pytest.mark.parametrize("in_backward", [False, True])
def test_fork_after_parallel_use(run_python: Any, in_backward: bool) -> None:
    """R46: the child's step is the parent's."""
    run_python(
        SCRIPT.format(d=200_000, m=4, in_backward=in_backward)
        + """
    twin, other = copy.deepcopy((w, optimizer))
    twin.grad = w.grad
    other.step()
    child = os.fork()
    if child == 0:
        optimizer.step()
        os._exit(0 if torch.equal(w, twin) else 1)
    assert os.waitpid(child, 0)[1] == 0
    optimizer.step()
    assert torch.equal(w, twin)
    """
    )


def test_interrupted_steps(run_python: Any) -> None:
    """R43: KeyboardInterrupt within two seconds, and the optimizer goes on."""
    run_python(
        SCRIPT.format(d=1_000_000, m=8, in_backward=False)
        + """
    sent = []
    def interrupt():
        time.sleep(0.3)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        while True:
            optimizer.step()
    except KeyboardInterrupt:
        assert time.perf_counter() - sent[0] < 2
    for _ in range(3):
        optimizer.step()
    assert torch.isfinite(w).all()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    """
    )


def test_another_thread_runs_during_a_step(run_python: Any) -> None:
    """R44"""
    run_python(
        SCRIPT.format(d=1_000_000, m=24, in_backward=False)
        + """
    ticks, done = [], threading.Event()
    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)
    ticker = threading.Thread(target=tick)
    ticker.start()
    start = time.perf_counter()
    for _ in range(5):
        optimizer.step()
    end = time.perf_counter()
    done.set()
    ticker.join()
    assert sum(start < t < end for t in ticks) > 10
    """
    )


def test_exit_with_live_optimizers(run_python: Any) -> None:
    """R52: status 0 and silence, hooks included."""
    run_python(SCRIPT.format(d=50, m=2, in_backward=True) + "    (w * w).sum().backward()\n")
