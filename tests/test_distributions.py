"""VonMisesFisher, HypersphericalUniform and their divergences against tables in ball arithmetic,
SciPy, quadrature and Monte Carlo (fixed seeds; thresholds of 5 standard errors)."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Categorical, Independent, MixtureSameFamily, kl_divergence

from curvkern import _vmf
from curvkern.distributions import HypersphericalUniform, VonMisesFisher, fit_concentration

TABLE = json.loads((Path(__file__).parent / "data" / "vmf.json").read_text())
EPS = 2.0**-52
F64 = torch.float64
SIGMAS = 5.0


def generator(seed):
    return torch.Generator().manual_seed(seed)


def directions(*shape, seed=0, dtype=F64):
    z = torch.randn(*shape, dtype=dtype, generator=generator(seed))
    return z / z.norm(dim=-1, keepdim=True)


def law(dim, kappa, seed=0, **kwargs):
    return VonMisesFisher(directions(dim, seed=seed), torch.tensor(kappa, dtype=F64), **kwargs)


def column(rows, key):
    return torch.tensor([row[key] for row in rows], dtype=F64)


def by_dim(rows):
    dims = sorted({row["d"] for row in rows})
    return [pytest.param(d, [r for r in rows if r["d"] == d], id=f"d={d}") for d in dims]


def at_pole(dim, kappa):
    """A batch of laws about e_1."""
    loc = torch.zeros(len(kappa), dim, dtype=F64)
    loc[:, 0] = 1
    return VonMisesFisher(loc, kappa)


def assert_relative(got, want, bound):
    error = ((got - want) / want).abs().max().item() / EPS
    assert error <= bound, f"{error:.1f} eps, allowed {bound}"


# --- tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "rows"), by_dim(TABLE["fit"]))
def test_fit_concentration_against_table(dim, rows):
    kappa = fit_concentration(column(rows, "Rbar"), dim)
    condition = column(rows, "cond").clamp_min(1)
    assert_relative(kappa / condition, column(rows, "kappa") / condition, 4)


@pytest.mark.parametrize(("dim", "rows"), by_dim(TABLE["forward"]))
def test_resultant_against_table(dim, rows):
    at = _vmf.resultant(column(rows, "kappa"), dim)
    assert_relative(at.mean, column(rows, "A"), 6)
    assert_relative(at.complement, column(rows, "one_minus_A"), 6)
    assert_relative(at.slope, column(rows, "dA"), 12)
    assert_relative(at.quotient, column(rows, "A") / column(rows, "kappa"), 6)


@pytest.mark.parametrize(("dim", "rows"), by_dim(TABLE["forward"] + TABLE["fit"]))
def test_entropy_normalizer_and_kl_to_uniform_against_table(dim, rows):
    kappa = column(rows, "kappa")
    p, uniform = at_pole(dim, kappa), HypersphericalUniform(dim, dtype=F64)
    assert_relative(kl_divergence(p, uniform), column(rows, "kl_uniform"), 24)
    entropy = column(rows, "entropy")
    assert ((p.entropy() - entropy).abs() <= 16 * EPS * entropy.abs().clamp_min(1)).all()
    # log C can be small beside its own condition number kappa A, the change by one relative unit
    exact = column(rows, "log_normalizer")
    scale = torch.maximum(exact.abs(), kappa).clamp_min(abs(uniform.entropy().item())).clamp_min(1)
    assert ((p.log_normalizer - exact).abs() <= 8 * EPS * scale).all()


@pytest.mark.parametrize(("dim", "rows"), by_dim(TABLE["kl"]))
def test_kl_between_laws_against_table(dim, rows):
    p = at_pole(dim, column(rows, "kappa1"))
    loc = torch.zeros_like(p.loc)
    loc[:, 0] = column(rows, "cos")
    loc[:, 1] = ((1 - loc[:, 0]) * (1 + loc[:, 0])).sqrt()
    got = kl_divergence(p, VonMisesFisher(loc, column(rows, "kappa2")))
    assert_relative(got, column(rows, "kl"), 32)


# --- densities --------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 5, 64])
@pytest.mark.parametrize("kappa", [0.1, 3.0, 250.0])
def test_log_prob_and_entropy_against_scipy(dim, kappa):
    p = law(dim, kappa)
    x = p.sample((50,), generator=generator(1))
    rival = scipy.stats.vonmises_fisher(p.loc.numpy(), kappa)
    torch.testing.assert_close(p.log_prob(x), torch.from_numpy(rival.logpdf(x.numpy())),
                               rtol=1e-11, atol=1e-11)
    assert p.entropy().item() == pytest.approx(rival.entropy(), rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("dim", [2, 3, 10, 500])
@pytest.mark.parametrize("kappa", [0.0, 0.7, 40.0, 2000.0])
def test_density_integrates_to_one(dim, kappa):
    p = law(dim, kappa)
    normal = directions(dim, seed=3)
    normal = torch.nn.functional.normalize(normal - (normal @ p.loc) * p.loc, dim=0)
    ring = -HypersphericalUniform(dim - 1).log_prob(torch.eye(dim - 1)[0]) if dim > 2 else math.log(2)

    def integrand(angle):
        x = math.cos(angle) * p.loc + math.sin(angle) * normal
        return math.exp(p.log_prob(x) + float(ring) + (dim - 2) * math.log(math.sin(angle)))

    n = dim - 2
    mode = math.acos(2 * kappa / (n + math.hypot(n, 2 * kappa))) if n or kappa else 1.0
    total, _ = scipy.integrate.quad(integrand, 1e-12, math.pi - 1e-12, limit=400,
                                    points=[mode, mode / 2, min(mode + 0.1, 3.0)])
    # float32 noise of `ring`, which comes in the default dtype, is the largest error
    assert total == pytest.approx(1, rel=2e-6 * max(1, abs(float(ring))))


@pytest.mark.parametrize("dim", [2, 3, 32768])
def test_vanishing_concentration_is_uniform(dim):
    uniform = HypersphericalUniform(dim, dtype=F64)
    x = directions(4, dim)
    for kappa in (0.0, 1e-12):
        p = law(dim, kappa)
        torch.testing.assert_close(p.log_prob(x), uniform.log_prob(x), rtol=1e-12, atol=2e-12)
        assert p.entropy().item() == pytest.approx(uniform.entropy().item(), rel=4 * EPS)
    p = law(dim, 1e-12)
    assert kl_divergence(p, uniform).item() == pytest.approx(0.5e-24 / dim, rel=8 * EPS)
    assert kl_divergence(uniform, p).item() == pytest.approx(0.5e-24 / dim, rel=8 * EPS)
    zero = law(dim, 0.0)
    assert kl_divergence(zero, uniform) == kl_divergence(uniform, zero) == 0
    torch.testing.assert_close(zero.variance, torch.full((dim,), 1 / dim, dtype=F64))


@pytest.mark.parametrize(("dtype", "bound"), [(F64, 1e-13), (torch.float32, 1e-4)])
def test_log_prob_keeps_its_digits_at_high_concentration(dtype, bound):
    """On the circle log p = kappa (cos a - 1) - log 2 pi I_0(kappa) e^-kappa, at an angle of 1e-4."""
    kappa = 1e8
    loc = torch.tensor([1.0, 0.0], dtype=dtype)
    x = torch.tensor([1.0, 1e-4], dtype=dtype)
    tail = -0.5 * math.log(2 * math.pi / kappa) - math.log1p(1 / (8 * kappa))
    exact = -kappa / 2 * float(x[1]) ** 2 + tail
    assert VonMisesFisher(loc, kappa).log_prob(x).item() == pytest.approx(exact, rel=bound)


def test_log_prob_is_kappa_times_cosine_plus_normalizer():
    p = VonMisesFisher(directions(4, 7), torch.tensor([0.0, 1e-3, 5.0, 300.0], dtype=F64))
    x = directions(9, 4, 7, seed=2)
    direct = p.concentration * (x * p.loc).sum(-1) + p.log_normalizer
    torch.testing.assert_close(p.log_prob(x), direct, rtol=1e-12, atol=1e-12)


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
    at = _vmf.resultant(p.concentration, 32768)
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
    """Quantile of the angle on the sphere of R^3: cos = 1 + log(1 - u (1 - e^{-2 kappa})) / kappa."""
    return torch.acos(1 + torch.log1p(u * torch.expm1(-2 * kappa)) / kappa)


@pytest.mark.parametrize("kappa", [0.3, 5.0, 80.0])
def test_implicit_derivatives_of_the_angle_in_three_dimensions(kappa):
    u = torch.linspace(0.02, 0.98, 13, dtype=F64)
    k = torch.full_like(u, kappa).requires_grad_()
    derivatives = []
    exact = closed_form_angle(u, k)
    for theta in (exact, _vmf.ImplicitAngle.apply(exact.detach(), k, 3)):
        (first,) = torch.autograd.grad(theta.sum(), k, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), k)
        derivatives.append((first.detach(), second))
    torch.testing.assert_close(*(d[0] for d in derivatives), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*(d[1] for d in derivatives), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("dim", [2, 4, 300])
@pytest.mark.parametrize("kappa", [0.0, 0.5, 30.0, 3000.0])
def test_implicit_derivative_of_the_angle_by_quadrature(dim, kappa):
    k = torch.full((6,), kappa, dtype=F64)
    theta = _vmf.sample_angle(k, dim, generator(4))
    mean = _vmf.resultant(k[0], dim).mean.item()
    for t, got in zip(theta.tolist(), _vmf.angle_slope(theta, k, dim).tolist(), strict=True):

        def integrand(s, t=t):
            ratio = (dim - 2) * math.log(math.sin(s) / math.sin(t)) if dim > 2 else 0.0
            return (math.cos(s) - mean) * math.exp(kappa * (math.cos(s) - math.cos(t)) + ratio)

        left, _ = scipy.integrate.quad(integrand, 1e-300, t, epsabs=0, epsrel=1e-10, limit=500)
        assert got == pytest.approx(-left, rel=1e-7)


@pytest.mark.parametrize("dim", [2, 3, 20])
def test_rsample_gradients_are_unbiased(dim):
    """E mu.x = A, so the mean gradient in kappa is A'; E a.x = A a.mu, so the one in mu is A a."""
    n = 20_000
    mu, a = directions(dim), directions(dim, seed=9)
    kappa = torch.full((n,), 4.0, dtype=F64, requires_grad=True)
    raw = mu.expand(n, dim).clone().requires_grad_()
    loc = raw / raw.norm(dim=-1, keepdim=True)
    x = VonMisesFisher(loc, kappa).rsample(generator=generator(8))
    at = _vmf.resultant(torch.tensor(4.0, dtype=F64), dim)

    (in_kappa,) = torch.autograd.grad((x * mu).sum(), kappa, retain_graph=True)
    assert abs(in_kappa.mean() - at.slope) < SIGMAS * in_kappa.std() / math.sqrt(n)
    (in_loc,) = torch.autograd.grad((x * a).sum(), raw)
    want = at.mean * (a - (a @ mu) * mu)
    error = (in_loc.mean(0) - want).abs()
    assert (error <= SIGMAS * in_loc.std(0) / math.sqrt(n) + 1e-12).all()


def kappas():
    return torch.tensor([1e-3, 0.8, 9.0, 70.0], dtype=F64, requires_grad=True)


@pytest.mark.parametrize(
    "function",
    [
        lambda k: at_pole(5, k).entropy(),
        lambda k: at_pole(5, k).log_normalizer,
        lambda k: at_pole(5, k).mean[:, 0],
        lambda k: at_pole(5, k).variance,
        lambda k: kl_divergence(at_pole(5, k), HypersphericalUniform(5)),
        lambda k: kl_divergence(HypersphericalUniform(5), at_pole(5, k)),
        lambda k: kl_divergence(at_pole(5, k), at_pole(5, 1.2 * k + 1)),
        lambda k: kl_divergence(at_pole(5, 7.0 * k), at_pole(5, k)),
        lambda k: fit_concentration(k / 100, 5),
        lambda k: fit_concentration(1 - k / 100, 5),
    ],
    ids=["entropy", "log_normalizer", "mean", "variance", "kl_uniform", "kl_from_uniform",
         "kl_near", "kl_far", "fit_low", "fit_high"],
)
def test_gradients_in_the_concentration(function):
    assert gradcheck(function, kappas(), eps=1e-7, atol=1e-6, rtol=1e-4)
    assert gradgradcheck(function, kappas(), eps=1e-7, atol=1e-5, rtol=1e-3)


def test_gradients_of_log_prob_are_those_of_the_cosine():
    loc, x = directions(3, 4).requires_grad_(), directions(3, 4, seed=1).requires_grad_()
    kappa = torch.tensor([0.2, 3.0, 50.0], dtype=F64, requires_grad=True)
    p = VonMisesFisher(loc, kappa)
    in_loc, in_x = torch.autograd.grad(p.log_prob(x).sum(), (loc, x))
    torch.testing.assert_close(in_loc, kappa[:, None] * x)
    torch.testing.assert_close(in_x, kappa[:, None] * loc)
    assert gradcheck(lambda k: VonMisesFisher(loc, k).log_prob(x), kappa)
    assert gradgradcheck(lambda k: VonMisesFisher(loc, k).log_prob(x), kappa)


@pytest.mark.parametrize("dim", [2, 64, 32768])
@pytest.mark.parametrize("rbar", [1e-9, 0.3, 0.9, 1 - 1e-9])
def test_gradient_of_fit_is_the_inverse_slope(dim, rbar):
    r = torch.tensor(rbar, dtype=F64, requires_grad=True)
    kappa = fit_concentration(r, dim)
    (gradient,) = torch.autograd.grad(kappa, r)
    slope = _vmf.resultant(kappa.detach(), dim).slope
    assert gradient.item() == pytest.approx(1 / slope.item(), rel=1e-9)


def test_torch_func_transforms():
    k = kappas().detach()
    x = directions(4, 5)
    loc = directions(5, seed=3)

    def log_prob(kappa, point):
        return VonMisesFisher(loc, kappa, validate_args=False).log_prob(point)

    batched = torch.func.vmap(torch.func.grad(log_prob))(k, x)
    single = torch.stack([torch.func.grad(log_prob)(a, b) for a, b in zip(k, x, strict=True)])
    want = (x @ loc) - _vmf.resultant(k, 5).mean
    torch.testing.assert_close(batched, want)
    torch.testing.assert_close(single, want)

    def draw(kappa):
        return VonMisesFisher(loc, kappa).rsample(generator=generator(1))

    _, tangent = torch.func.jvp(draw, (k[2],), (torch.ones((), dtype=F64),))
    torch.testing.assert_close(tangent, torch.func.jacrev(draw)(k[2]))


# --- divergences ------------------------------------------------------------------------------


@pytest.mark.parametrize(("k1", "k2"), [(3.0, 5.0), (20.0, 0.5), (0.4, 25.0)])
def test_kl_by_monte_carlo(k1, k2):
    p, q = law(5, k1), law(5, k2, seed=1)
    x = p.sample((50_000,), generator=generator(6))
    gap = p.log_prob(x) - q.log_prob(x)
    assert abs(gap.mean() - kl_divergence(p, q)) < SIGMAS * gap.std() / math.sqrt(len(x))


@pytest.mark.parametrize("dim", [2, 7, 2048, 32768])
def test_kl_of_neighbours_is_the_fisher_form(dim):
    """KL -> (dk)^2 A' / 2, far below the rounding of the terms it is made of; and never negative."""
    for kappa in (1e-6, 1.0, 50.0, 1e5, 1e8):
        p, q = at_pole(dim, torch.tensor([kappa], dtype=F64)), None
        q = at_pole(dim, torch.tensor([kappa * (1 + 2.0**-30)], dtype=F64))
        step = (q.concentration - p.concentration).item()
        fisher = _vmf.resultant(p.concentration, dim).slope.item()
        assert kl_divergence(p, q).item() == pytest.approx(step**2 * fisher / 2, rel=1e-8)
        assert kl_divergence(p, p).item() == 0


# --- fitting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "kappa"), [(2, 3.0), (3, 1e8), (64, 50.0), (2048, 3000.0)])
def test_fit_recovers_the_law(dim, kappa):
    p = law(dim, kappa)
    n = 4000 if dim < 1000 else 500
    q = VonMisesFisher.fit(p.sample((n,), generator=generator(5)))
    at = _vmf.resultant(p.concentration, dim)
    assert abs(q.concentration / kappa - 1) < SIGMAS / (kappa * (n * at.slope).sqrt()) + dim / n / kappa
    assert ((q.loc - p.loc) ** 2).sum() < SIGMAS * dim / (n * kappa * at.mean)


def test_fit_maximises_the_likelihood():
    x = law(6, 4.0).sample((300,), generator=generator(1))
    weights = torch.rand(300, dtype=F64, generator=generator(2))
    q = VonMisesFisher.fit(x, weights)
    raw = torch.cat([q.loc, q.concentration[None]]).requires_grad_()
    fitted = VonMisesFisher(torch.nn.functional.normalize(raw[:-1], dim=0), raw[-1])
    (gradient,) = torch.autograd.grad((weights * fitted.log_prob(x)).sum(), raw)
    assert gradient.abs().max() < 1e-11 * weights.sum()


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


# --- shapes, dtypes, neighbours in torch.distributions ----------------------------------------


def test_shapes_and_expand():
    p = VonMisesFisher(directions(2, 1, 4), torch.rand(3, dtype=F64, generator=generator(1)))
    assert (p.batch_shape, p.event_shape) == ((2, 3), (4,))
    assert p.rsample((5,)).shape == (5, 2, 3, 4)
    assert p.log_prob(directions(5, 1, 1, 4)).shape == (5, 2, 3)
    for statistic in (p.mean, p.mode, p.variance):
        assert statistic.shape == (2, 3, 4)
    assert p.entropy().shape == p.log_normalizer.shape == (2, 3)
    wide = p.expand((6, 2, 3))
    assert wide.sample().shape == (6, 2, 3, 4)
    assert wide.entropy().shape == (6, 2, 3)
    assert p.sample((0,)).shape == (0, 2, 3, 4)
    assert Independent(p, 1).log_prob(p.sample()).shape == (2,)
    u = HypersphericalUniform(4).expand((3,))
    assert u.sample((2,)).shape == (2, 3, 4)
    assert kl_divergence(p, u).shape == (2, 3)


def test_mixture_same_family():
    parts = VonMisesFisher(directions(3, 5), torch.tensor([1.0, 5.0, 20.0], dtype=F64))
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    mixture = MixtureSameFamily(Categorical(weights), parts)
    x = mixture.sample((10,))
    want = torch.logsumexp(parts.log_prob(x[:, None]) + weights.log(), -1)
    torch.testing.assert_close(mixture.log_prob(x), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precisions(dtype):
    loc = directions(16).to(dtype)
    p = VonMisesFisher(loc, torch.tensor(12.0, dtype=dtype))
    x = p.rsample((100,), generator=generator(1))
    assert x.dtype == p.log_prob(x).dtype == p.entropy().dtype == p.mean.dtype == dtype
    wide = VonMisesFisher(loc.double(), 12.0, validate_args=False)
    scale = torch.finfo(dtype).eps * 100
    torch.testing.assert_close(p.log_prob(x).double(), wide.log_prob(x.double()), rtol=scale, atol=scale)
    assert VonMisesFisher.fit(x).concentration.dtype == dtype


# --- refusals ---------------------------------------------------------------------------------

POINT = directions(3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: VonMisesFisher(2 * POINT, 1.0), ValueError, "loc"),
        (lambda: VonMisesFisher(POINT * math.nan, 1.0), ValueError, "loc"),
        (lambda: VonMisesFisher(POINT, -1.0), ValueError, "concentration"),
        (lambda: VonMisesFisher(POINT, math.nan), ValueError, "concentration"),
        (lambda: VonMisesFisher(POINT, math.inf), ValueError, "concentration"),
        (lambda: VonMisesFisher(POINT[:1], 1.0), ValueError, r"loc .* d >= 2, got \(1,\)"),
        (lambda: VonMisesFisher(POINT.expand(2, 3), torch.ones(4)), ValueError, r"\(2,\) .* \(4,\)"),
        (lambda: VonMisesFisher(torch.tensor([1, 0]), 1.0), TypeError, "loc .*torch.int64"),
        (lambda: VonMisesFisher(POINT.to(torch.complex128), 1.0), TypeError, "loc .*complex128"),
        (lambda: VonMisesFisher(POINT, True), TypeError, "concentration .* bool"),
        (lambda: VonMisesFisher(None, 1.0), TypeError, "loc .* NoneType"),
        (lambda: law(3, 1.0).log_prob(2 * POINT), ValueError, "support"),
        (lambda: HypersphericalUniform(1), ValueError, "dim .* at least 2, got 1"),
        (lambda: HypersphericalUniform(2.0), TypeError, "dim .* float"),
        (lambda: fit_concentration(0.5, 1), ValueError, "dim .* at least 2, got 1"),
        (lambda: fit_concentration(1.5, 3), ValueError, r"rbar .* \[0, 1\], got 1.5"),
        (lambda: fit_concentration(math.nan, 3), ValueError, "rbar .* got nan"),
        (lambda: fit_concentration(torch.tensor([0.1, -0.2]), 3), ValueError, "rbar .* got -0.2"),
        (lambda: fit_concentration("0.5", 3), TypeError, "rbar .* str"),
        (lambda: fit_concentration(torch.tensor([True]), 3), TypeError, "rbar .*bool"),
        (lambda: VonMisesFisher.fit(torch.empty(0, 3)), ValueError, "x is empty"),
        (lambda: VonMisesFisher.fit(POINT), ValueError, r"x must have shape .* got \(3,\)"),
        (lambda: VonMisesFisher.fit(3 * POINT[None]), ValueError, "x .* norm 3; normalise"),
        (lambda: VonMisesFisher.fit(POINT[None] * math.nan), ValueError, "x .* norm nan"),
        (lambda: VonMisesFisher.fit(POINT[None], torch.tensor([-0.5])), ValueError,
         "weights must be non-negative, got -0.5"),
        (lambda: VonMisesFisher.fit(POINT[None], torch.tensor([math.nan])), ValueError, "weights .* finite"),
        (lambda: VonMisesFisher.fit(POINT[None], torch.zeros(1)), ValueError, "weights .* positive sum"),
        (lambda: VonMisesFisher.fit(POINT[None], torch.ones(2)), ValueError, r"weights .* \(\.\.\., 1\).*\(2,\)"),
        (lambda: VonMisesFisher.fit(POINT[None], [1.0]), TypeError, "weights .* list"),
        (lambda: kl_divergence(law(3, 1.0), law(4, 1.0)), ValueError, "3 and 4"),
    ],
)
def test_invalid_arguments_are_refused_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()
