"""SlidingWindowFisher against truths in 100 digits, its plain twin, and dense solves."""

from __future__ import annotations

import copy
import io
import math
import signal
import threading
from typing import Any

import flint
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern.fisher import SlidingWindowFisher, StaticFisher
from curvkern.fisher._partial import push_known
from curvkern.reference import mfac
from mfac_truth import Problem, check_ring, check_static, error, problems

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
WIDE = torch.float64


def filled(problem: Problem, dtype: torch.dtype) -> SlidingWindowFisher:
    """A window with the problem's gradients."""
    G = problem.tensor("G", dtype)
    fisher = SlidingWindowFisher(
        G.shape[1],
        problem["n"],
        problem["damping"],
        dtype=dtype,
        block_size=problem["block"] or None,
    )
    for g in G:
        fisher.push(g)
    return fisher


def pushed(count: int, d: int = 40, m: int = 6, damping: float = 1e-3, **options: Any) -> Any:
    fisher = SlidingWindowFisher(d, m, damping, **{"dtype": WIDE, **options})
    for _ in range(count):
        fisher.push(torch.randn(d, dtype=fisher._window.dtype))
    return fisher


def dense(G: Tensor, n: int, damping: float) -> Tensor:
    return damping * torch.eye(G.shape[1], dtype=WIDE) + G.double().T @ G.double() / n


@dtypes
@problems("static")
def test_queries(problem: Problem, dtype: torch.dtype) -> None:
    fisher = filled(problem, dtype)
    check_static(fisher, problem, dtype)
    check_static(copy.deepcopy(fisher), problem, dtype)


@dtypes
@problems("ring")
def test_ring(problem: Problem, dtype: torch.dtype) -> None:
    check_ring(SlidingWindowFisher, problem, dtype)


@problems("ring")
def test_bfloat16_preconditions_the_rounded_gradient(problem: Problem) -> None:
    sequence = problem.tensor("sequence", torch.float32)
    options = {"dtype": torch.bfloat16, "normalize": problem["normalize"]}
    size = (sequence.shape[1], problem["capacity"], problem["damping"])
    fisher, twin = (
        SlidingWindowFisher(*size, **options),
        mfac.SlidingWindowFisher(*size, **options),
    )
    for g in sequence:
        rounded = g.bfloat16().double()
        found, wanted = fisher.push_ihvp(g), twin.push_ihvp(g)
        assert found.dtype is torch.float32
        assert error(found, wanted) <= 1e-6
        assert (
            error(fisher.ihvp(rounded), wanted) <= 1e-14 * float(problem["condition"]) + 1e-12
        )


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (33, 40), (70, 2100), (129, 1)])
@pytest.mark.parametrize("storage", [WIDE, torch.float32, torch.bfloat16], ids=str)
def test_sizes_against_the_twin(shape: tuple[int, int], storage: torch.dtype) -> None:
    m, d = shape
    fisher = SlidingWindowFisher(d, m, 0.1, dtype=storage)
    twin = mfac.SlidingWindowFisher(d, m, 0.1, dtype=storage)
    v = torch.randn(3, d, dtype=WIDE)
    for k in range(m + 3):
        g = torch.randn(d)
        fisher.push(g)
        twin.push(g)
        if k % 7 == 0 or k > m - 2:
            assert error(fisher.ihvp(v), twin.ihvp(v)) <= 1e-11
    assert_close(fisher.gram(), twin.gram(), rtol=1e-12, atol=1e-12)
    assert error(fisher.diag_inverse(), twin.diag_inverse()) <= 1e-11
    assert math.isclose(fisher.logdet(), float(twin.logdet()), rel_tol=1e-11, abs_tol=1e-11)


def test_zero_rows_duplicates_and_zero_vectors() -> None:
    fisher = SlidingWindowFisher(5, 8, 1e-6, dtype=WIDE)
    g = torch.randn(5, dtype=WIDE)
    G = torch.stack([g, torch.zeros(5, dtype=WIDE), g, g * (1 + 1e-15), torch.zeros(5).to(g)])
    for row in G:
        fisher.push(row)
    F = dense(G, 8, 1e-6)
    v = torch.randn(5, dtype=WIDE)
    assert error(fisher.ihvp(v), torch.linalg.solve(F, v)) <= 1e-8
    assert torch.equal(fisher.ihvp(torch.zeros(5)), torch.zeros(5))
    assert torch.equal(fisher.push_ihvp(torch.zeros(5)), torch.zeros(5))


def test_no_drift_over_three_thousand_pushes() -> None:
    """Scales from 1e-2 to 1e2 and rows that nearly repeat, float32, a tiny damping."""
    d, m, damping = 60, 24, 1e-8
    fisher = SlidingWindowFisher(d, m, damping)
    last: list[Tensor] = []
    for k in range(3000):
        g = torch.randn(d) * 10 ** (4 * torch.rand(()).item() - 2)
        if k % 3 == 2:
            g = last[-1] * (1 + 1e-6 * torch.randn(d))
        last = [*last[-(m - 1) :], g]
        fisher.push(g)
    probe = torch.randn(d)
    condition = torch.linalg.cond(dense(torch.stack(last), m, damping))
    assert condition > 1e9  # where the bar of a float32 window is 1e-4
    assert error(fisher.ihvp(probe), exact(last, m, damping, probe)) <= 1e-4
    newest = last[0]
    last = [*last[1:], newest]
    assert error(fisher.push_ihvp(newest), exact(last, m, damping, newest)) <= 1e-4
    G = torch.stack(last).double()
    assert error(fisher.gram(), G @ G.T) <= 1e-12


def exact(rows: list[Tensor], n: int, damping: float, v: Tensor) -> Tensor:
    """F^-1 v of the dense F, in balls of 400 bits."""
    before, flint.ctx.prec = flint.ctx.prec, 400
    try:
        G = flint.arb_mat([row.tolist() for row in rows])
        F = G.transpose() * G / n
        for k in range(F.nrows()):
            F[k, k] += damping
        x = F.solve(flint.arb_mat([[value] for value in v.tolist()]))
        return torch.tensor([float(x[k, 0]) for k in range(F.nrows())], dtype=WIDE)
    finally:
        flint.ctx.prec = before


def test_replace_remove_and_damping() -> None:
    fisher = pushed(9)
    rows = [fisher._window[k].clone() for k in fisher._order]
    v = torch.randn(2, 40, dtype=WIDE)

    def check(damping: float) -> None:
        F = dense(torch.stack(rows), 6, damping)
        assert error(fisher.ihvp(v), torch.linalg.solve(F, v.T).T) <= 1e-11

    rows[2] = torch.randn(40, dtype=WIDE)
    fisher.replace(2, rows[2])
    check(1e-3)
    del rows[4], rows[0]
    fisher.remove(4)
    fisher.remove(0)
    check(1e-3)
    fisher.set_damping(0.7)
    check(0.7)
    F = dense(torch.stack(rows), 6, 0.05)
    assert error(fisher.ihvp(v, damping=0.05), torch.linalg.solve(F, v.T).T) <= 1e-11
    check(0.7)
    for _ in range(5):
        g = torch.randn(40, dtype=WIDE)
        fisher.push(g)
        rows = [*rows, g][-6:]
        check(0.7)


def test_empty_window() -> None:
    for options in ({}, {"block_size": 3}):
        fisher = SlidingWindowFisher(7, 4, 0.5, dtype=WIDE, **options)
        v = torch.randn(7, dtype=WIDE)
        assert_close(fisher.ihvp(v), v / 0.5)
        assert_close(fisher.diag_inverse(), torch.full((7,), 2.0, dtype=WIDE))
        assert_close(fisher.quad_form(v), v @ v / 0.5)
        assert math.isclose(fisher.logdet(), 7 * math.log(0.5))
        assert fisher.element(2, 2) == 2
        assert fisher.element(2, 3) == 0
        assert len(fisher) == 0
        assert fisher.ihvp(torch.zeros(0, 7)).shape == (0, 7)


@pytest.mark.parametrize("block_size", [1, 3, 10, 39, 40, 100])
def test_blocks(block_size: int) -> None:
    fisher = pushed(6, block_size=block_size)
    G = fisher._window[fisher._order]
    F = dense(G, 6, 1e-3)
    index = torch.arange(40) // block_size
    F[index[:, None] != index[None, :]] = 0
    inverse = torch.linalg.inv(F)
    v = torch.randn(2, 40, dtype=WIDE)
    assert error(fisher.ihvp(v), v @ inverse) <= 1e-10
    assert error(fisher.diag_inverse(), inverse.diagonal()) <= 1e-10
    assert error(fisher.elements(torch.arange(40)[:, None], torch.arange(40)), inverse) <= 1e-10
    assert error(fisher.push_ihvp(G[0]), mfac_push(G, block_size)) <= 1e-10
    assert math.isclose(pushed(0, block_size=block_size).logdet(), 40 * math.log(1e-3))


@pytest.mark.parametrize("options", [{}, {"block_size": 3}], ids=["whole", "blocks"])
def test_indices_and_arrays(options: dict[str, int]) -> None:
    """The same refusals and kinds of results, whole or in blocks, full or empty."""
    for fisher in (pushed(6, **options), pushed(0, **options)):
        for bad in (-1, 40):
            index = torch.tensor([3, bad])
            with pytest.raises(IndexError, match=r"\[0, 40\)"):
                fisher.elements(index, torch.tensor(0))
            with pytest.raises(IndexError, match=r"\[0, 40\)"):
                fisher.inverse_block(index)
        with pytest.raises(TypeError, match="elements: j must be a tensor, got int"):
            fisher.elements(torch.tensor(0), 1)  # type: ignore[arg-type]
        for dtype in (torch.float64, torch.bool):
            with pytest.raises(TypeError, match="index must be int64 or int32"):
                fisher.inverse_block(torch.zeros(2, dtype=dtype))
        with pytest.raises(ValueError, match=r"index has shape \(1, 2\)"):
            fisher.inverse_block(torch.zeros(1, 2, dtype=torch.int64))
        v = np.ones((2, 40))
        assert isinstance(fisher.quad_form(v), np.ndarray)
        assert_close(torch.from_numpy(fisher.quad_form(v)), fisher.quad_form(torch.ones(2, 40)))
        wanted = torch.randn(40, dtype=WIDE, requires_grad=True)
        found = fisher.push_ihvp(torch.randn(40), wanted)
        assert not found.requires_grad
        assert_close(fisher.ihvp(wanted.detach()), found)
        assert isinstance(fisher.push_ihvp(torch.randn(40), v), Tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [2, 3, 7, 49, 100])
def test_many_vectors_at_once(k: int, dtype: torch.dtype) -> None:
    """Each gets the bits that it gets alone; rows, columns and vectors fill no block."""
    d = 8192 + 2 * 512 + 37
    fisher, other = (pushed(0, d=d, m=37, dtype=dtype) for _ in range(2))
    for g in torch.randn(37, d):
        fisher.push(g)
        other.push(g)
    V = torch.randn(k, d)
    assert_close(fisher.ihvp(V), torch.stack([fisher.ihvp(v) for v in V]), rtol=0, atol=0)
    g = torch.randn(d)
    pushed_along = fisher.push_ihvp(g, V)
    other.push(g)
    assert_close(pushed_along, other.ihvp(V), rtol=0, atol=0)
    G = fisher._window[fisher._order].double()
    system = fisher.capacity * 1e-3 * torch.eye(37, dtype=WIDE) + G @ G.T
    wanted = (V.double() - torch.linalg.solve(system, G @ V.double().T).T @ G) / 1e-3
    assert error(fisher.ihvp(V.double()), wanted) < 1e-12


@pytest.mark.parametrize("storage", [WIDE, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("first", "d"), [(0, 9000), (1, 64), (3, 1), (5, 0), (7, 8195)])
def test_some_columns_of_a_window(first: int, d: int, storage: torch.dtype) -> None:
    """They are not copied, get the bits of a copy, and what surrounds them is not written."""
    ops, columns = torch.ops.curvkern, slice(first, first + d)
    wider = torch.randn(9, 9001).to(storage)
    before, part = wider.clone(), wider[:, columns]
    copied = part.contiguous()
    slots, v = [7, 0, 3, 4, 8], torch.randn(5, d, dtype=WIDE)
    for k in (0, 1, 5):
        pairs = [
            (ops.mfac_push(w, slots, 2, v[:1], v[:k]), ops.mfac_products(w, slots, v[:k]), w)
            for w in (part, copied)
        ]
        assert all(map(torch.equal, *pairs))
        c = torch.randn(k, 5, dtype=WIDE)
        combined = [ops.mfac_combine(w, slots, c, 0.5, v[:k], True) for w in (part, copied)]
        assert torch.equal(*combined)
    before[:, columns] = copied
    assert torch.equal(wider, before)
    if d > 1:  # rows that overlap, and columns instead of rows, are copied or refused
        over, turned = wider.flatten().as_strided((3, d), (1, 1)), part[:, :9].T
        v = torch.randn(2, d, dtype=WIDE)
        wanted = v @ over.double().T
        assert error(ops.mfac_products(over, [0, 1, 2], v), wanted) < 1e-12
        v = torch.randn(2, 9, dtype=WIDE)
        assert (
            error(ops.mfac_products(turned, [1, 0], v), v @ turned[[1, 0]].double().T) < 1e-12
        )
        for window, row in ((over, wider[:1, :d]), (turned, v[:1])):
            with pytest.raises(ValueError, match="contiguous"):
                ops.mfac_push(window, [0], 0, row.double(), row[:0].double())


def test_the_damping_of_a_product_outlasts_a_change() -> None:
    fisher = pushed(3)
    v = torch.randn(40, dtype=WIDE, requires_grad=True)
    w = torch.randn(40, dtype=WIDE)
    wanted = fisher.ihvp(w)
    y = fisher.ihvp(v) @ w
    fisher.set_damping(5.0)
    y.backward()
    assert v.grad is not None
    assert_close(v.grad, wanted)


def mfac_push(G: Tensor, block_size: int) -> Tensor:
    twin = mfac.SlidingWindowFisher(40, 6, 1e-3, dtype=WIDE, block_size=block_size)
    for g in G:
        twin.push(g)
    result: Tensor = twin.push_ihvp(G[0])
    return result


# Derivatives ---------------------------------------------------------------------------------


def test_derivatives_of_every_kind() -> None:
    fisher = pushed(4, d=7, damping=0.3)
    v = torch.randn(2, 7, dtype=WIDE, requires_grad=True)
    assert torch.autograd.gradcheck(fisher.ihvp, v, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fisher.ihvp, v)
    inverse = fisher.ihvp(torch.eye(7, dtype=WIDE))
    x = torch.randn(7, dtype=WIDE)
    assert_close(torch.func.jacrev(fisher.ihvp)(x), inverse)
    assert_close(torch.func.jacfwd(fisher.ihvp)(x), inverse)
    energy = torch.func.hessian(lambda t: t @ fisher.ihvp(t) / 2)
    assert_close(energy(x), inverse)
    batch = torch.randn(3, 5, 7, dtype=WIDE)
    assert_close(torch.vmap(fisher.ihvp)(batch), batch @ inverse)
    assert_close(torch.vmap(fisher.ihvp, in_dims=1)(batch), batch.transpose(0, 1) @ inverse)
    assert torch.autograd.gradcheck(fisher.quad_form, v, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fisher.quad_form, v)
    assert_close(torch.func.grad(fisher.quad_form)(x), 2 * inverse @ x)
    assert_close(torch.vmap(fisher.quad_form)(batch), ((batch @ inverse) * batch).sum(2))
    assert_close(fisher.quad_form(v).detach(), fisher.quad_form(v.detach()))
    compiled = torch.compile(fisher.ihvp, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), inverse @ x)


def test_backward_refuses_a_changed_window() -> None:
    fisher = pushed(3)
    v = torch.randn(40, dtype=WIDE, requires_grad=True)
    y = fisher.ihvp(v).sum()
    fisher.push(torch.randn(40))
    with pytest.raises(RuntimeError, match="before the next push"):
        y.backward()


def test_backward_waits_for_other_threads() -> None:
    """R45: what it reads of a window is not pushed over meanwhile."""
    fisher = pushed(3)
    v = torch.randn(40, dtype=WIDE, requires_grad=True)
    y = fisher.ihvp(v).sum()
    thread = threading.Thread(target=y.backward)
    with fisher._lock:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join()
    assert v.grad is not None


def test_no_graph_under_no_grad() -> None:
    v = torch.randn(40, dtype=WIDE, requires_grad=True)
    fisher = pushed(2)
    with torch.no_grad():
        assert not fisher.ihvp(v).requires_grad
    with torch.inference_mode():
        assert not fisher.ihvp(v).requires_grad
    assert not fisher.push_ihvp(v).requires_grad


# Forms of inputs ------------------------------------------------------------------------------


def test_forms_of_vectors() -> None:
    fisher = pushed(5)
    v = torch.randn(40, dtype=WIDE)
    wanted = fisher.ihvp(v)
    padded = torch.full((40, 3), math.nan, dtype=WIDE)
    padded[:, 1] = v
    assert_close(fisher.ihvp(padded[:, 1]), wanted, rtol=0, atol=0)
    negated = torch.complex(torch.zeros_like(v), -v).conj().imag  # a negative-bit view of v
    assert negated.is_neg()
    assert_close(fisher.ihvp(negated), wanted, rtol=0, atol=0)
    assert_close(fisher.ihvp(v.expand(3, 40)), wanted.expand(3, 40), rtol=0, atol=0)
    backwards = v.numpy()[::-1].copy()[::-1]
    result = fisher.ihvp(backwards)
    assert isinstance(result, np.ndarray)
    assert_close(torch.from_numpy(result), wanted, rtol=0, atol=0)
    out = torch.empty(40, dtype=WIDE)
    assert fisher.ihvp(v, out=out) is out
    assert_close(out, wanted, rtol=0, atol=0)
    swapped = v.numpy().astype(">f8")
    swapped.flags.writeable = False
    assert_close(torch.from_numpy(fisher.ihvp(swapped)), wanted, rtol=0, atol=0)
    for half in (torch.float16, torch.bfloat16):
        found = fisher.ihvp(v.to(half) * 1e-3)
        assert found.dtype is half
        assert torch.isfinite(found).all()
    x, info = fisher.ihvp(v.expand(3, 40), return_info=True)
    assert x.shape == (3, 40)
    assert info["residual"].shape == (3,)
    assert (info["residual"] < 1e-12).all()


def test_as_linear_operator() -> None:
    fisher = pushed(5)
    operator = fisher.as_linear_operator()
    x = np.random.default_rng(0).standard_normal((40, 3))
    inverse = np.linalg.inv(dense(fisher._window[fisher._order], 6, 1e-3).numpy())
    np.testing.assert_allclose(operator @ x, inverse @ x, rtol=1e-10)
    np.testing.assert_allclose(operator.T @ x[:, 0], inverse @ x[:, 0], rtol=1e-10)


def into(out: Tensor, requires_grad: bool = False) -> Any:
    return pushed(1).ihvp(torch.zeros(40, requires_grad=requires_grad), out=out)


REFUSED = [
    (ValueError, "d must be at least 1, got 0", lambda: SlidingWindowFisher(0, 1, 1.0)),
    (ValueError, "m must be at least 1, got -2", lambda: SlidingWindowFisher(1, -2, 1.0)),
    (TypeError, "m must be an integer", lambda: SlidingWindowFisher(1, 2.0, 1.0)),  # type: ignore[arg-type]
    (ValueError, "damping must be positive", lambda: SlidingWindowFisher(1, 1, 0.0)),
    (ValueError, "damping must be positive", lambda: SlidingWindowFisher(1, 1, math.nan)),
    (TypeError, "damping must be a real", lambda: SlidingWindowFisher(1, 1, "1")),  # type: ignore[arg-type]
    (TypeError, "dtype must be", lambda: SlidingWindowFisher(1, 1, 1.0, dtype=torch.float16)),
    (ValueError, "capacity, filled", lambda: SlidingWindowFisher(1, 1, 1.0, normalize="full")),
    (MemoryError, "too large", lambda: SlidingWindowFisher(2**62, 2**10, 1.0)),
    (MemoryError, "too large", lambda: SlidingWindowFisher(10**13, 1024, 1.0)),
    (ValueError, r"\(3,\), expected \(40,\)", lambda: pushed(1).push(torch.zeros(3))),
    (ValueError, r"\(3,\), expected \(40,\)", lambda: pushed(1).ihvp(torch.zeros(3))),
    (ValueError, r"expected \(40,\)", lambda: pushed(1).push(torch.zeros(2, 40))),
    (TypeError, "complex64", lambda: pushed(1).ihvp(torch.zeros(40, dtype=torch.complex64))),
    (TypeError, "int64", lambda: pushed(1).push(torch.zeros(40, dtype=torch.int64))),
    (TypeError, "bool", lambda: pushed(1).push(torch.zeros(40, dtype=torch.bool))),
    (TypeError, "layout", lambda: pushed(1).push(torch.zeros(40).to_sparse())),
    (TypeError, "list", lambda: pushed(1).push([0.0] * 40)),
    (TypeError, "NoneType", lambda: pushed(1).ihvp(None)),
    (TypeError, "got int64", lambda: pushed(1).ihvp(np.ones(40, dtype=np.int64))),
    (TypeError, "got object", lambda: pushed(1).ihvp(np.full(40, None))),
    (TypeError, "masked", lambda: pushed(1).ihvp(np.ma.masked_less(np.ones(40), 2))),
    (TypeError, "out must be", lambda: pushed(1).ihvp(torch.zeros(40), out=3)),  # type: ignore[arg-type]
    (TypeError, "out is torch.int64", lambda: into(torch.zeros(40, dtype=torch.int64))),
    (ValueError, r"out has shape \(2, 40\)", lambda: into(torch.zeros(2, 40))),
    (RuntimeError, "out does not go", lambda: into(torch.zeros(40), requires_grad=True)),
    (MemoryError, "too large", lambda: SlidingWindowFisher(2**63, 4, 1.0)),
    (MemoryError, "too large", lambda: SlidingWindowFisher(1, 2**31, 1.0)),
    (ValueError, "is on meta", lambda: pushed(1).ihvp(torch.zeros(40, device="meta"))),
    (ValueError, "damping", lambda: pushed(1).ihvp(torch.zeros(40), damping=-1.0)),
    (ValueError, "damping", lambda: pushed(1).set_damping(math.inf)),
    (IndexError, r"\[0, 1\), got 1", lambda: pushed(1).remove(1)),
    (IndexError, r"\[0, 1\), got -1", lambda: pushed(1).replace(-1, torch.zeros(40))),
    (IndexError, r"\[0, 40\), got 40", lambda: pushed(1).element(0, 40)),
    (ValueError, "block_size must be", lambda: SlidingWindowFisher(1, 1, 1.0, block_size=0)),
]


@pytest.mark.parametrize(("kind", "text", "call"), REFUSED, ids=[t for _, t, _ in REFUSED])
def test_refusals(kind: type[Exception], text: str, call: Any) -> None:
    with pytest.raises(kind, match=text):
        call()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_leaves_the_window_as_it_was(bad: float) -> None:
    fisher = pushed(9)
    before = fisher.state_dict()
    g = torch.randn(40)
    g[17] = bad
    for call in (fisher.push, fisher.push_ihvp, lambda row: fisher.replace(1, row)):
        with pytest.raises(ValueError, match="finite"):
            call(g)
    after = fisher.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, Tensor) else True


def test_overflow_of_the_storage_is_refused() -> None:
    fisher = SlidingWindowFisher(3, 2, 1.0, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16"):
        fisher.push(torch.tensor([0.0, 3.4e38, 0.0]))
    narrow = SlidingWindowFisher(3, 2, 1.0)
    with pytest.raises(ValueError, match="float32"):
        narrow.push(torch.tensor([0.0, 1e300, 0.0], dtype=WIDE))


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


# What comes in -------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [WIDE, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [7, 100, 515])
def test_many_vectors_are_those_of_one_at_a_time(d: int, storage: torch.dtype) -> None:
    """Bit for bit, also where columns do not fill a register."""
    fisher = pushed(7, d=d, dtype=storage)
    for dtype in (WIDE, torch.float32):
        for k in (2, 3, 6, 33):
            V = torch.randn(k, d, dtype=dtype)
            assert torch.equal(fisher.ihvp(V), torch.stack([fisher.ihvp(v) for v in V]))


def test_a_push_with_many_vectors() -> None:
    fisher, twin = pushed(9), pushed(0)
    twin.load_state_dict(fisher.state_dict())
    g, V = torch.randn(40), torch.randn(9, 40, dtype=WIDE)
    X = fisher.push_ihvp(g, V)
    twin.push(g)
    assert torch.equal(X, twin.ihvp(V))


@pytest.mark.parametrize("options", [{}, {"block_size": 3}], ids=str)
def test_arrays_of_every_kind(
    options: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    """R24"""
    fisher = pushed(4, **options)
    v = np.random.default_rng(0).standard_normal(40)
    wanted = fisher.ihvp(v)
    fixed = v.copy()
    fixed.flags.writeable = False
    for form in (fixed, v.astype(">f8"), v[::-1].copy()[::-1], np.stack([v, v])[:, ::1][1]):
        assert np.array_equal(fisher.ihvp(form), wanted)
    fisher.push(fixed)
    assert isinstance(fisher.push_ihvp(v, fixed), Tensor)
    with pytest.raises(TypeError, match="v is a masked array"):
        fisher.ihvp(np.ma.masked_less(v, 0))
    for bad in (v.astype(np.longdouble), np.array([None] * 40), np.array(["a"] * 40)):
        with pytest.raises(TypeError, match="ihvp: v must be real"):
            fisher.ihvp(bad)
    assert not recwarn.list


def test_where_to_put_the_result() -> None:
    fisher, v = pushed(4), torch.randn(40, dtype=WIDE)
    wanted, out = fisher.ihvp(v), torch.empty(40, dtype=WIDE)
    assert fisher.ihvp(v, out=out) is out
    assert torch.equal(out, wanted)
    with pytest.raises(ValueError, match=r"out must have shape \(40,\)"):
        fisher.ihvp(v, out=torch.empty(2, 40, dtype=WIDE))
    for bad in (torch.empty(40), torch.empty(40, dtype=torch.int64), np.empty(40)):
        with pytest.raises(TypeError, match="out must be"):
            fisher.ihvp(v, out=bad)
    for one, other in ((v.clone().requires_grad_(), out), (v, out.clone().requires_grad_())):
        with pytest.raises(RuntimeError, match="derivatives"):
            fisher.ihvp(one, out=other)


@pytest.mark.parametrize("options", [{}, {"block_size": 3}], ids=str)
def test_places_of_elements(options: dict[str, Any]) -> None:
    fisher = pushed(4, **options)
    inverse = fisher.ihvp(torch.eye(40, dtype=WIDE))
    index = torch.tensor([5, 3, 5, 39], dtype=torch.uint8)
    assert_close(fisher.inverse_block(index), inverse[index.long()][:, index.long()])
    assert_close(fisher.elements(index, index), inverse.diagonal()[index.long()])
    for bad in ([0, 1], np.array([0]), torch.tensor([0.0]), torch.tensor([True])):
        for call in (fisher.inverse_block, lambda i: fisher.elements(i, i)):
            with pytest.raises(TypeError, match="must be"):
                call(bad)
    with pytest.raises(ValueError, match="1 dimension"):
        fisher.inverse_block(torch.zeros(1, 2, dtype=torch.int64))


def test_complex_vectors_of_the_linear_operator() -> None:
    pytest.importorskip("scipy")
    fisher, z = pushed(4), np.linspace(-1, 1, 40) * (1 + 2j)
    found = fisher.as_linear_operator() @ z
    assert np.allclose(found, fisher.ihvp(z.real) + 1j * fisher.ihvp(z.imag), rtol=1e-12)


@pytest.mark.parametrize(
    ("d", "m", "kind"),
    [(2**70, 1, ValueError), (3, 2**70, ValueError), (3, 10**9, MemoryError)],
)
def test_sizes_beyond_all_memory(d: int, m: int, kind: type[Exception]) -> None:
    """R31"""
    with pytest.raises(kind, match="too large"):
        SlidingWindowFisher(d, m, 0.1)


@pytest.mark.parametrize("options", [{}, {"block_size": 3}], ids=str)
def test_squares_that_overflow_are_refused(options: dict[str, Any]) -> None:
    fisher = pushed(4, **options)
    v = torch.ones(40, dtype=WIDE)
    before = fisher.ihvp(v)
    for call in (fisher.push, fisher.push_ihvp, lambda row: fisher.replace(0, row)):
        with pytest.raises(ValueError, match="square"):
            call(1e160 * v)
    assert torch.equal(fisher.ihvp(v), before)


def test_no_block_size_in_a_subclass() -> None:
    class Window(SlidingWindowFisher):
        pass

    assert Window(4, 2, 0.1).block_size is None
    with pytest.raises(TypeError, match="block_size"):
        Window(4, 2, 0.1, block_size=2)


def test_made_in_inference_mode() -> None:
    """R34"""
    with torch.inference_mode():
        fisher = pushed(2)
    fisher.push(torch.randn(40))
    G = fisher._window[fisher._order]
    assert_close(fisher.gram(), G @ G.T)


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
