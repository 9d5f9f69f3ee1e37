"""curvkern.ot where numbers are large, small or few: values, certificates and derivatives."""

from __future__ import annotations

import ot as pot
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from curvkern import ConvergenceWarning, ot

INF = torch.inf


def weights(n: int) -> Tensor:
    w = torch.rand(n, dtype=torch.float64) + 0.05
    return w / w.sum()


def random(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


@pytest.mark.parametrize("eps", [1e3, 1e8, 1e15])
def test_huge_eps(eps: float) -> None:
    """The plan is the product; eps times the rounding of its mass must not show."""
    a, b, C = weights(8), weights(11), random(8, 11)
    result = ot.sinkhorn(a, b, C, eps)
    # to first order in 1 / eps: value = <a b', C> - var / (2 eps)
    assert_close(result.value, a @ C @ b, rtol=1 / eps + 1e-13, atol=0)
    assert 0 <= result.kl <= 1 / eps**2
    assert result.gap <= 1e-12
    x, y = random(5, 2), random(6, 2)
    between = ot.sinkhorn_points(x, y, eps)
    expected = torch.cdist(x, y).square().mean()
    assert_close(between.value, expected, rtol=2 / eps + 1e-13, atol=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("eps", [1.0, 1e-3, 1e-6])
def test_one_point_has_one_plan(shape: tuple[int, int], eps: float) -> None:
    a, b, C = weights(shape[0]), weights(shape[1]), random(*shape)
    result = ot.sinkhorn(a, b, C, eps)
    assert_close(result.plan, a[:, None] * b, rtol=1e-7, atol=0)
    assert_close(result.cost, a @ C @ b, rtol=1e-9, atol=0)
    assert result.gap <= 1e-8


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_costs_of_any_scale(scale: float) -> None:
    a, b, C = weights(7), weights(9), random(7, 9)
    expected = ot.sinkhorn(a, b, C, 0.1, tol=1e-11)
    C = (scale * C).requires_grad_()
    result = ot.sinkhorn(a, b, C, 0.1 * scale, tol=1e-11)
    assert_close(result.plan, expected.plan, rtol=1e-8, atol=1e-12)
    assert_close(result.value / scale, expected.value, rtol=1e-9, atol=0)
    assert_close(result.cost / scale, expected.cost, rtol=1e-9, atol=0)
    assert result.gap / scale <= 1e-9
    (slope,) = torch.autograd.grad(result.cost, C)
    assert_close(slope.sum(), torch.ones((), dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize("rho", [None, 1.0, (0.5, None)])
@pytest.mark.parametrize("eps", [1.0, 0.05, 1e-3])
def test_no_mass_and_no_way(rho: object, eps: float) -> None:
    """Zero weights and forbidden pairs: certificates hold, all derivatives are finite."""
    a, b, C = weights(9), weights(8), random(9, 8)
    a[2] = b[1] = 0.0
    forbidden = random(9, 8) < 0.3
    forbidden[0], forbidden[:, 0] = False, False
    a[0], b[0] = 2.0, 2.0
    a, b, C = a / a.sum(), b / b.sum(), torch.where(forbidden, INF, C)
    for t in (a, b, C):
        t.requires_grad_()
    result = ot.sinkhorn(a, b, C, eps, rho=rho, tol=1e-11)
    assert result.gap <= 1e-7
    for loss in (result.value, result.cost, result.kl, result.apply(random(8)).sum()):
        for slope in torch.autograd.grad(loss, (a, b, C), retain_graph=True):
            assert slope.isfinite().all()
    assert_close(
        torch.autograd.grad(result.value, C)[0], result.plan.detach(), rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton"])
def test_no_mass_under_a_weak_penalty(method: str) -> None:
    """Where there is no mass exp(-f / rho) overflows: nothing may come of it."""
    a = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.4, 0.6], dtype=torch.float64)
    C = torch.tensor([[9e5, 1e5], [5e5, 1e6], [7e5, 4e5]], dtype=torch.float64)
    result = ot.sinkhorn(a, b, C.requires_grad_(), 0.77, rho=(0.05, None), method=method)
    assert result.f[1] < -1e4
    assert result.converged
    assert_close(result.cost, 0.6 * 1e5 + 0.4 * 7e5 + 0 * result.cost)
    kl = 0.6 * torch.tensor(2.0).log() + 0.4 * torch.tensor(2.0).log()
    assert_close(result.kl, kl.double())
    for output in (result.value, result.cost, result.kl, result.apply(1e30 + 0 * b).sum()):
        for slope in torch.autograd.grad(output, (a, C), retain_graph=True):
            assert slope.isfinite().all()


@pytest.mark.filterwarnings("ignore::curvkern.ConvergenceWarning")
@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton"])
@pytest.mark.parametrize("eps", [1e-6, 1e-4, 1.0])
def test_what_overflows_has_not_converged(method: str, eps: float) -> None:
    """Costs too large over eps for arithmetic: finite potentials, and no claim."""
    for C in (1e14 * random(1, 1), 10 ** (300 * random(6, 6))):
        result = ot.sinkhorn(None, None, C, eps, method=method, max_iter=200)
        assert bool(torch.isfinite(result.f).all() & torch.isfinite(result.g).all())
        assert bool(torch.isfinite(result.plan).all())
        if result.converged:
            assert_close(result.plan.sum(1).sum(), torch.ones(()).double())


def test_far_clusters_of_unequal_masses() -> None:
    """Method "auto" gets as near as "newton" does, which is where C / eps is rounded."""
    x, y = (torch.randn(12, 2, dtype=torch.float64) for _ in range(2))
    x[6:] += 1e3
    y[5:] += 1e3
    expected = ot.sinkhorn_points(x, y, 1.0, method="newton", tol=1e-8)
    result = ot.sinkhorn_points(x, y, 1.0, tol=1e-8)
    assert result.converged
    assert expected.converged
    assert_close(result.value, expected.value)


@pytest.mark.filterwarnings("ignore::curvkern.ConvergenceWarning")
def test_converged_is_said_of_what_is_returned() -> None:
    """Potentials of 1.7e7 eps round marginals by 1e-9: some solves meet tol, some cannot."""
    said = []
    for _ in range(30):
        a, b, C = weights(1), weights(7), random(1, 7) - 50
        result = ot.sinkhorn(a, b, C, 3e-6)
        f, g = result.f, result.g
        P = a[:, None] * b * torch.exp((f[:, None] + g - C) / 3e-6)
        error = (P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum()
        said.append(bool(result.converged))
        assert float(error) < 1.001e-9 or not said[-1]
    assert any(said)
    assert not all(said)


def test_solves_that_rounding_pushes_back_over_tol_go_on() -> None:
    """In one of four or so, rounding f and g to float64 lifts the error just above tol."""
    for _ in range(30):
        x, y = torch.rand(2, 6, 2, dtype=torch.float64)
        result = ot.sinkhorn_points(x, y, 0.05, method="sinkhorn", tol=1e-14, check_every=1)
        assert result.converged
        assert result.marginal_error <= 1e-14


@pytest.mark.filterwarnings("ignore::curvkern.ConvergenceWarning")
@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton"])
@pytest.mark.parametrize("eps", [1e-18, 1e-19, 1e-25, 1e-300])
def test_eps_below_what_tells_costs_apart(eps: float, method: str) -> None:
    """All is finite, nothing is claimed, and the value is a lower bound of that of eps = 0."""
    C = random(6, 5)
    with pytest.warns(ConvergenceWarning, match="raise"):
        result = ot.sinkhorn(None, None, C, eps, max_iter=300, method=method)
    assert not result.converged
    for field in ("f", "g", "value", "cost", "kl", "plan", "gap", "marginal_error"):
        assert torch.isfinite(getattr(result, field)).all(), field
    exact = pot.emd2([], [], C.numpy())
    assert result.value <= exact + 1e-15
    if method == "auto":
        assert result.value >= 0.9 * exact
    points = ot.sinkhorn_points(C[:, :2], C[1:, 2:4], eps, max_iter=300, method=method)
    assert torch.isfinite(points.value)
    assert torch.isfinite(points.plan).all()


def test_mass_that_a_plan_cannot_hold() -> None:
    a = torch.tensor([0.3, 0.7], dtype=torch.float64)
    C = random(2, 2)
    result = ot.sinkhorn(a * 1e-249, a * 1e-249, C, 0.1)
    assert_close(result.plan.sum(1) * 1e249, a)
    with pytest.raises(ValueError, match="mass of a must be at least 1e-250"):
        ot.sinkhorn(a * 1e-270, a * 1e-270, C, 0.1)


def test_points_whose_costs_overflow_their_dtype() -> None:
    x, y = (1e20 * torch.rand(n, 2) for n in (3, 4))
    with pytest.raises(ValueError, match="beyond float32; rescale"):
        ot.sinkhorn_points(x, y, 1e38)
    result = ot.sinkhorn_points(x.double(), y.double(), 1e38)
    assert result.converged
    assert torch.isfinite(result.value)
