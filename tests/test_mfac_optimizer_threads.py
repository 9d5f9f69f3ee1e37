"""curvkern.optim.MFAC: threads, forks, signals, the end of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern.optim import MFAC
from test_mfac_optimizer import batches, bits, network, same, train, values


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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has none
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
