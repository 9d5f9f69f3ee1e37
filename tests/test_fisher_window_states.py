"""States of SlidingWindowFisher, threads, and what cuts a change short."""

from __future__ import annotations

import copy
import io
import math
import signal
import threading
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from curvkern.fisher import SlidingWindowFisher, StaticFisher
from curvkern.fisher._partial import push_known
from fisher_windows import WIDE, dense, pushed
from mfac_truth import error

# State ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [WIDE, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [0, 3, 11])
def test_state_continues_bit_for_bit(storage: torch.dtype, count: int) -> None:
    fisher = pushed(count, dtype=storage)
    file = io.BytesIO()
    torch.save(fisher.state_dict(), file)
    file.seek(0)
    again = SlidingWindowFisher(40, 6, 123.0, dtype=storage)
    again.load_state_dict(torch.load(file, weights_only=True))
    both = (fisher, again, copy.deepcopy(fisher))
    for _ in range(8):
        g, v = torch.randn(40), torch.randn(40)
        results = [(one.push_ihvp(g), one.push_ihvp(v, g), one.ihvp(v)) for one in both]
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))


HOSTILE = {
    "head far": {"head": 10**9},
    "head negative": {"head": -5},
    "count": {"count": 7},
    "count of another kind": {"count": "3"},
    "window": {"window": torch.zeros(2, 40, dtype=WIDE)},
    "window dtype": {"window": torch.zeros(6, 40)},
    "window NaN": {"window": torch.full((6, 40), math.nan, dtype=WIDE)},
    "gram": {"gram": torch.zeros(3, 3, dtype=WIDE)},
    "gram not symmetric": {"gram": torch.ones(6, 6, dtype=WIDE).triu()},
    "gram of no rows": {"gram": -torch.eye(6, dtype=WIDE)},
    "factor": {"factor": torch.zeros(6, 6)},
    "factor without pivots": {"factor": torch.zeros(6, 6, dtype=WIDE)},
    "damping": {"damping": -1.0},
    "d": {"d": 41},
    "dtype": {"dtype": "torch.float32"},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_states_are_refused(change: dict[str, Any]) -> None:
    fisher = pushed(9)
    state = fisher.state_dict()
    v = torch.randn(40, dtype=WIDE)
    before = fisher.ihvp(v)
    with pytest.raises(ValueError, match=next(iter(change))):
        fisher.load_state_dict({**state, **change})
    for name in state:
        with pytest.raises(ValueError, match=f"lacks {name}"):
            fisher.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(TypeError, match="dict"):
        fisher.load_state_dict(None)  # type: ignore[arg-type]
    assert torch.equal(fisher.ihvp(v), before)


def test_a_ring_with_a_head() -> None:
    fisher = pushed(9)
    state = fisher.state_dict()
    turned = {
        **state,
        "head": 2,
        "window": state["window"].roll(2, 0),
        "gram": state["gram"].roll((2, 2), (0, 1)),
    }
    again = pushed(0)
    again.load_state_dict(turned)
    g = torch.randn(40, dtype=WIDE)
    assert torch.equal(fisher.push_ihvp(g), again.push_ihvp(g))


# Threads --------------------------------------------------------------------------------------


def test_thread_counts_and_repetition(thread_counts: Any) -> None:
    g, v = torch.randn(2, 30_000)
    results = []
    for threads in (1, 2, 2, 1):
        thread_counts(threads)
        torch.manual_seed(1)
        fisher = pushed(8, d=30_000, dtype=torch.float32)
        results.append((fisher.push_ihvp(g), fisher.push_ihvp(g, v), fisher.ihvp(v)))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_four_threads_on_one_window() -> None:
    fisher = SlidingWindowFisher(500, 16, 0.1)
    errors: list[Exception] = []

    def work(seed: int) -> None:
        rows = torch.randn(40, 500, generator=torch.Generator().manual_seed(seed))
        try:
            for row in rows:
                assert torch.isfinite(fisher.push_ihvp(row)).all()
                assert torch.isfinite(fisher.ihvp(row)).all()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    G = fisher._window[fisher._order].double()
    assert_close(fisher.gram(), G @ G.T)
    v = torch.randn(500, dtype=WIDE)
    assert error(fisher.ihvp(v), torch.linalg.solve(dense(G, 16, 0.1), v)) <= 1e-11


def cut_short(fisher: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a method of the window or its factor, as it begins."""
    owner = fisher if hasattr(fisher, name) else fisher._factor

    def interrupted(*_: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


CHANGES_OF_ROWS = {
    "push": lambda fisher, g: fisher.push(g),
    "push_ihvp": lambda fisher, g: fisher.push_ihvp(g, g),
    "replace": lambda fisher, g: fisher.replace(1, g),
    "push_known": lambda fisher, g: push_known(fisher, g, fisher._window[fisher._order] @ g),
}


# The methods that each goes through, after it is clear that it can be done.
WAYS = {
    "push": ("_store", "_record", "slide"),
    "push_ihvp": ("_store", "_record", "slide", "_combined"),
    "replace": ("_store", "_record"),
    "push_known": ("_record", "slide", "_combined"),
}


@pytest.mark.parametrize("count", [2, 4, 9])
@pytest.mark.parametrize(
    ("change", "where"), [(name, where) for name in WAYS for where in WAYS[name]]
)
def test_interrupted_changes_are_whole(
    change: str, where: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R43: rows, Gram matrix and factor stay of one piece, and later products are right."""
    fisher, g = pushed(count), torch.randn(40, dtype=WIDE)
    cut_short(fisher, where, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        CHANGES_OF_ROWS[change](fisher, g)
    for _ in range(2):
        G = fisher._window[fisher._order]
        assert_close(fisher.gram(), G @ G.T)
        v = torch.randn(40, dtype=WIDE)
        assert error(fisher.ihvp(v), torch.linalg.solve(dense(G, 6, 1e-3), v)) <= 1e-10
        fisher.push(v)


def test_interrupted_push_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    fisher, g = pushed(6, block_size=7), torch.randn(40, dtype=WIDE)
    before = fisher._window[fisher._order].clone()
    cut_short(fisher, "slide", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fisher.push(g)
    assert torch.equal(fisher._window[fisher._order], torch.cat([before[1:], g[None]]))


def test_interrupted_load_leaves_nothing_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    fisher, state = pushed(9), pushed(9).state_dict()
    cut_short(fisher, "forget", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fisher.load_state_dict(state)
    G = fisher._window[fisher._order]
    assert_close(fisher.gram(), G @ G.T)
    fisher.load_state_dict(state)
    assert torch.equal(fisher.state_dict()["window"], state["window"])


def test_a_signal_during_pushes() -> None:
    """The same by a real signal, which comes as the row has been written."""
    d, previous = 300_000, signal.signal(signal.SIGINT, signal.default_int_handler)
    rows, ident = torch.randn(5, d), threading.main_thread().ident
    fisher = SlidingWindowFisher(d, 16, 1e-3)

    def pushes(timer: threading.Timer) -> None:
        timer.start()
        for j in range(100_000):
            fisher.push((j + 1) * rows[j % 5])

    try:
        for k in range(6):
            timer = threading.Timer(
                0.01 + 0.007 * k, signal.pthread_kill, (ident, signal.SIGINT)
            )
            with pytest.raises(KeyboardInterrupt):
                pushes(timer)
            timer.join()
            G = fisher._window[fisher._order].double()
            assert_close(fisher.gram(), G @ G.T)
    finally:
        signal.signal(signal.SIGINT, previous)


def untrue() -> dict[str, Any]:
    torch.manual_seed(3)
    state = pushed(9).state_dict()
    gram, factor = state["gram"], state["factor"]
    skewed = gram.clone()
    skewed[0, 1] += 1
    return {
        "products": {"gram": gram + 0.1 * torch.eye(6, dtype=WIDE), "factor": None},
        "sides": {"gram": skewed, "factor": None},
        "sign": {"gram": -gram, "factor": None},
        "rows": {"window": state["window"].flip(0), "factor": None},
        "overflow": {"window": 1e300 * state["window"]},
        "damping": {"damping": 7.0},
        "head": {"head": 1},
        "factor": {"factor": torch.eye(6, dtype=WIDE)},
        "pivots": {"factor": -factor},
        "no data": {"window": state["window"].to("meta")},
        "layout": {"gram": gram.to_sparse()},
        "kind": {"d": torch.tensor([40, 40])},
    }


@pytest.mark.parametrize("name", untrue())
def test_states_that_cannot_be_true_are_refused(name: str) -> None:
    change = untrue()[name]
    torch.manual_seed(3)
    fisher = pushed(9)
    state, v = fisher.state_dict(), torch.randn(40, dtype=WIDE)
    before = fisher.ihvp(v)
    with pytest.raises(ValueError, match="load_state_dict"):
        fisher.load_state_dict({**state, **change})
    assert torch.equal(fisher.ihvp(v), before)
    fisher.load_state_dict({**state, "window": state["window"].clone().requires_grad_()})
    assert not fisher._window.requires_grad


@pytest.mark.parametrize(("d", "m", "scale"), [(4, 256, 1e3), (1, 64, 1e9), (50, 200, 1e6)])
def test_pivots_of_rounding_do_not_grow(d: int, m: int, scale: float) -> None:
    """Rows in few dimensions whose shift lies below the rounding of their products."""
    rows = scale * torch.randn(m + 20, d)
    fisher = SlidingWindowFisher(d, m, 1e-10)
    for row in rows:
        assert torch.isfinite(fisher.push_ihvp(row)).all()
    v = torch.ones(d, dtype=WIDE)
    assert torch.isfinite(fisher.ihvp(v)).all()
    fisher.remove(0)
    assert torch.isfinite(fisher.ihvp(v)).all()
    assert math.isfinite(fisher.logdet())
    assert torch.isfinite(StaticFisher.from_gradients(rows, 1e-10).diag_inverse()).all()


def test_blocks_below_rounding() -> None:
    """Finite, where a Cholesky factor has no more pivots."""
    rows = 1e3 * torch.randn(60) * (1 + 1e-7 * torch.randn(120, 60))
    fisher = SlidingWindowFisher(60, 120, 1e-10, block_size=60)
    for row in rows:
        fisher.push(row)
    static = StaticFisher.from_gradients(rows, 1e-10, block_size=60)
    for one in (fisher, static):
        assert torch.isfinite(one.ihvp(torch.ones(60, dtype=WIDE))).all()
        assert torch.isfinite(one.diag_inverse()).all()
        assert math.isfinite(one.logdet())
