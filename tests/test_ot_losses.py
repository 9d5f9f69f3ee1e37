"""Sinkhorn divergence, SamplesLoss and Monge gap."""

from __future__ import annotations

import math

import numpy as np
import ot as pot
import pytest
import torch
from torch.testing import assert_close

from curvkern import ConvergenceWarning, ot

TOL = 1e-12


def clouds(n: int = 5, m: int = 6, d: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, d, dtype=torch.float64), torch.rand(m, d, dtype=torch.float64) + 0.3


def test_divergence_from_its_parts() -> None:
    x, y = clouds()
    a = torch.tensor([0.1, 0.5, 0.0, 0.4, 0.3], dtype=torch.float64)

    def value(x, y, a, b):
        options = {"a": a, "b": b, "rho": 0.7, "tol": TOL}
        return ot.sinkhorn_points(x, y, 0.1, **options).value

    parts = value(x, y, a, None) - value(x, x, a, a) / 2 - value(y, y, None, None) / 2
    expected = parts + 0.1 / 2 * (a.sum() - 1) ** 2
    assert_close(ot.sinkhorn_divergence(x, y, 0.1, a=a, rho=0.7, tol=TOL), expected)


def test_divergence_of_far_shifts() -> None:
    x, _ = clouds()
    shift = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert_close(float(ot.sinkhorn_divergence(x, x + shift, 0.1)), 25.0, rtol=1e-9, atol=0)


def test_divergence_gradients() -> None:
    x, y = (t.requires_grad_() for t in clouds(3, 4))
    weights = torch.rand(3, dtype=torch.float64, requires_grad=True)

    def function(x, y, weights):
        return ot.sinkhorn_divergence(x, y, 0.2, a=weights.softmax(0), tol=TOL)

    assert torch.autograd.gradcheck(function, (x, y, weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, y, weights), fast_mode=True, atol=1e-4)


def test_divergence_batches_and_arrays() -> None:
    x, y = clouds()
    batch = torch.stack([x, x + 1]), torch.stack([y, y])
    values = ot.sinkhorn_divergence(*batch, torch.tensor([0.1, 0.3]), tol=TOL)
    assert_close(values[1], ot.sinkhorn_divergence(x + 1, y, 0.3, tol=TOL), rtol=1e-6, atol=0)
    array = ot.sinkhorn_divergence(x.numpy(), y.numpy(), 0.1, tol=TOL)
    assert isinstance(array, np.float64)
    assert_close(float(array), float(values[0]), rtol=1e-6, atol=0)


def test_divergence_warns_once() -> None:
    x, y = clouds()
    with pytest.warns(ConvergenceWarning, match="sinkhorn_divergence: not converged") as caught:
        ot.sinkhorn_divergence(x, y, 1e-3, max_iter=2)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_divergence_refuses_two_penalties() -> None:
    x, y = clouds()
    with pytest.raises(TypeError, match="rho must be one penalty"):
        ot.sinkhorn_divergence(x, y, 0.1, rho=(1.0, 2.0))


@pytest.mark.parametrize(("p", "cost"), [(1, "euclidean"), (2, "half_sqeuclidean")])
def test_samples_loss(p: int, cost: str) -> None:
    x, y = clouds()
    a, b = torch.full((5,), 0.2).double(), torch.full((6,), 1 / 6).double()
    b = b / b.sum()
    loss = ot.SamplesLoss("sinkhorn", p=p, blur=0.3, reach=0.8, tol=TOL)
    options = {"rho": 0.8**p, "cost": cost, "tol": TOL}
    assert_close(loss(x, y), ot.sinkhorn_divergence(x, y, 0.3**p, **options))
    weighted = ot.sinkhorn_divergence(x, y, 0.3**p, a=a, b=b, **options)
    assert_close(loss(a, x, b, y), weighted)
    plain = ot.SamplesLoss(p=p, blur=0.3, debias=False, tol=TOL)
    assert_close(plain(x, y), ot.sinkhorn_points(x, y, 0.3**p, cost=cost, tol=TOL).value)
    assert repr(loss) == f"SamplesLoss(p={p}, blur=0.3, reach=0.8, debias=True)"


def test_samples_loss_against_pot() -> None:
    x, y = clouds()
    theirs = pot.bregman.empirical_sinkhorn_divergence(
        x.numpy(), y.numpy(), 2 * 0.5**2, stopThr=1e-13, numIterMax=100_000
    )
    # POT's is made of <P, C>, not of the values: ours with the same parts.
    parts = [
        ot.sinkhorn_points(u, v, 2 * 0.5**2, tol=TOL).cost for u, v in ((x, y), (x, x), (y, y))
    ]
    assert_close(
        float(parts[0] - parts[1] / 2 - parts[2] / 2), float(theirs), rtol=1e-8, atol=0
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "energy"}, "loss must be one of 'sinkhorn'"),
        ({"p": 3}, "p must be 1 or 2"),
        ({"blur": 0.0}, "blur must be positive"),
        ({"reach": -1.0}, "reach must be positive"),
        ({"blur": 1e200}, r"blur\^2 must be within float64, got blur = 1e\+200"),
        ({"reach": 1e-170}, r"reach\^2 must be within float64, got reach = 1e-170"),
    ],
)
def test_samples_loss_refusals(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"SamplesLoss: {words}"):
        ot.SamplesLoss(**options)


@pytest.mark.parametrize("p", ["2", True, torch.tensor([1, 2])])
def test_samples_loss_refuses_what_is_no_exponent(p: object) -> None:
    with pytest.raises(TypeError, match="SamplesLoss: p must be a number"):
        ot.SamplesLoss(p=p)


def test_samples_loss_refuses_three_arguments() -> None:
    x, y = clouds()
    with pytest.raises(TypeError, match="got 3 arguments"):
        ot.SamplesLoss()(x, y, x)


def test_monge_gap_of_an_optimal_map_vanishes() -> None:
    x, _ = clouds(8, 1)
    gap = ot.monge_gap(x, 2 * x + 1, 1e-4)  # the gradient of a convex function
    assert abs(gap) < 1e-3
    assert gap >= -1e-4 * math.log(8) - 1e-9


def test_monge_gap_of_a_bad_map() -> None:
    x, _ = clouds(8, 1)
    theirs = pot.emd2(np.full(8, 1 / 8), np.full(8, 1 / 8), pot.dist(x.numpy(), -x.numpy()))
    expected = float((4 * x**2).sum(1).mean()) - theirs
    assert expected > 0.1
    assert_close(float(ot.monge_gap(x, -x, 1e-4)), expected, rtol=1e-2, atol=0)


def test_monge_gap_gradient() -> None:
    x, Tx = (t.requires_grad_() for t in clouds(4, 4))

    def function(x, Tx):
        return ot.monge_gap(x, Tx, 0.2, cost="euclidean", tol=TOL)

    assert torch.autograd.gradcheck(function, (x, Tx), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, Tx), fast_mode=True, atol=1e-4)


def test_monge_gap_batches_and_refusals() -> None:
    x, y = clouds(4, 4)
    values = ot.monge_gap(torch.stack([x, y]), torch.stack([y, x]), 0.1, tol=TOL)
    assert_close(values[0], values[1])
    with pytest.raises(ValueError, match=r"x has shape \(4, 2\) but Tx has \(3, 2\)"):
        ot.monge_gap(x, y[:3], 0.1)
    with pytest.raises(ValueError, match="Tx must be finite"):
        ot.monge_gap(x, y * torch.nan, 0.1)
