"""Maximum likelihood of the von Mises-Fisher law: accuracy, gradients, hard samples."""

import math
import re

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from curvkern import ConvergenceWarning
from curvkern.distributions import VonMisesFisher, _fitting, fit_concentration
from curvkern.distributions._concentration import resultant
from spherical import (
    F64,
    SIGMAS,
    TABLE,
    assert_relative,
    by_dim,
    column,
    directions,
    generator,
    law,
)


@pytest.mark.parametrize(("dim", "rows"), by_dim(TABLE["fit"]))
def test_fit_concentration_against_table(dim, rows):
    kappa = fit_concentration(column(rows, "Rbar"), dim)
    condition = column(rows, "cond").clamp_min(1)
    assert_relative(kappa / condition, column(rows, "kappa") / condition, 4)


def test_newton_that_has_not_converged_warns_once(monkeypatch):
    monkeypatch.setattr(_fitting, "NEWTON_STEPS", 1)
    rbar = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=F64)
    with pytest.warns(ConvergenceWarning, match="not converged after 1 steps") as caught:
        kappa = fit_concentration(rbar, 3)
    assert len(caught) == 1
    missed = float(re.search("met to (.*) only", str(caught[0].message))[1])
    off = (resultant(kappa[1:3], 3).mean - rbar[1:3]).abs().max().item()
    assert missed == pytest.approx(off, rel=0.1)
    assert off > 1e-12
    assert kappa[:3].isfinite().all()


@pytest.mark.parametrize("dim", [2, 3, 64, 32768, 10**6])
def test_newton_converges_from_end_to_end(dim):
    """Without the warning, which pytest is told to make an error."""
    small, close = (torch.logspace(-1, e, 90, dtype=F64) for e in (-300, -15))
    fit_concentration(torch.cat([small, 1 - close]), dim)
    for ends in (0.0, 5e-324, 1 - 2.0**-53, 1.0):
        fit_concentration(ends, dim)


@pytest.mark.parametrize(("dim", "kappa"), [(2, 3.0), (3, 1e8), (64, 50.0), (2048, 3000.0)])
def test_fit_recovers_the_law(dim, kappa):
    p = law(dim, kappa)
    n = 4000 if dim < 1000 else 500
    q = VonMisesFisher.fit(p.sample((n,), generator=generator(5)))
    at = resultant(p.concentration, dim)
    assert (
        abs(q.concentration / kappa - 1)
        < SIGMAS / (kappa * (n * at.slope).sqrt()) + dim / n / kappa
    )
    assert ((q.loc - p.loc) ** 2).sum() < SIGMAS * dim / (n * kappa * at.mean)


def test_fit_maximises_the_likelihood():
    x = law(6, 4.0).sample((300,), generator=generator(1))
    weights = torch.rand(300, dtype=F64, generator=generator(2))
    q = VonMisesFisher.fit(x, weights)
    raw = torch.cat([q.loc, q.concentration[None]]).requires_grad_()
    fitted = VonMisesFisher(torch.nn.functional.normalize(raw[:-1], dim=0), raw[-1])
    (gradient,) = torch.autograd.grad((weights * fitted.log_prob(x)).sum(), raw)
    assert gradient.abs().max() < 1e-11 * weights.sum()


def test_fit_is_not_autocast():
    x = law(6, 4.0).sample((300,), generator=generator(1)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = VonMisesFisher.fit(x)
    assert torch.equal(q.loc, VonMisesFisher.fit(x).loc)


def test_fit_batches_and_weights():
    x = directions(30, 4)
    weights = torch.rand(3, 30, dtype=F64, generator=generator(1))
    weights[1, 10:] = 0
    q = VonMisesFisher.fit(x, weights)
    assert q.batch_shape == (3,)
    for row, weight in enumerate(weights):
        one = VonMisesFisher.fit(x, weight * 1e-30)  # only ratios count
        torch.testing.assert_close(q.loc[row], one.loc)
        torch.testing.assert_close(q.concentration[row], one.concentration)
    few = VonMisesFisher.fit(x[:10], weights[1, :10])
    torch.testing.assert_close(q.concentration[1], few.concentration)
    stacked = VonMisesFisher.fit(torch.stack([x, -x]))
    torch.testing.assert_close(stacked.loc[0], -stacked.loc[1])


def test_fit_tight_clusters_keep_their_concentration():
    x = law(8, 1e12).sample((1000,), generator=generator(3))
    assert VonMisesFisher.fit(x).concentration.item() == pytest.approx(1e12, rel=0.1)
    same = directions(1, 8).expand(5, 8)
    for dtype in (F64, torch.float32):
        q = VonMisesFisher.fit(same.to(dtype))
        assert math.isfinite(q.concentration)
        assert q.concentration > 1 / torch.finfo(dtype).eps
        assert torch.isfinite(q.log_prob(same.to(dtype))).all()


def test_fit_of_balanced_points_is_uniform():
    x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=F64, requires_grad=True)
    q = VonMisesFisher.fit(x)
    assert q.concentration == 0
    assert q.loc.norm() == 1


def test_gradients_of_fit_in_data_and_weights():
    x = law(4, 2.0).sample((6,), generator=generator(1)).requires_grad_()
    w = torch.rand(6, dtype=F64, generator=generator(2)).requires_grad_()

    def concentration(x, w):
        return VonMisesFisher.fit(torch.nn.functional.normalize(x, dim=-1), w).concentration

    assert gradcheck(concentration, (x, w))
    assert gradgradcheck(concentration, (x, w))


def test_fit_concentration_ends_and_kinds():
    ends = fit_concentration(torch.tensor([0.0, 1.0], dtype=F64), 7)
    assert ends.tolist() == [0, math.inf]
    array = fit_concentration(np.array([0.1, 0.5], np.float32), 3)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    assert fit_concentration(0.5, 3).dtype == np.float64
    assert fit_concentration(torch.tensor([0.5]), 3).dtype == torch.float32
    assert fit_concentration(torch.empty(0, 2), 3).shape == (0, 2)
    for r in (1e-300, 5e-324, 1e-9, 1 - 2.0**-53):
        kappa = fit_concentration(r, 3)
        assert math.isfinite(kappa)
        assert kappa > 0


@pytest.mark.parametrize("dim", [2, 64, 32768])
@pytest.mark.parametrize("rbar", [1e-9, 0.3, 0.9, 1 - 1e-9])
def test_gradient_of_fit_is_the_inverse_slope(dim, rbar):
    r = torch.tensor(rbar, dtype=F64, requires_grad=True)
    kappa = fit_concentration(r, dim)
    (gradient,) = torch.autograd.grad(kappa, r)
    slope = resultant(kappa.detach(), dim).slope
    assert gradient.item() == pytest.approx(1 / slope.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("dtype", "weight"), [(torch.float32, 1e37), (F64, 1e307), (F64, 1e-310), (F64, 1.0)]
)
def test_only_ratios_of_weights_count(dtype, weight):
    """100 weights whose sum is beyond the largest number, or so small that they lose digits."""
    x = law(5, 4.0).sample((100,), generator=generator(1)).to(dtype)
    weights = torch.full((100,), weight, dtype=dtype, requires_grad=True)
    got, want = VonMisesFisher.fit(x, weights), VonMisesFisher.fit(x)
    torch.testing.assert_close(got.loc, want.loc)
    torch.testing.assert_close(got.concentration, want.concentration)
