"""The twins of curvkern.fisher: two formulas against the truth; the published recursions."""

from __future__ import annotations

import pytest
import torch

from curvkern.reference import mfac
from mfac_truth import Problem, check_ring, check_static, error, problems

both = pytest.mark.parametrize("method", ["woodbury", "direct"])


def window(problem: Problem, method: str, dtype=torch.float64) -> mfac.SlidingWindowFisher:
    """The problem's gradients in a window of capacity n."""
    G = problem.tensor("G", dtype)
    fisher = mfac.SlidingWindowFisher(
        G.shape[1],
        problem["n"],
        problem["damping"],
        dtype=dtype,
        block_size=problem["block"] or None,
        method=method,
    )
    for g in G:
        fisher.push(g)
    return fisher


@both
@problems("static")
def test_window(problem: Problem, method: str) -> None:
    fisher = window(problem, method)
    check_static(fisher, problem, torch.float64)
    again = mfac.SlidingWindowFisher(fisher.d, fisher.capacity, 1, dtype=torch.float64)
    again.block_size = fisher.block_size
    again.load_state_dict(fisher.state_dict())
    check_static(again, problem, torch.float64)


@both
@problems("static")
def test_static(problem: Problem, method: str) -> None:
    G = problem.tensor("G")
    if problem["n"] != len(G):
        # What is divided by a larger n is as if scaled.
        G = G * (len(G) / problem["n"]) ** 0.5
    fisher = mfac.StaticFisher.from_gradients(
        G, problem["damping"], block_size=problem["block"] or None, method=method
    )
    check_static(fisher, problem, torch.float64)


@both
@problems("ring")
def test_ring(problem: Problem, method: str) -> None:
    check_ring(
        lambda *size, **options: mfac.SlidingWindowFisher(*size, method=method, **options),
        problem,
        torch.float64,
    )


@both
@problems("removal")
def test_removal(problem: Problem, method: str) -> None:
    G, v = problem.tensor("G"), problem.tensor("v")
    fisher = mfac.SlidingWindowFisher(
        G.shape[1], problem["n"], problem["damping"], dtype=torch.float64, method=method
    )
    for g in G:
        fisher.push(g)
    for i in sorted(problem["drop"].tolist(), reverse=True):
        fisher.remove(i)
    assert error(fisher.ihvp(v), problem["ihvp"]) <= problem.tolerance(torch.float64)
    kept = [i for i in range(len(G)) if i not in problem["drop"]]
    torch.testing.assert_close(fisher.gram(), G[kept] @ G[kept].T)


def test_formulas_agree_on_random_sizes() -> None:
    for _ in range(30):
        m, d, block = (int(torch.randint(1, top, ())) for top in (12, 20, 25))
        normalize = ("capacity", "filled")[m % 2]
        one, two = (
            mfac.SlidingWindowFisher(
                d, m, 0.01, dtype=torch.bfloat16, normalize=normalize, method=method
            )
            for method in ("woodbury", "direct")
        )
        one.block_size = two.block_size = block if block <= 20 else None
        for g in torch.randn(15, d):
            newest = one.push_ihvp(g)
            two.push(g)
            # The rounded gradient is the one that the window knows.
            torch.testing.assert_close(newest, two.ihvp(g.bfloat16()), rtol=1e-9, atol=1e-9)
        if len(one) > 2:
            for fisher in (one, two):
                fisher.replace(1, torch.ones(d))
                fisher.remove(0)
        V = torch.randn(3, d, dtype=torch.float64)
        for damping in (None, 3.0):
            x, info = one.ihvp(V, damping=damping, return_info=True)
            torch.testing.assert_close(x, two.ihvp(V, damping=damping), rtol=1e-9, atol=1e-9)
            assert info["residual"].shape == (3,)
            assert info["residual"].max() < 1e-12
        torch.testing.assert_close(one.matrix() @ one.ihvp(V[0]), V[0])
        assert one.logdet() == pytest.approx(two.logdet(), rel=1e-11)
        assert one.logdet() == pytest.approx(float(torch.logdet(one.matrix())), rel=1e-11)


def test_empty_window() -> None:
    fisher = mfac.SlidingWindowFisher(3, 2, 0.5)
    v = torch.tensor([1.0, 2.0, 3.0])
    assert fisher.ihvp(v).tolist() == [2, 4, 6]
    assert fisher.diag_inverse().tolist() == [2, 2, 2]
    assert fisher.element(1, 1) == 2
    assert fisher.gram().shape == (0, 0)
    assert fisher.logdet() == pytest.approx(torch.tensor(0.125).log().item())


def test_refusals_leave_the_window() -> None:
    fisher = mfac.SlidingWindowFisher(2, 2, 0.5, dtype=torch.float16)
    fisher.push(torch.ones(2))
    for grad in (torch.tensor([1.0, torch.nan]), torch.tensor([1e6, 0.0])):
        with pytest.raises(ValueError, match="finite"):
            fisher.push(grad)
        with pytest.raises(ValueError, match="finite"):
            fisher.replace(0, grad)
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(2,\)"):
        fisher.push(torch.ones(3))
    with pytest.raises(ValueError, match=r"v has shape \(3,\)"):
        fisher.push_ihvp(torch.ones(2), torch.ones(3))
    with pytest.raises(IndexError):
        fisher.remove(1)
    assert len(fisher) == 1
    assert fisher.window.tolist() == [[1, 1]]
    for damping in (0.0, -1.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="damping"):
            fisher.set_damping(damping)


@problems("static", plain=True)
def test_static_recursion(problem: Problem) -> None:
    """As published, for one block divided by all rows; near duplicates cost it digits."""
    recursion = mfac.StaticRecursion(problem.tensor("G"), problem["damping"])
    bar = 20 * problem.tolerance(torch.float64)
    for v, truth in zip(problem.tensor("V"), problem["ihvp"], strict=True):
        assert error(recursion.ihvp(v), truth) <= bar
    assert error(recursion.diag_inverse(), problem["diagonal"]) <= bar
    corner = range(len(problem["inverse"]))
    got = [[recursion.element(i, j) for j in corner] for i in corner]
    assert error(got, problem["inverse"]) <= bar


@problems("ring")
def test_dynamic_recursion(problem: Problem) -> None:
    """As published, from a full window on."""
    sequence, m = problem.tensor("sequence"), problem["capacity"]
    recursion = mfac.DynamicRecursion(sequence[:m], problem["damping"])
    bar = 20 * problem.tolerance(torch.float64)
    for t in range(m, len(sequence)):
        recursion.push(sequence[t])
        assert error(recursion.ihvp(problem.tensor("probe")), problem["ihvp"][t]) <= bar
        assert error(recursion.ihvp(sequence[t]), problem["newest"][t]) <= bar
