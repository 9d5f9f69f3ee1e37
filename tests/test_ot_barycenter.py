"""Barycenters, soft ranks and sorts, and POT's interface."""

from __future__ import annotations

import warnings

import numpy as np
import ot as pot
import pytest
import torch
from torch.testing import assert_close

from curvkern import ConvergenceWarning, ot
from curvkern.ot.compat import pot as ours

GRID = np.linspace(0, 1, 12)
COSTS = (GRID[:, None] - GRID) ** 2


def histograms(K: int = 3) -> np.ndarray:
    a = np.random.default_rng(0).random((K, 12)) + 0.05
    return a / a.sum(1, keepdims=True)


def test_barycenter_of_pot() -> None:
    a, w = histograms(), np.array([0.2, 0.3, 0.5])
    theirs = pot.bregman.barycenter(
        a.T, COSTS, 0.05, weights=w, method="sinkhorn_log", stopThr=1e-13, numItermax=10_000
    )
    b = ot.barycenter(a, COSTS, 0.05, weights=w, tol=1e-12)
    np.testing.assert_allclose(b, theirs, atol=1e-9)
    np.testing.assert_allclose(
        ot.barycenter(3 * a, COSTS, 0.05, weights=2 * w), 3 * b, atol=1e-7
    )


def bumps() -> np.ndarray:
    """Two histograms wider than the blur."""
    a = np.exp(-((GRID - np.array([[0.35], [0.6]])) ** 2) / (2 * 0.2**2))
    return a / a.sum(1, keepdims=True)


def test_barycenter_debiased_of_pot() -> None:
    a = bumps()
    theirs = pot.bregman.barycenter_debiased(a.T, COSTS, 0.02, stopThr=1e-9, numItermax=5000)
    b = ot.barycenter(a, COSTS, 0.02, debiased=True, tol=1e-6)
    np.testing.assert_allclose(b, theirs, atol=1e-4)


def test_meta_tensors_give_shapes() -> None:
    a, C = torch.empty(2, 3, 12, device="meta"), torch.empty(12, 5, device="meta")
    b = ot.barycenter(a, C, 0.1)
    assert (b.shape, b.dtype, b.is_meta) == ((2, 5), torch.float32, True)


def test_the_debiased_barycenter_is_not_blurred() -> None:
    a = bumps()[:1]
    blurred = ot.barycenter(a, COSTS, 0.02)
    sharp = ot.barycenter(a, COSTS, 0.02, debiased=True)
    assert np.abs(sharp - a[0]).sum() < 0.1 * np.abs(blurred - a[0]).sum()


def test_barycenter_between_points() -> None:
    a = torch.tensor(histograms())
    x = torch.tensor(GRID)[:, None]
    y = torch.linspace(-0.1, 1.1, 7, dtype=torch.float64)[:, None]
    assert_close(ot.barycenter(a, None, 0.05, x=x), ot.barycenter(a, (x - x.T) ** 2, 0.05))
    both = torch.stack([x, 2 * x])
    for kind, power in (("l1", 1), ("euclidean", 1), ("half_sqeuclidean", 2)):
        b = ot.barycenter(a, None, 0.05, x=both, y=y, cost=kind)
        for found, points in zip(b, both, strict=True):
            C = (points - y.T).abs() ** power / power
            assert_close(found, ot.barycenter(a, C, 0.05))
    sharp = ot.barycenter(a, None, 0.05, x=x, debiased=True)
    assert_close(sharp, ot.barycenter(a, (x - x.T) ** 2, 0.05, debiased=True))

    def mean(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ot.barycenter(a, None, 0.2, x=x, y=y, tol=1e-13) @ y

    assert torch.autograd.gradcheck(mean, (x.requires_grad_(), y.requires_grad_()))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "expected C, or points x, got neither"),
        ({"C": COSTS, "x": GRID[:, None]}, "got both"),
        ({"C": COSTS, "cost": "cosine"}, "cost must be one of"),
        ({"x": GRID[1:, None]}, "x has 11 points but a histograms of 12 bins"),
        ({"x": GRID[:, None], "y": np.zeros((3, 2))}, "1 coordinates but y of 2"),
        ({"x": GRID[:, None], "cost": "cosine"}, "cost must be one of"),
        ({"x": GRID[:, None], "y": GRID[:, None], "debiased": True}, "expected no y"),
        ({"x": np.full((12, 1), np.nan)}, "the cost between x and y must be finite, got nan"),
    ],
)
def test_barycenter_refuses_points(options: dict, text: str) -> None:
    options = {"C": None, **options}
    with pytest.raises(ValueError, match=text):
        ot.barycenter(histograms(), options.pop("C"), 0.05, **options)


def test_barycenter_gradients() -> None:
    logits = torch.tensor(histograms(2))[:, :5].log().requires_grad_()
    costs = torch.tensor(8 * COSTS[:5, :4]).requires_grad_()
    eps = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    w = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)

    def function(logits, costs, eps, w):
        return ot.barycenter(logits.softmax(-1), costs, eps, weights=w, tol=1e-13)

    assert torch.autograd.gradcheck(function, (logits, costs, eps, w), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (logits, costs, eps, w), fast_mode=True)


def test_gradients_of_the_debiased_barycenter() -> None:
    a = torch.tensor(bumps())[:, 3:9].log().requires_grad_()
    eps = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    w = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)

    def function(logits, eps, w):
        return ot.barycenter(
            logits.softmax(-1), 8 * torch.tensor(COSTS[:6, :6]), eps, weights=w, debiased=True,
            tol=1e-13,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, (a, eps, w), fast_mode=True)
    second = (a, eps.detach(), w.detach())
    assert torch.autograd.gradgradcheck(function, second, fast_mode=True)


def test_second_derivatives_of_a_sharp_barycenter() -> None:
    """Where convergence takes hundreds of iterations, that of the derivatives does, too."""
    grid = torch.linspace(0, 1, 8, dtype=torch.float64)
    C, slope = (grid[:, None] - grid) ** 2, torch.randn(8, dtype=torch.float64)
    a = torch.rand(3, 8, dtype=torch.float64) + 0.1
    a /= a.sum(1, keepdim=True)

    def first(eps: torch.Tensor) -> torch.Tensor:
        b = ot.barycenter(a, C, eps, tol=1e-13)
        return torch.autograd.grad(b @ slope, eps, create_graph=True)[0]

    def at(eps: float) -> torch.Tensor:
        return torch.tensor(eps, dtype=torch.float64, requires_grad=True)

    eps, h = at(0.02), 1e-5
    (second,) = torch.autograd.grad(first(eps), eps)
    expected = (first(at(0.02 + h)) - first(at(0.02 - h))).detach() / (2 * h)
    assert_close(second, expected, rtol=1e-6, atol=1e-6)


def test_barycenter_gradient_at_zero_weights() -> None:
    a = torch.tensor(
        [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True
    )
    b = ot.barycenter(a, torch.tensor(COSTS[:3, :3]), 0.1)
    assert torch.isfinite(torch.autograd.grad(b[0], a)[0]).all()


def test_barycenter_batches() -> None:
    a = torch.tensor(histograms(4)).reshape(2, 2, 12)
    costs = torch.tensor(COSTS)
    b = ot.barycenter(a, costs, 0.1)
    assert_close(b[1], ot.barycenter(a[1], costs, 0.1), rtol=1e-6, atol=1e-9)
    each = ot.barycenter(a[0], torch.stack([costs, costs]), 0.1)
    assert_close(b[0], each, rtol=1e-6, atol=1e-9)


def test_barycenter_warns_and_refuses() -> None:
    a = histograms()
    with pytest.warns(ConvergenceWarning, match="barycenter: not converged after 2") as caught:
        ot.barycenter(a, COSTS, 1e-3, max_iter=2)
    assert caught[0].filename == __file__
    scaled = a * np.array([1.0, 2.0, 1.0])[:, None]
    with pytest.raises(ValueError, match="equal masses, but those of a are 1, 2, 1"):
        ot.barycenter(scaled, COSTS, 0.1)
    with pytest.raises(ValueError, match="C must be finite"):
        ot.barycenter(a, np.where(COSTS > 0.5, np.inf, COSTS), 0.1)
    with pytest.raises(ValueError, match="histograms of 12 bins"):
        ot.barycenter(a, COSTS[:5], 0.1)
    with pytest.raises(ValueError, match="debiased, C must have shape"):
        ot.barycenter(a, COSTS[:, :5], 0.1, debiased=True)
    skew = COSTS + np.triu(COSTS)
    with pytest.raises(ValueError, match=r"debiased, C must be symmetric, got C\[0, 11\] = 2"):
        ot.barycenter(a, skew, 0.1, debiased=True)
    with pytest.raises(TypeError, match="debiased must be a bool, got str"):
        ot.barycenter(a, COSTS, 0.1, debiased="no")
    with pytest.raises(ValueError, match="a has 3 histograms but weights has length 2"):
        ot.barycenter(a, COSTS, 0.1, weights=np.ones(2))


@pytest.mark.parametrize("eps", [1e-15, 1e-30])
def test_rounding_is_no_convergence(eps: float) -> None:
    """Where C / eps swallows every update, nothing changes any more."""
    with pytest.warns(ConvergenceWarning, match="not converged after 300 iterations"):
        b = ot.barycenter(histograms(), COSTS, eps, max_iter=300)
    assert np.isfinite(b).all()


def test_a_bin_out_of_reach_does_not_hinder() -> None:
    a, far = histograms(), COSTS.copy()
    far[:, 3] = 1e14
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        b = ot.barycenter(a, far, 0.05)
    expected = ot.barycenter(a, np.delete(COSTS, 3, 1), 0.05)
    np.testing.assert_allclose(np.delete(b, 3), expected, atol=1e-8)


def test_gradients_in_points_are_summed_before_they_are_rounded() -> None:
    a = torch.tensor(histograms())
    x = torch.rand(12, 2).half() + 3
    grads = []
    for points in (x.requires_grad_(), x.detach().double().requires_grad_()):
        b = ot.barycenter(a, None, 0.01, x=points)
        grads.append((b.detach(), *torch.autograd.grad(b[0], points)))
    assert_close(grads[0][0], grads[1][0], rtol=1e-12, atol=0)
    assert_close(grads[0][1], grads[1][1].half(), rtol=2e-3, atol=0)


def test_transforms_that_a_barycenter_refuses() -> None:
    a = torch.tensor(histograms())

    def function(t: torch.Tensor) -> torch.Tensor:
        return ot.barycenter(t, torch.tensor(COSTS), 0.1)

    with pytest.raises(NotImplementedError, match=r"barycenter: no vmap; pass a batch"):
        torch.func.vmap(function)(a[None])
    with pytest.raises(NotImplementedError, match="barycenter: no forward mode"):
        torch.func.jvp(function, (a,), (a,))
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(function, fullgraph=True, backend="aot_eager")(a)


# Ranks and sorts -----------------------------------------------------------------------------


def test_small_eps_gives_ranks_and_sorted_values() -> None:
    x, one = torch.randn(3, 7, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert_close(ot.soft_rank(x, 1e-5), x.argsort(1).argsort(1) + one, rtol=1e-6, atol=0)
    assert_close(ot.soft_sort(x, 1e-5), x.sort(1).values, rtol=1e-6, atol=1e-6)
    assert_close(ot.soft_rank(x, 1e-5, dim=0), x.argsort(0).argsort(0) + one, rtol=1e-6, atol=0)


def test_large_eps_gives_the_mean() -> None:
    x = torch.randn(7, dtype=torch.float64)
    assert_close(ot.soft_rank(x, 1e3), torch.full_like(x, 4.0), rtol=1e-3, atol=0)
    assert_close(ot.soft_sort(x, 1e3), x.mean().expand(7), rtol=1e-3, atol=1e-3)


def test_soft_ranks_are_monotone_and_keep_their_sum() -> None:
    x = torch.randn(9, dtype=torch.float64)
    ranks = ot.soft_rank(x)
    assert (ranks[x.argsort()].diff() > 0).all()
    assert_close(ranks.sum(), torch.tensor(45.0, dtype=torch.float64))
    assert_close(ot.soft_sort(x).sum(), x.sum())
    assert_close(ot.soft_rank(5 * x + 3), ranks, rtol=1e-6, atol=0)


def test_soft_rank_and_sort_gradients() -> None:
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    for function in (ot.soft_rank, ot.soft_sort):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, 0.1, tol=1e-13), x)
    equal = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ot.soft_rank(equal)[0], equal)
    assert torch.isfinite(slope).all()


def test_soft_rank_and_sort_kinds_and_refusals() -> None:
    assert isinstance(ot.soft_rank(np.linspace(1, 0, 4)), np.ndarray)
    assert ot.soft_sort(torch.rand(2, 4).half(), m=3).shape == (2, 3)
    assert ot.soft_rank(torch.rand(4)).dtype == torch.float32
    for bad, words in (
        (torch.tensor([1.0, torch.nan]), "x must be finite"),
        (torch.ones(0), "empty"),
    ):
        with pytest.raises(ValueError, match=f"soft_rank: .*{words}|soft_rank: {words}"):
            ot.soft_rank(bad)
    with pytest.raises(ValueError, match="dim 1 is beyond"):
        ot.soft_rank(torch.ones(3), dim=1)
    with pytest.raises(ValueError, match="m must be at least 1"):
        ot.soft_sort(torch.ones(3), m=0)
    with pytest.raises(TypeError, match="x must be float"):
        ot.soft_rank(torch.ones(3, dtype=torch.int64))


# POT's interface -----------------------------------------------------------------------------


def weights(n: int, seed: int) -> np.ndarray:
    w = np.random.default_rng(seed).random(n) + 0.1
    return w / w.sum()


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log", "sinkhorn_stabilized"])
def test_compat_plan(method: str) -> None:
    a, b, M = weights(12, 1), weights(9, 2), COSTS[:, :9]
    options = {"method": method, "stopThr": 1e-13, "numItermax": 20_000}
    np.testing.assert_allclose(
        ours.sinkhorn(a, b, M, 0.05, **options),
        pot.sinkhorn(a, b, M, 0.05, **options),
        atol=1e-10,
    )


def test_compat_log_and_warm_start() -> None:
    a, b, M = weights(12, 1), weights(9, 2), COSTS[:, :9]
    a[3] = 0
    a /= a.sum()
    plan, log = ours.sinkhorn(a, b, M, 0.05, log=True)
    rebuilt = log["u"][:, None] * np.exp(-M / 0.05) * log["v"]
    np.testing.assert_allclose(rebuilt, plan, atol=1e-12)
    assert {"err", "niter", "u", "v", "warmstart"} <= set(log)
    _, again = ours.sinkhorn(a, b, M, 0.05, log=True, warmstart=log["warmstart"])
    assert again["niter"] < log["niter"]
    with pytest.raises(ValueError, match=r"warmstart has shape \(12,\) where the weights have"):
        ours.sinkhorn(a, b, M, 0.05, warmstart=(np.zeros(12), np.zeros(12)))
    several = np.stack([b, b[::-1]], 1)
    for source in (a, []):
        _, log = ours.sinkhorn(source, several, M, 0.05, log=True)
        _, again = ours.sinkhorn(source, several, M, 0.05, log=True, warmstart=log["warmstart"])
        assert (again["niter"] < log["niter"]).all()


def test_compat_several_targets_and_losses() -> None:
    a, M = weights(12, 1), COSTS[:, :9]
    b = np.stack([weights(9, 2), weights(9, 3)], 1)
    options = {"stopThr": 1e-13, "numItermax": 20_000}
    theirs = pot.sinkhorn2(a, b, M, 0.05, **options)
    np.testing.assert_allclose(ours.sinkhorn2(a, b, M, 0.05, **options), theirs, atol=1e-10)
    losses, log = ours.sinkhorn(a, b, M, 0.05, log=True, **options)
    np.testing.assert_allclose(losses, theirs, atol=1e-10)
    assert log["v"].shape == (9, 2)
    one = pot.sinkhorn2(a, b[:, 0], M, 0.05, **options)
    np.testing.assert_allclose(ours.sinkhorn2(a, b[:, 0], M, 0.05, **options), one, atol=1e-10)


def test_compat_empty_weights_tensors_and_warnings() -> None:
    M = torch.tensor(COSTS, requires_grad=True)
    plan = ours.sinkhorn([], [], M, 0.1)
    np.testing.assert_allclose(plan.detach(), pot.sinkhorn([], [], COSTS, 0.1), atol=1e-8)
    assert plan.requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.sinkhorn([], [], M, 1e-3, numItermax=2, warn=False)
    with pytest.warns(ConvergenceWarning):
        ours.sinkhorn([], [], M, 1e-3, numItermax=2)
    with pytest.raises(ValueError, match="method must be one of"):
        ours.sinkhorn([], [], M, 0.1, method="newton")


@pytest.mark.parametrize("name", ["sinkhorn", "sinkhorn2"])
def test_compat_messages_name_the_function(name: str) -> None:
    function = getattr(ours, name)
    with pytest.raises(ValueError, match=rf"^pot\.{name}: eps must be positive"):
        function([], [], COSTS, -1.0)
    with pytest.raises(ValueError, match=rf"^pot\.{name}: warmstart has shape"):
        function(weights(12, 1), [], COSTS, 0.1, warmstart=(np.zeros(3), np.zeros(3)))
    with pytest.warns(ConvergenceWarning, match=rf"^pot\.{name}: not converged"):
        function([], [], COSTS, 1e-3, numItermax=2)
