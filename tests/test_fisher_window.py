"""SlidingWindowFisher against truths in 100 digits, its plain twin, and dense solves."""

from __future__ import annotations

import copy
import math
import threading

import flint
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern.fisher import SlidingWindowFisher
from curvkern.reference import mfac
from fisher_windows import WIDE, dense, dtypes, filled, pushed
from mfac_truth import Problem, check_ring, check_static, error, problems


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
            with pytest.raises(TypeError, match="index must be integers"):
                fisher.inverse_block(torch.zeros(2, dtype=dtype))
        with pytest.raises(
            ValueError, match=r"index must have 1 dimension, got shape \(1, 2\)"
        ):
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
