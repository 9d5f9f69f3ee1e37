"""The optimizers of the Hutchinson family: threads, forks, signals, the end of the process."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adahessian_steps import batches, error, network, same, values
from hutchinson_optimizers import EVERY, advance, every_optimizer, state_of
from test_mfac_optimizer_threads import in_threads


@every_optimizer
def test_eight_threads_on_models_of_their_own(name: str) -> None:
    """R45: each has the bits that it has alone."""
    weights, data = network().state_dict(), batches(6)

    def run(seed: int, found: dict[int, list[Tensor]]) -> None:
        model = torch.nn.Sequential(
            torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)
        )
        model.load_state_dict(weights)
        optimizer = EVERY[name](model.parameters())
        for x in data * (1 + seed):
            advance(optimizer, lambda x=x: error(model, x))
        found[seed] = values(model)

    alone: dict[int, list[Tensor]] = {}
    together: dict[int, list[Tensor]] = {}
    for seed in range(8):
        run(seed, alone)
    in_threads([lambda seed=seed: run(seed, together) for seed in range(8)])
    for seed in range(8):
        assert same(together[seed], alone[seed])


@every_optimizer
def test_four_threads_on_one_optimizer(name: str) -> None:
    """R45: steps, with the losses they compute, come one after another, states between them."""
    found = []
    x = batches(1, torch.float64)[0]
    for threads in (4, 1):
        model = network(torch.float64)
        optimizer = EVERY[name](model.parameters())

        def descend(o: Any = optimizer, m: Any = model, times: int = 20 // threads) -> None:
            for _ in range(times):
                advance(o, lambda: error(m, x))
                assert 0 < o.state_dict()["hutchinson"]["step"] <= 20

        in_threads([descend] * threads)
        found.append([*values(model), *state_of(optimizer)])
    assert same(*found)


@every_optimizer
def test_copies_and_pickles(name: str) -> None:
    """A lock is not copied; copies go on bit by bit."""
    model = network()
    optimizer = EVERY[name](model.parameters())
    data = batches(7)
    for x in data[:3]:
        advance(optimizer, lambda x=x: error(model, x))
    twins = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    for x in data[3:]:
        for m, o in [(model, optimizer), *twins]:
            advance(o, lambda m=m, x=x: error(m, x))
    for m, o in twins:
        assert same(values(m), values(model))
        assert same(state_of(o), state_of(optimizer))


@every_optimizer
def test_a_raising_closure_holds_no_lock(name: str) -> None:
    """R49: it propagates, nothing has moved, and another thread can step."""
    model = network()
    optimizer = EVERY[name](model.parameters())
    x = batches(1)[0]
    advance(optimizer, lambda: error(model, x))
    before = [*values(model), *state_of(optimizer)]

    def closure() -> Tensor:
        raise KeyError("loss")

    with pytest.raises(KeyError, match="loss"):
        advance(optimizer, closure)
    assert same([*values(model), *state_of(optimizer)], before)
    in_threads([lambda: advance(optimizer, lambda: error(model, x))])


@every_optimizer
def test_numbers_of_threads(name: str, thread_counts: Callable[[int], None]) -> None:
    """R47: the same bits, for parameters that are worth more than one thread."""
    results = []
    for threads in (1, 2, 2):
        thread_counts(threads)
        generator = torch.Generator().manual_seed(4)
        shapes = ((40_000,), (7,), (250, 100))
        params = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
        optimizer = EVERY[name](params)
        for _ in range(3):
            advance(optimizer, lambda own=params: sum((p**4).mean() for p in own))
        results.append([p.detach().clone() for p in params])
    for other in results[1:]:
        assert same(results[0], other)


SCRIPT = """
    import copy, os, signal, threading, time, warnings
    warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads
    import torch
    from curvkern import optim
    torch.set_num_threads(2)
    w = torch.linspace(-1, 1, {d}).requires_grad_()
    optimizer = optim.{name}([w])
    def loss():
        return (w ** 4).mean() + 1
    def step():
        more = {{"sampled_loss": loss}} if "{name}" == "SophiaG" else {{}}
        optimizer.step(loss, **more)
    step()
"""


@pytest.mark.parametrize("name", ["AdaHessian", "OASIS", "SophiaH", "SophiaG"])
def test_fork_after_parallel_use(run_python: Any, name: str) -> None:
    """R46: the child's step is the parent's."""
    run_python(
        SCRIPT.format(d=200_000, name=name)
        + """
    slope = torch.full((200_000,), 0.5)  # torch's own loops hang in the child
    def again(p, o):
        p.grad = slope
        hz = [[p.grad]] * o._probe_count()
        o.step() if "G" in "{name}" else o.step(hz=hz)
    twin, other = copy.deepcopy((w, optimizer))
    again(twin, other)
    child = os.fork()
    if child == 0:
        again(w, optimizer)
        os._exit(0 if w.tolist() == twin.tolist() else 1)
    assert os.waitpid(child, 0)[1] == 0
    again(w, optimizer)
    assert torch.equal(w, twin)
    """.replace("{name}", name)
    )


ALL = """
    import os, signal, threading, time
    import torch
    from curvkern import optim
    torch.set_num_threads(2)
    d = 1_000_000
    def start(name):
        w = torch.linspace(-1, 1, d).requires_grad_()
        optimizer = getattr(optim, name)([w])
        def loss():
            return (w ** 4).mean() + 1
        def step():
            more = {"sampled_loss": loss} if name == "SophiaG" else {}
            optimizer.step(loss, **more)
        step()
        return w, optimizer, step
    names = "AdaHessian", "OASIS", "SANIA", "SophiaH", "SophiaG"
"""


def test_interrupted_steps(run_python: Any) -> None:
    """R43: KeyboardInterrupt within two seconds, and the optimizer goes on."""
    run_python(
        ALL
        + """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has none
    for name in names:
        w, optimizer, step = start(name)
        sent = []
        def interrupt():
            time.sleep(0.2)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt).start()
        try:
            while True:
                step()
        except KeyboardInterrupt:
            assert time.perf_counter() - sent[0] < 2
        for _ in range(2):
            step()
        assert torch.isfinite(w).all()
        optimizer.load_state_dict(optimizer.state_dict())
        step()
    """
    )


def test_another_thread_runs_during_steps(run_python: Any) -> None:
    """R44: the compiled steps alone, of given gradients and products."""
    run_python(
        ALL
        + """
    ticks, done = [], threading.Event()
    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)
    threading.Thread(target=tick, daemon=True).start()
    p, g, h, m, v = ([torch.ones(20 * d)] for _ in range(5))
    ops, one = torch.ops.curvkern, [1.0] * 11
    calls = {
        "step": lambda: ops.hutchinson_step(
            p, g, h, [], m, v, [], [1], [0], [0], one, 1.0, True, 0, 0),
        "sophia": lambda: ops.hutchinson_sophia(
            p, g, h, [], m, v, [0], [0], one[:6], 1.0, 1.0, True, 0, 0),
        "metric": lambda: ops.hutchinson_metric(
            p, g, h, [], m, [], [], [0], [0], one[:3], 1.0, True, 0, 0, 0),
        "descent": lambda: ops.hutchinson_descent(p, g, m, [], [], [0], one[:2], 1.0),
    }
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        end = time.perf_counter()
        within = sum(begin < t < end for t in ticks)
        assert within > 2, (name, within, end - begin)
    done.set()
    """
    )
