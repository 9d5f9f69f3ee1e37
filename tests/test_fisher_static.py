"""StaticFisher against truths in 100 digits, its plain twin, and dense solves."""

from __future__ import annotations

import copy
import math
import pickle
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import _runtime
from curvkern.fisher import StaticFisher, influence, obs_prune
from curvkern.reference import mfac
from mfac_truth import Problem, check_static, error, problems
from test_memory import Guarded

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
STORAGES = [torch.float64, torch.float32, torch.bfloat16]
WIDE = torch.float64


def dense(G: Tensor, damping: float, n: int | None = None, block: int | None = None) -> Tensor:
    G = G.double()
    F = damping * torch.eye(G.shape[1], dtype=WIDE) + G.T @ G / (n or len(G))
    index = torch.arange(len(F)) // (block or len(F))
    return torch.where(index[:, None] == index, F, 0)


def sample(m: int = 6, d: int = 40, damping: float = 1e-3, **options: Any) -> StaticFisher:
    return StaticFisher.from_gradients(torch.randn(m, d, dtype=WIDE), damping, **options)


@dtypes
@pytest.mark.parametrize("whiten", [False, True], ids=["lazy", "whitened"])
@problems("static")
def test_queries(problem: Problem, dtype: torch.dtype, whiten: bool) -> None:
    options: dict[str, Any] = {"n": problem["n"]}
    if problem["block"]:
        options["block_size"] = problem["block"]
    else:
        options["whiten"] = whiten
    G = problem.tensor("G", dtype)
    fisher = StaticFisher.from_gradients(G, problem["damping"], **options)
    check_static(fisher, problem, dtype)
    check_static(copy.deepcopy(fisher), problem, dtype)


# Sizes around those of registers, panels of rows and tiles of columns.
SHAPES = [
    (1, 1),
    (1, 7),
    (5, 3),
    (7, 129),
    (16, 128),
    (17, 257),
    (33, 1000),
    (49, 50),
    (130, 60),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_sizes_against_the_twin(shape: tuple[int, int], storage: torch.dtype) -> None:
    G = torch.randn(shape).to(storage)
    twin = mfac.StaticFisher(G, 0.1)
    K = G.double() @ G.double().T
    for whiten in (False, True):
        fisher = StaticFisher.from_gradients(G, 0.1, whiten=whiten)
        found = fisher.gram()
        assert_close(found, K, rtol=1e-13, atol=1e-13)
        assert torch.equal(found, found.T)
        assert error(fisher.diag_inverse(), twin.diag_inverse()) <= 1e-12
        v = torch.randn(3, shape[1], dtype=WIDE)
        assert error(fisher.ihvp(v), twin.ihvp(v)) <= 1e-12
        assert error(fisher.ihvp(v[0], damping=2.0), twin.ihvp(v[0], damping=2.0)) <= 1e-12
        last = shape[1] - 1
        assert math.isclose(fisher.element(last, last), twin.element(last, last), rel_tol=1e-11)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("m", [3, 40, 300])
def test_many_columns(m: int, storage: torch.dtype) -> None:
    """More than what is worked on at a time, in several threads' chunks."""
    G = torch.randn(m, 70_001).to(storage)
    fisher = StaticFisher.from_gradients(G, 0.3)
    K = G.double() @ G.double().T
    assert error(fisher.gram(), K) <= 1e-13
    at = torch.tensor([0, 1, 127, 128, 16_383, 16_384, 65_536, 69_999, 70_000])
    lower = torch.linalg.cholesky(K + m * 0.3 * torch.eye(m, dtype=WIDE))
    W = torch.linalg.solve_triangular(lower, G[:, at].double(), upper=False)
    wanted = (1 - W.square().sum(0)) / 0.3
    assert error(fisher.diag_inverse()[at], wanted) <= 1e-12
    assert error(fisher.elements(at, at), wanted) <= 1e-12


@pytest.mark.parametrize("block_size", [1, 3, 10, 39, 40, 100])
@pytest.mark.parametrize("m", [6, 60])
def test_blocks(block_size: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from curvkern.fisher import _static_blocks

    monkeypatch.setattr(_static_blocks, "ELEMENTS", 1000)  # several groups
    fisher = sample(m, block_size=block_size)
    assert fisher.block_size == block_size
    F = dense(fisher._window, 1e-3, block=block_size)
    inverse = torch.linalg.inv(F)
    every = torch.arange(40)
    v = torch.randn(2, 40, dtype=WIDE)
    for _ in range(2):  # with what was kept, too
        assert error(fisher.diag_inverse(), inverse.diagonal()) <= 1e-10
        assert error(fisher.ihvp(v), v @ inverse) <= 1e-10
        assert error(fisher.elements(every[:, None], every), inverse) <= 1e-10
        assert math.isclose(fisher.element(3, 2), float(inverse[3, 2]), rel_tol=1e-9)
        some = torch.tensor([39, 0, 1, 20])
        assert error(fisher.inverse_block(some), inverse[some][:, some]) <= 1e-10
    assert error(fisher.quad_form(v), ((v @ inverse) * v).sum(1)) <= 1e-10
    assert math.isclose(fisher.logdet(), float(torch.logdet(F)), rel_tol=1e-11)
    x, info = fisher.ihvp(v, return_info=True)
    assert (info["residual"] < 1e-11).all()
    again = torch.linalg.inv(dense(fisher._window, 0.5, block=block_size))
    assert error(fisher.ihvp(v, damping=0.5), v @ again) <= 1e-10
    assert error(fisher.ihvp(v), x) == 0
    fisher.set_damping(0.5)
    assert error(fisher.ihvp(v), v @ again) <= 1e-10
    assert error(fisher.diag_inverse(), again.diagonal()) <= 1e-10
    gram = fisher.gram()
    count = -(-40 // min(block_size, 40))
    assert gram.shape == (count, m, m)
    assert error(gram.sum(0), fisher._window @ fisher._window.T) <= 1e-13


def test_zero_rows_duplicates_and_more_rows_than_columns() -> None:
    g = torch.randn(3, 5, dtype=WIDE)
    G = torch.cat([g, g, torch.zeros(2, 5, dtype=WIDE), g * (1 + 1e-15)])
    inverse = torch.linalg.inv(dense(G, 1e-6))
    v = torch.randn(5, dtype=WIDE)
    for options in ({}, {"whiten": True}, {"block_size": 5}):
        fisher = StaticFisher.from_gradients(G, 1e-6, **options)
        assert error(fisher.ihvp(v), inverse @ v) <= 1e-8
        assert error(fisher.diag_inverse(), inverse.diagonal()) <= 1e-8
        assert torch.equal(fisher.ihvp(torch.zeros(5)), torch.zeros(5))


def test_near_duplicates_in_float32_at_a_tiny_damping() -> None:
    """K is singular to float32; sums in float32 would leave no digit of the diagonal."""
    G = torch.randn(1, 300) + 1e-3 * torch.randn(40, 300)
    fisher = StaticFisher.from_gradients(G, 1e-8)
    inverse = torch.linalg.inv(dense(G, 1e-8))
    assert error(fisher.diag_inverse(), inverse.diagonal()) <= 1e-6
    assert error(fisher.ihvp(G[3].double()), inverse @ G[3].double()) <= 1e-4


@pytest.mark.parametrize("options", [{}, {"block_size": 3}, {"whiten": True}], ids=str)
def test_no_gradients(options: dict[str, Any]) -> None:
    fisher = sample(0, 7, 0.5, **options)
    v = torch.randn(7, dtype=WIDE)
    assert len(fisher) == 0
    assert_close(fisher.ihvp(v), v / 0.5)
    assert_close(fisher.diag_inverse(), torch.full((7,), 2.0, dtype=WIDE))
    assert_close(fisher.quad_form(v), v @ v / 0.5)
    assert math.isclose(fisher.logdet(), 7 * math.log(0.5))
    assert fisher.element(2, 2) == 2
    assert fisher.element(2, 3) == 0
    assert fisher.ihvp(torch.zeros(0, 7)).shape == (0, 7)


@pytest.mark.parametrize("whiten", [False, True])
def test_damping_and_divisor(whiten: bool) -> None:
    fisher = sample(n=11, whiten=whiten)
    v = torch.randn(40, dtype=WIDE)
    for damping in (1e-3, 0.7, 0.02):
        fisher.set_damping(damping)
        assert fisher.damping == damping
        inverse = torch.linalg.inv(dense(fisher._window, damping, 11))
        assert error(fisher.ihvp(v), inverse @ v) <= 1e-10
        assert error(fisher.diag_inverse(), inverse.diagonal()) <= 1e-10
        assert math.isclose(fisher.element(1, 4), float(inverse[1, 4]), rel_tol=1e-8)
        assert math.isclose(fisher.element(4, 1), float(inverse[1, 4]), rel_tol=1e-8)


def test_remembered_columns_are_bounded() -> None:
    fisher = sample(8, 2000)
    inverse = torch.linalg.inv(dense(fisher._window, 1e-3))
    for k in range(0, 2000, 3):
        assert math.isclose(fisher.element(k, 5), float(inverse[k, 5]), rel_tol=1e-7, abs_tol=1)
        assert len(fisher._columns) * 8 * 8 <= 0.05 * fisher._window.numel() * 8


def test_gradients_changed_in_place_are_noticed() -> None:
    G = torch.randn(3, 20)
    for options in ({}, {"block_size": 5}):
        fisher = StaticFisher.from_gradients(G, 0.1, **options)
        fisher.ihvp(G[0])
        G[1, 2] = 7.0
        for call in (
            lambda f=fisher: f.ihvp(G[0]),
            lambda f=fisher: f.diag_inverse(),
            lambda f=fisher: f.logdet(),
        ):
            with pytest.raises(RuntimeError, match="changed in place"):
                call()
    with torch.inference_mode():
        fisher = StaticFisher.from_gradients(torch.randn(3, 20), 0.1)
        assert torch.isfinite(fisher.ihvp(torch.ones(20))).all()


def test_gradients_are_kept_and_not_copied() -> None:
    G = torch.randn(3, 20, requires_grad=True)
    fisher = StaticFisher.from_gradients(G, 0.1)
    assert fisher._window.data_ptr() == G.data_ptr()
    assert not fisher.diag_inverse().requires_grad


FORMS = {
    "transposed": lambda G: G.T.contiguous().T,
    "sliced": lambda G: torch.nn.functional.pad(G, (1, 1), value=math.nan)[:, 1:-1],
    "negative bit": lambda G: torch.complex(torch.zeros_like(G), -G).conj().imag,
    "array": lambda G: G.numpy(),
    "backwards": lambda G: G.numpy()[::-1, ::-1].copy()[::-1, ::-1],
    "fortran": lambda G: np.asfortranarray(G.numpy()),
    "big endian": lambda G: G.numpy().astype(">f8"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_gradients(form: Any, recwarn: pytest.WarningsRecorder) -> None:
    G = torch.randn(4, 9, dtype=WIDE)
    expected = StaticFisher.from_gradients(G, 0.1)
    fisher = StaticFisher.from_gradients(form(G), 0.1)
    assert torch.equal(fisher.gram(), expected.gram())
    assert torch.equal(fisher.diag_inverse(), expected.diag_inverse())
    array = G.numpy()
    array.flags.writeable = False
    assert torch.equal(StaticFisher.from_gradients(array, 0.1).gram(), expected.gram())
    assert not recwarn.list
    expanded = G[:1].expand(5, 9)
    assert_close(
        StaticFisher.from_gradients(expanded, 0.1).diag_inverse(),
        torch.linalg.inv(dense(expanded, 0.1)).diagonal(),
    )
    half = StaticFisher.from_gradients(G.half(), 0.1)
    assert torch.equal(half.gram(), StaticFisher.from_gradients(G.half().float(), 0.1).gram())


ONES = torch.ones(2, 3)
from_ = StaticFisher.from_gradients
REFUSED = [
    (TypeError, "G must be a tensor or a NumPy array, got list", lambda: from_([[1.0]], 1.0)),
    (TypeError, "NoneType", lambda: from_(None, 1.0)),
    (TypeError, "int64", lambda: from_(ONES.long(), 1.0)),
    (TypeError, "bool", lambda: from_(ONES.bool(), 1.0)),
    (TypeError, "complex64", lambda: from_(ONES.cfloat(), 1.0)),
    (TypeError, "layout", lambda: from_(ONES.to_sparse(), 1.0)),
    (ValueError, r"shape \(3,\), expected \(m, d\)", lambda: from_(ONES[0], 1.0)),
    (ValueError, r"shape \(2, 0\)", lambda: from_(ONES[:, :0], 1.0)),
    (ValueError, "damping must be positive", lambda: from_(ONES, 0.0)),
    (ValueError, "damping must be positive", lambda: from_(ONES, math.nan)),
    (TypeError, "damping must be a real", lambda: from_(ONES, "1")),  # type: ignore[arg-type]
    (ValueError, "n must be at least 1, got 0", lambda: from_(ONES, 1.0, n=0)),
    (ValueError, "block_size must be at least 1", lambda: from_(ONES, 1.0, block_size=0)),
    (TypeError, "block_size must be an integer", lambda: from_(ONES, 1.0, block_size=1.5)),  # type: ignore[arg-type]
    (ValueError, "block_size and whiten", lambda: from_(ONES, 1.0, block_size=2, whiten=True)),
    (ValueError, "finite", lambda: from_(ONES * math.nan, 1.0)),
    (ValueError, "finite", lambda: from_(ONES * math.inf, 1.0, block_size=2)),
    (ValueError, "finite, with squares", lambda: from_(ONES.double() * 1e200, 1.0)),
    (ValueError, r"\(2,\), expected \(3,\)", lambda: from_(ONES, 1.0).ihvp(torch.ones(2))),
    (IndexError, r"\[0, 3\), got 3", lambda: from_(ONES, 1.0).element(0, 3)),
    (IndexError, r"\[0, 3\), got 3", lambda: from_(ONES, 1.0, block_size=2).element(3, 0)),
    (TypeError, "gradients and the damping", lambda: pickle.dumps(from_(ONES, 1.0))),
]


@pytest.mark.parametrize(("kind", "text", "call"), REFUSED, ids=[t for _, t, _ in REFUSED])
def test_refusals(kind: type[Exception], text: str, call: Any) -> None:
    with pytest.raises(kind, match=text):
        call()


@pytest.mark.parametrize("options", [{}, {"block_size": 3}, {"whiten": True}], ids=str)
def test_derivatives_of_every_kind(options: dict[str, Any]) -> None:
    fisher = sample(4, 7, 0.3, **options)
    v = torch.randn(2, 7, dtype=WIDE, requires_grad=True)
    assert torch.autograd.gradcheck(fisher.ihvp, v, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fisher.ihvp, v)
    inverse = fisher.ihvp(torch.eye(7, dtype=WIDE))
    assert_close(inverse.diagonal(), fisher.diag_inverse())
    x = torch.randn(7, dtype=WIDE)
    assert_close(torch.func.jacrev(fisher.ihvp)(x), inverse)
    assert_close(torch.func.jacfwd(fisher.ihvp)(x), inverse)
    batch = torch.randn(3, 5, 7, dtype=WIDE)
    assert_close(torch.vmap(fisher.ihvp)(batch), batch @ inverse)
    compiled = torch.compile(fisher.ihvp, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), inverse @ x)
    assert_close(fisher.as_linear_operator() @ x.numpy(), (inverse @ x).numpy())


@pytest.mark.parametrize("m", [5, 40, 300])
def test_thread_counts_and_repetition(m: int, thread_counts: Any) -> None:
    G, v = torch.randn(m, 30_000), torch.randn(30_000)
    results = []
    for threads in (1, 2, 2, 1):
        thread_counts(threads)
        fisher = StaticFisher.from_gradients(G, 0.1)
        blocks = StaticFisher.from_gradients(G, 0.1, block_size=20)
        results.append(
            (fisher.gram(), fisher.diag_inverse(), fisher.ihvp(v), blocks.diag_inverse())
        )
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_four_threads_on_one_object() -> None:
    fisher = sample(8, 300)
    wanted = fisher.diag_inverse()
    errors: list[Exception] = []

    def work() -> None:
        try:
            for k in range(30):
                assert torch.equal(fisher.diag_inverse(), wanted)
                assert math.isclose(fisher.element(k, k), float(wanted[k]), rel_tol=1e-9)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_what_is_built_on_it() -> None:
    """Pruning and influence find the same as with the twin."""
    G, w = torch.randn(9, 24, dtype=WIDE), torch.randn(24, dtype=WIDE)
    fisher, twin = (make.from_gradients(G, 0.01) for make in (StaticFisher, mfac.StaticFisher))
    for mode in ("simultaneous", "joint", "greedy"):
        found = obs_prune(w, fisher, n=7, mode=mode)
        wanted = obs_prune(w, twin, n=7, mode=mode)
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other)
    tests = torch.randn(3, 24, dtype=WIDE)
    assert_close(influence(tests, G, fisher), influence(tests, G, twin))


# Kernels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", _runtime.cpu_module().build_info()["isas"])
def test_every_instruction_set(isa: str, run_python: Any) -> None:
    """Panels and blocks of registers differ in size: all against torch in float64."""
    run_python(
        """
        import os
        import torch
        from curvkern.fisher import StaticFisher
        from curvkern._runtime import isa

        assert isa() == os.environ["CURVKERN_ISA"]
        torch.manual_seed(0)
        same = torch.testing.assert_close
        for m, d in ((1, 5), (7, 300), (19, 133), (50, 40), (101, 700)):
            for dtype in (torch.float64, torch.float32, torch.bfloat16):
                G = torch.randn(m, d).to(dtype)
                wide = G.double()
                F = 0.1 * torch.eye(d, dtype=torch.float64) + wide.T @ wide / m
                fisher = StaticFisher.from_gradients(G, 0.1)
                same(fisher.gram(), wide @ wide.T, rtol=1e-12, atol=1e-12)
                same(fisher.diag_inverse(), torch.linalg.inv(F).diagonal())
                for size in (1, 5, 17, 50, 130):
                    index = torch.arange(d) // size
                    blocks = torch.where(index[:, None] == index, F, 0)
                    found = StaticFisher.from_gradients(G, 0.1, block_size=size)
                    same(found.diag_inverse(), torch.linalg.inv(blocks).diagonal())
        """,
        environment={"CURVKERN_ISA": isa},
    )


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("end", ["front", "back"])
def test_no_access_beyond_the_ends(storage: torch.dtype, end: str) -> None:
    """R54: gradients and results lie against a page that is inaccessible."""
    memory, target = Guarded(), Guarded()
    native = _runtime.cpu_module()
    for m, d in ((1, 1), (3, 17), (9, 33), (17, 40), (2, 140), (5, 129)):
        values = torch.randn(m, d).to(storage)
        G = memory.tensor(m * d, storage, end).view(m, d)
        G.copy_(values)
        slots, root = list(range(m)), torch.eye(m, dtype=WIDE)
        K = target.tensor(m * m, WIDE, end).view(m, m)
        native.mfac_gram(G, slots, K)
        assert_close(K, values.double() @ values.double().T, rtol=1e-13, atol=1e-13)
        out = target.tensor(d, WIDE, end)
        native.mfac_whitened_squares(G, slots, root, out)
        assert_close(out, values.double().square().sum(0), rtol=1e-13, atol=1e-13)
        for size in (1, 5, 16, d):
            native.mfac_block_diagonal(G, slots, size, 1.0, m, out)
            blocks = StaticFisher.from_gradients(values, 1.0, block_size=size)
            assert_close(out, blocks.elements(torch.arange(d), torch.arange(d)))


@pytest.mark.parametrize("m", [1, 2, 47, 48, 49, 96, 150])
def test_factor_and_its_inverse(m: int) -> None:
    """U'U = A and R = U'^-1, in a larger matrix, beside LAPACK's."""
    X = torch.randn(m, m + 5, dtype=WIDE)
    A = X @ X.T
    native, root = _runtime.cpu_module(), torch.empty(m, m, dtype=WIDE)
    held = torch.full((m + 3, m + 3), math.nan, dtype=WIDE)
    held[:m, :m] = A
    native.mfac_factorize(held, m, 1e-300, root)
    U = held[:m, :m]
    assert held[m:].isnan().all()
    assert held[:, m:].isnan().all()
    assert torch.equal(U, U.triu())
    assert torch.equal(root, root.tril())
    assert error(U, torch.linalg.cholesky(A, upper=True)) <= 1e-12
    assert_close(root @ U.T, torch.eye(m, dtype=WIDE), rtol=0, atol=1e-10)
    singular = torch.ones(m, m, dtype=WIDE)
    native.mfac_factorize(singular, m, 1e-8, None)
    assert torch.isfinite(singular).all()
    assert float(singular.diagonal().min()) >= 1e-4 * (1 - 1e-12)


def test_an_interrupt_ends_a_long_call() -> None:
    """R43: a diagonal that would take many seconds."""
    G = torch.randn(1500, 40_000)
    fisher = StaticFisher.from_gradients(G[:1], 1.0)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    ident = threading.main_thread().ident
    timer = threading.Timer(0.3, signal.pthread_kill, (ident, signal.SIGINT))
    try:
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            [StaticFisher.from_gradients(G, 1.0) for _ in range(50)]
        assert time.monotonic() - started < 2.5
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, previous)
    assert torch.isfinite(fisher.diag_inverse()).all()


@pytest.mark.parametrize("options", [{"whiten": True}, {}, {"block_size": 7}], ids=str)
def test_an_interrupted_change_of_damping(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R43: nothing that was found for the damping before is taken for the new one."""
    fisher = sample(**options)
    fisher.element(3, 4), fisher.ihvp(torch.ones(40)), fisher.diag_inverse()

    def interrupted(*_: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    name = "_whiten" if "whiten" in options else "_parts" if options else "_factored"
    monkeypatch.setattr(fisher, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        [fisher.set_damping(0.5), fisher.ihvp(torch.ones(40))]
    fresh = StaticFisher.from_gradients(fisher._window, 0.5, **options)
    assert_close(fisher.diag_inverse(), fresh.diag_inverse())
    assert_close(fisher.element(3, 4), fresh.element(3, 4))
    assert_close(fisher.ihvp(torch.ones(40)), fresh.ihvp(torch.ones(40)))


@pytest.mark.parametrize("block_size", [None, 2])
def test_arrays_and_squares_that_are_refused(block_size: int | None) -> None:
    G = np.ones((3, 5))
    assert from_(G.astype(">f8"), 0.1, block_size=block_size).d == 5
    for bad in (np.ma.masked_less(G, 2), G.astype(np.longdouble), G.astype(object)):
        with pytest.raises(TypeError, match="StaticFisher: G"):
            from_(bad, 0.1, block_size=block_size)
    with pytest.raises(ValueError, match="squares"):
        from_(1e160 * G, 0.1, block_size=block_size)


def test_places_in_blocks() -> None:
    fisher = sample(block_size=7)
    inverse = fisher.ihvp(torch.eye(40, dtype=WIDE))
    index = torch.tensor([3, 38, 3, 6, 7])
    assert_close(fisher.inverse_block(index), inverse[index][:, index])
    with pytest.raises(TypeError, match="integers"):
        fisher.elements(index, index.double())
