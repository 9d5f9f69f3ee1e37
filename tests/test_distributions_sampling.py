"""Samples on the sphere: goodness of fit, moments, reparameterised gradients (fixed seeds)."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from curvkern.distributions import (
    HypersphericalUniform,
    VonMisesFisher,
    _sampling,
)
from curvkern.distributions._concentration import resultant
from spherical import (
    F64,
    SIGMAS,
    directions,
    generator,
    law,
)

# --- samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dim", "kappa"),
    [(2, 0.0), (2, 0.5), (2, 1e8), (3, 1e-12), (3, 4.0), (16, 30.0), (1000, 1e-3), (1000, 5e3)],
)
def test_samples_follow_the_law(dim, kappa):
    """Kolmogorov-Smirnov in the cosine, and every direction around the mean alike."""
    n = 20_000 if dim < 100 else 2000
    p = law(dim, kappa)
    x = p.sample((n,), generator=generator(7))
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-14
    angle = 2 * torch.asin((x - p.loc).norm(dim=-1).clamp_max(2) / 2)

    grid = np.linspace(0, 1, 40_001) * min(math.pi, float(angle.max()) * 1.5)
    s = grid[1:-1]
    log_f = -2 * kappa * np.sin(s / 2) ** 2 + (dim - 2) * np.log(np.sin(s))
    f = np.concatenate([[float(dim == 2)], np.exp(log_f - log_f.max() * (dim > 2)), [0]])
    cdf = scipy.integrate.cumulative_trapezoid(f, grid, initial=0)
    result = scipy.stats.kstest(angle.numpy(), lambda a: np.interp(a, grid, cdf / cdf[-1]))
    assert result.pvalue > 1e-4

    probe = directions(5, dim, seed=5)
    across = probe - (probe @ p.loc)[:, None] * p.loc
    spread = (x @ across.T).mean(0) / ((x @ across.T).std(0) / math.sqrt(n))
    assert spread.abs().max() < SIGMAS


@pytest.mark.parametrize("dim", [2, 3, 40])
def test_sample_moments_match_mean_and_covariance(dim):
    p = law(dim, 6.0)
    x = p.sample((40_000,), generator=generator(11))
    error = (x.mean(0) - p.mean) / (p.stddev / math.sqrt(len(x)))
    assert error.abs().max() < SIGMAS
    torch.testing.assert_close(p.covariance_matrix.diagonal(), p.variance)
    torch.testing.assert_close(torch.cov(x.T), p.covariance_matrix, rtol=0, atol=0.015)
    assert p.covariance_matrix.trace().item() == pytest.approx(1 - p.mean.square().sum().item())


def test_high_dimension_samples():
    p = law(32768, 2e4)
    x = p.sample((200,), generator=generator(1))
    at = resultant(p.concentration, 32768)
    assert abs((x @ p.loc).mean() - at.mean) < SIGMAS * (at.slope / 200).sqrt()


def test_uniform_samples():
    x = HypersphericalUniform(4, dtype=F64).sample((40_000,), generator=generator(3))
    assert x.mean(0).abs().max() < SIGMAS * math.sqrt(0.25 / len(x))
    torch.testing.assert_close(torch.cov(x.T), torch.eye(4, dtype=F64) / 4, rtol=0, atol=0.01)


@pytest.mark.parametrize("make", [lambda: law(5, 3.0), lambda: HypersphericalUniform(5)])
def test_generator_reproduces_and_leaves_the_global_one(make):
    before = torch.random.get_rng_state()
    first, second = (make().sample((6,), generator=generator(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


# --- gradients --------------------------------------------------------------------------------


def closed_form_angle(u, kappa):
    """Quantile of the angle at d = 3: its cosine is 1 + log(1 - u (1 - e^-2k)) / k."""
    return torch.acos(1 + torch.log1p(u * torch.expm1(-2 * kappa)) / kappa)


@pytest.mark.parametrize("kappa", [0.3, 5.0, 80.0])
def test_implicit_derivatives_of_the_angle_in_three_dimensions(kappa):
    u = torch.linspace(0.02, 0.98, 13, dtype=F64)
    k = torch.full_like(u, kappa).requires_grad_()
    derivatives = []
    exact = closed_form_angle(u, k)
    for theta in (exact, _sampling.ImplicitAngle.apply(exact.detach(), k, 3)):
        (first,) = torch.autograd.grad(theta.sum(), k, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), k)
        derivatives.append((first.detach(), second))
    torch.testing.assert_close(*(d[0] for d in derivatives), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*(d[1] for d in derivatives), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("dim", [2, 4, 300])
@pytest.mark.parametrize("kappa", [0.0, 0.5, 30.0, 3000.0])
def test_implicit_derivative_of_the_angle_by_quadrature(dim, kappa):
    k = torch.full((6,), kappa, dtype=F64)
    theta = _sampling.sample_angle(k, dim, generator(4))
    mean = resultant(k[0], dim).mean.item()
    for t, got in zip(
        theta.tolist(), _sampling.angle_slope(theta, k, dim).tolist(), strict=True
    ):

        def integrand(s, t=t):
            ratio = (dim - 2) * math.log(math.sin(s) / math.sin(t)) if dim > 2 else 0.0
            return (math.cos(s) - mean) * math.exp(kappa * (math.cos(s) - math.cos(t)) + ratio)

        left, _ = scipy.integrate.quad(integrand, 1e-300, t, epsabs=0, epsrel=1e-10, limit=500)
        assert got == pytest.approx(-left, rel=1e-7)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("dim", [2, 3, 64])
def test_second_derivative_of_rsample_at_concentration_zero(dim, dtype):
    """It is that of the neighbourhood, backward and forward over backward."""

    def draw(kappa):
        p = VonMisesFisher(torch.eye(dim, dtype=dtype)[0], kappa, validate_args=False)
        return p.rsample(generator=generator(1))[0]

    at, near = (torch.tensor(k, dtype=dtype, requires_grad=True) for k in (0.0, 1e-6))
    second = []
    for k in (at, near):
        (first,) = torch.autograd.grad(draw(k), k, create_graph=True)
        second.append(torch.autograd.grad(first, k)[0])
    torch.testing.assert_close(*second, rtol=1e-5, atol=1e-7)
    gradient = torch.func.grad(draw)
    _, forward = torch.func.jvp(gradient, (at.detach(),), (torch.ones((), dtype=dtype),))
    torch.testing.assert_close(forward, second[0])


@pytest.mark.parametrize("dim", [2, 3, 20])
def test_rsample_gradients_are_unbiased(dim):
    """E mu.x = A has the derivative A' in kappa, E a.x = A a.mu the derivative A a in mu."""
    n = 20_000
    mu, a = directions(dim), directions(dim, seed=9)
    kappa = torch.full((n,), 4.0, dtype=F64, requires_grad=True)
    raw = mu.expand(n, dim).clone().requires_grad_()
    loc = raw / raw.norm(dim=-1, keepdim=True)
    x = VonMisesFisher(loc, kappa).rsample(generator=generator(8))
    at = resultant(torch.tensor(4.0, dtype=F64), dim)

    (in_kappa,) = torch.autograd.grad((x * mu).sum(), kappa, retain_graph=True)
    assert abs(in_kappa.mean() - at.slope) < SIGMAS * in_kappa.std() / math.sqrt(n)
    (in_loc,) = torch.autograd.grad((x * a).sum(), raw)
    want = at.mean * (a - (a @ mu) * mu)
    error = (in_loc.mean(0) - want).abs()
    assert (error <= SIGMAS * in_loc.std(0) / math.sqrt(n) + 1e-12).all()
