"""The laws on the sphere and their divergences: ball arithmetic, SciPy, quadrature."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    kl_divergence,
)

from curvkern import _autograd, _runtime
from curvkern.distributions import (
    HypersphericalUniform,
    VonMisesFisher,
    fit_concentration,
)
from curvkern.distributions._concentration import resultant
from spherical import (
    EPS,
    F64,
    SIGMAS,
    TABLE,
    assert_relative,
    at_pole,
    by_dim,
    column,
    directions,
    generator,
    law,
)

# --- tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "rows"), by_dim(TABLE["forward"]))
def test_resultant_against_table(dim, rows):
    at = resultant(column(rows, "kappa"), dim)
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
    # log C can be small beside kappa A, its change by one relative unit of kappa
    exact = column(rows, "log_normalizer")
    scale = (
        torch.maximum(exact.abs(), kappa).clamp_min(abs(uniform.entropy().item())).clamp_min(1)
    )
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
    torch.testing.assert_close(
        p.log_prob(x), torch.from_numpy(rival.logpdf(x.numpy())), rtol=1e-11, atol=1e-11
    )
    assert p.entropy().item() == pytest.approx(rival.entropy(), rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("dim", [2, 3, 10, 500])
@pytest.mark.parametrize("kappa", [0.0, 0.7, 40.0, 2000.0])
def test_density_integrates_to_one(dim, kappa):
    p = law(dim, kappa)
    normal = directions(dim, seed=3)
    normal = torch.nn.functional.normalize(normal - (normal @ p.loc) * p.loc, dim=0)
    ring = (
        -HypersphericalUniform(dim - 1).log_prob(torch.eye(dim - 1)[0])
        if dim > 2
        else math.log(2)
    )

    def integrand(angle):
        x = math.cos(angle) * p.loc + math.sin(angle) * normal
        return math.exp(p.log_prob(x) + float(ring) + (dim - 2) * math.log(math.sin(angle)))

    n = dim - 2
    mode = math.acos(2 * kappa / (n + math.hypot(n, 2 * kappa))) if n or kappa else 1.0
    total, _ = scipy.integrate.quad(
        integrand,
        1e-12,
        math.pi - 1e-12,
        limit=400,
        points=[mode, mode / 2, min(mode + 0.1, 3.0)],
    )
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
    """At an angle of 1e-4 on the circle: kappa (cos a - 1) - log(2 pi I_0(kappa) e^-kappa)."""
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


# --- gradients --------------------------------------------------------------------------------


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
    ids=[
        "entropy",
        "log_normalizer",
        "mean",
        "variance",
        "kl_uniform",
        "kl_from_uniform",
        "kl_near",
        "kl_far",
        "fit_low",
        "fit_high",
    ],
)
def test_gradients_in_the_concentration(function):
    assert gradcheck(function, kappas(), eps=1e-7, atol=1e-6, rtol=1e-4)
    assert gradgradcheck(function, kappas(), eps=1e-7, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("dim", [2, 3, 64])
def test_second_derivatives_at_concentration_zero(dim, dtype):
    """F = k^2 / 2d - k^4 / 4d^2 (d + 2) + ..., and what follows for everything made of F."""
    pole, across = torch.eye(dim, dtype=dtype)[:2]
    uniform = HypersphericalUniform(dim, dtype=dtype)

    def at(kappa):
        return VonMisesFisher(pole, kappa)

    quartic = 1 / (dim**2 * (dim + 2))
    wanted = {
        "entropy": (lambda k: at(k).entropy(), -1 / dim),
        "log_normalizer": (lambda k: at(k).log_normalizer, -1 / dim),
        "log_prob": (lambda k: at(k).log_prob(across), -1 / dim),
        "mean": (lambda k: at(k).mean[0], 0.0),
        "along": (lambda k: at(k).variance[0], -6 * quartic),
        "across": (lambda k: at(k).variance[1], -2 * quartic),
        "covariance": (lambda k: at(k).covariance_matrix[0, 0], -6 * quartic),
        "to uniform": (lambda k: kl_divergence(at(k), uniform), 1 / dim),
        "from uniform": (lambda k: kl_divergence(uniform, at(k)), 1 / dim),
        "kl, first": (lambda k: kl_divergence(at(k), VonMisesFisher(across, 2.0)), 1 / dim),
        "kl, second": (lambda k: kl_divergence(VonMisesFisher(across, 2.0), at(k)), 1 / dim),
    }
    got = {name: second_derivative(f, 0.0, dtype) for name, (f, _) in wanted.items()}
    assert got == pytest.approx(
        {name: value for name, (_, value) in wanted.items()}, rel=2e-6, abs=1e-12
    )


def second_derivative(function, at, dtype):
    k = torch.tensor(at, dtype=dtype, requires_grad=True)
    (first,) = torch.autograd.grad(function(k), k, create_graph=True)
    return torch.autograd.grad(first, k)[0].item()


def test_gradients_of_log_prob_are_those_of_the_cosine():
    loc, x = directions(3, 4).requires_grad_(), directions(3, 4, seed=1).requires_grad_()
    kappa = torch.tensor([0.2, 3.0, 50.0], dtype=F64, requires_grad=True)
    p = VonMisesFisher(loc, kappa)
    in_loc, in_x = torch.autograd.grad(p.log_prob(x).sum(), (loc, x))
    torch.testing.assert_close(in_loc, kappa[:, None] * x)
    torch.testing.assert_close(in_x, kappa[:, None] * loc)
    assert gradcheck(lambda k: VonMisesFisher(loc, k).log_prob(x), kappa)
    assert gradgradcheck(lambda k: VonMisesFisher(loc, k).log_prob(x), kappa)


@pytest.mark.parametrize("method", ["log_prob", "entropy", "kl"])
def test_compiled_whole(method, monkeypatch):
    # The compiler turns this off for the rest of the process.
    monkeypatch.setattr(Distribution, "_validate_args", True)
    loc, x = directions(2, 5), directions(2, 5, seed=1)

    def compute(kappa):
        p = VonMisesFisher(loc, kappa)
        if method == "kl":
            return kl_divergence(p, VonMisesFisher(x, 2.0))
        return p.log_prob(x) if method == "log_prob" else p.entropy()

    kappa = torch.tensor([0.5, 30.0], dtype=F64)
    got = torch.compile(compute, fullgraph=True, backend="aot_eager")(kappa)
    torch.testing.assert_close(got, compute(kappa))


def test_torch_func_transforms():
    k = kappas().detach()
    x = directions(4, 5)
    loc = directions(5, seed=3)

    def log_prob(kappa, point):
        return VonMisesFisher(loc, kappa, validate_args=False).log_prob(point)

    batched = torch.func.vmap(torch.func.grad(log_prob))(k, x)
    single = torch.stack([torch.func.grad(log_prob)(a, b) for a, b in zip(k, x, strict=True)])
    want = (x @ loc) - resultant(k, 5).mean
    torch.testing.assert_close(batched, want)
    torch.testing.assert_close(single, want)

    def divergence(kappa):
        return kl_divergence(VonMisesFisher(loc, kappa), VonMisesFisher(-loc, 2.0))

    torch.testing.assert_close(
        torch.func.vmap(divergence)(k), torch.stack([divergence(a) for a in k])
    )

    def draw(kappa):
        return VonMisesFisher(loc, kappa).rsample(generator=generator(1))

    _, tangent = torch.func.jvp(draw, (k[2],), (torch.ones((), dtype=F64),))
    torch.testing.assert_close(tangent, torch.func.jacrev(draw)(k[2]))


def log_prob(loc, kappa, x):
    return VonMisesFisher(loc, kappa, validate_args=False).log_prob(x)


def laws_and_points():
    loc, x = directions(4, 5).requires_grad_(), directions(4, 5, seed=1).requires_grad_()
    return loc, kappas(), x


def test_log_prob_compiles_to_one_graph(monkeypatch):
    # torch's tracer turns the default off for the whole process; undone after the test.
    monkeypatch.setattr(Distribution, "_validate_args", Distribution._validate_args)
    inputs = laws_and_points()
    torch.compiler.reset()
    compiled = torch.compile(log_prob, fullgraph=True, backend="aot_eager")(*inputs)
    plain = log_prob(*inputs)
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close(
        torch.autograd.grad(compiled.sum(), inputs), torch.autograd.grad(plain.sum(), inputs)
    )


def test_reference_backend(monkeypatch):
    def everything():
        loc, kappa, x = laws_and_points()
        p = VonMisesFisher(loc, kappa)
        values = (p.log_prob(x), p.entropy(), p.mean, p.rsample(generator=generator(1)))
        fitted = VonMisesFisher.fit(x.detach())
        slopes = torch.autograd.grad(sum(value.sum() for value in values), (loc, kappa, x))
        return [*values, fitted.loc, fitted.concentration, *slopes]

    native = everything()
    monkeypatch.setattr(_runtime, "_BACKEND", "reference")
    monkeypatch.setattr(_autograd, "elementwise", None)  # the compiled way is closed
    torch.testing.assert_close(everything(), native, rtol=1e-9, atol=1e-10)


# --- divergences ------------------------------------------------------------------------------


@pytest.mark.parametrize(("k1", "k2"), [(3.0, 5.0), (20.0, 0.5), (0.4, 25.0)])
def test_kl_by_monte_carlo(k1, k2):
    p, q = law(5, k1), law(5, k2, seed=1)
    x = p.sample((50_000,), generator=generator(6))
    gap = p.log_prob(x) - q.log_prob(x)
    assert abs(gap.mean() - kl_divergence(p, q)) < SIGMAS * gap.std() / math.sqrt(len(x))


@pytest.mark.parametrize("dim", [2, 7, 2048, 32768])
def test_kl_of_neighbours_is_the_fisher_form(dim):
    """KL -> (dk)^2 A' / 2, far below the rounding of the terms it is made of."""
    for kappa in (1e-6, 1.0, 50.0, 1e5, 1e8):
        p, q = at_pole(dim, torch.tensor([kappa], dtype=F64)), None
        q = at_pole(dim, torch.tensor([kappa * (1 + 2.0**-30)], dtype=F64))
        step = (q.concentration - p.concentration).item()
        fisher = resultant(p.concentration, dim).slope.item()
        assert kl_divergence(p, q).item() == pytest.approx(step**2 * fisher / 2, rel=1e-8)
        assert kl_divergence(p, p).item() == 0


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
    torch.testing.assert_close(
        p.log_prob(x).double(), wide.log_prob(x.double()), rtol=scale, atol=scale
    )
    assert VonMisesFisher.fit(x).concentration.dtype == dtype


def test_concentrations_of_any_kind():
    loc = directions(3)
    want = VonMisesFisher(loc, 2.0).entropy()
    for two in (2, Fraction(2), np.float64(2), torch.tensor(2), torch.tensor(2, dtype=F64)):
        p = VonMisesFisher(loc, two)
        assert p.concentration.dtype == F64
        assert p.entropy() == want


def test_how_laws_and_constraints_print():
    uniform = HypersphericalUniform(3)
    assert repr(uniform) == "HypersphericalUniform(dim: 3)"
    assert repr(uniform.expand((2,))) == "HypersphericalUniform(dim: 3, batch_shape: (2,))"
    assert repr(uniform.support) == "UnitVector()"
    kappa = VonMisesFisher.arg_constraints["concentration"]
    assert repr(kappa) == "FiniteNonnegative()"


def test_meta_tensors_give_shapes():
    p = VonMisesFisher(directions(4, 3).to("meta"), 1.0)
    assert p.entropy().shape == p.log_prob(torch.empty(4, 3, device="meta")).shape == (4,)
