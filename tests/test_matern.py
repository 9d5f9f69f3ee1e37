"""matern against Arb, closed forms and limits; derivatives in r, nu and the length scale."""

import math
from fractions import Fraction
from functools import partial

import mpmath as mp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from curvkern import _runtime
from curvkern._check import matern as _check
from curvkern.special import matern
from matern_truth import (
    QUANTITIES,
    balls,
    evaluate,
    exact,
    integral,
    make_matern,
    points,
    worst,
)

EPS = 2.0**-52
F64 = torch.float64
ONE = torch.ones((), dtype=F64)

CLOSED_FORMS = {
    0.5: lambda z: torch.exp(-z),
    1.5: lambda z: (1 + z) * torch.exp(-z),
    2.5: lambda z: (1 + z + z**2 / 3) * torch.exp(-z),
    3.5: lambda z: (1 + z + 2 * z**2 / 5 + z**3 / 15) * torch.exp(-z),
}

#: Largest errors in eps (curvkern._check.matern has the measure) of the table's points where
#: Temme's series serves, from there to the uniform expansion, and in it. Measured were 9.8, 31,
#: 11.1, 156, 51, 11.7; 6.5, 22.4, 6.7, 15.4, 28.4, 5.5; 2.7, 1.6, 2.5, 2.3, 1.8, 1.2 in either
#: dtype, with FMA and without.
BARS = {
    "series": dict(zip(QUANTITIES, (10.5, 33, 12, 165, 54, 12.5), strict=True)),
    "middle": dict(zip(QUANTITIES, (7, 24, 7.2, 17, 31, 6), strict=True)),
    "debye": dict(zip(QUANTITIES, (2.9, 1.7, 2.7, 2.5, 1.9, 1.3), strict=True)),
}
DTYPES = (F64, torch.float32)
TWIN_BARS = (28, 280, 3300, 6e6, 1800, 220)  # of the plain-PyTorch form, in float64


def radii(at, dtype):
    """z; the size of (nu, z) that decides for the uniform expansion; its least value there."""
    z = np.sqrt(2 * at["v"]) * at["x"]
    return z, np.sqrt(z * z + 0.8 * at["v"] ** 2), make_matern.DEBYE[DTYPES.index(dtype)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key", QUANTITIES)
def test_against_the_table(key, dtype):
    at = points(dtype)
    z, radius, expansion = radii(at, dtype)
    got = evaluate(key, *(torch.tensor(at[name], dtype=dtype) for name in ("v", "x")))
    series, debye = z < make_matern.FITS[0], radius >= expansion
    inside = {"series": series, "middle": ~series & ~debye, "debye": debye}
    for form, bars in BARS.items():
        largest, where = worst(got, key, at, inside[form])
        assert largest <= bars[key], where


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_table_has_both_sides_of_every_border(dtype):
    at = points(dtype)
    z, radius, expansion = radii(at, dtype)
    below, size = radius < expansion, np.hypot(at["v"], z)
    tiers = make_matern.TIERS[2:] if dtype is torch.float32 else make_matern.TIERS[:2]
    near = 2.0**-16 if dtype is torch.float32 else 2.0**-48
    borders = [
        *((z[below], border, 6) for border in make_matern.FITS[:2]),
        *((z[below], border, 6) for border in make_matern.FITS[2:] if dtype is F64),
        (radius, expansion, 6),
        *((size, factor * tier, 4) for tier in tiers for factor in (1, make_matern.WIDER)),
        (at["v"][~below], make_matern.STIRLING[DTYPES.index(dtype)], 4),
        (at["v"], make_matern.POWER, 2),
        *((at["v"], half / 2, 3) for half in range(1, 24)),
    ]
    for values, border, count in borders:
        distance = values / border - 1
        close = np.abs(distance) < near
        assert (close & (distance < 0)).sum() >= count, border
        assert (close & (distance >= 0)).sum() >= count, border
    # 2 to minus this is (z/2)^{2(nu-1)}
    vanished = -2 * (at["v"] - 1) * np.log2(z / 2)
    bits = make_matern.VANISHED[DTYPES.index(dtype)]
    for low, high in ((bits - 12, bits), (bits, bits + 12)):
        assert ((low < vanished) & (vanished < high)).sum() > 8


def test_table_agrees_with_the_second_formula():
    at = points(F64)
    for i in np.flatnonzero(at["x"] > 1e-6)[:: len(at["x"]) // 8]:
        with mp.workdps(50):
            for key, want in integral(float(at["v"][i]), float(at["x"][i])).items():
                low = at["value__lo"][i] if key == "value" else 0.0
                bits = 100 if key == "value" else 53
                off = mp.mpf(float(at[key][i])) + mp.mpf(float(low)) - want
                assert abs(off) <= abs(want) * mp.mpf(2) ** -bits


def test_self_test_agrees_with_arb():
    table = _check.table()
    for i in range(0, len(table["v"]), 9):
        for key, ball in balls(float(table["v"][i]), float(table["x"][i])).items():
            assert table[key][i] == float(ball.mid())


@pytest.mark.parametrize(
    ("key", "bar"), zip(QUANTITIES, TWIN_BARS, strict=True), ids=QUANTITIES
)
def test_twin_against_the_table(key, bar, monkeypatch):
    monkeypatch.setattr(_runtime, "_BACKEND", "reference")
    at = points(F64)
    got = evaluate(key, torch.tensor(at["v"]), torch.tensor(at["x"]))
    largest, where = worst(got, key, at, at["x"] > 1e-100)
    assert largest <= bar, where


@pytest.mark.parametrize("nu", CLOSED_FORMS)
def test_half_integer_closed_forms(nu):
    r = torch.cat([torch.zeros(1), torch.logspace(-9, 1.5, 400)]).to(F64)
    want = CLOSED_FORMS[nu](math.sqrt(2 * nu) * r / 0.7)
    torch.testing.assert_close(matern(r, nu, 0.7), want, rtol=2e-14, atol=4 * EPS)


def test_gaussian_limit():
    r = torch.linspace(0, 6, 50, dtype=F64)
    gauss = torch.exp(-(r**2) / 2)
    torch.testing.assert_close(matern(r, math.inf), gauss, rtol=0, atol=4 * EPS)
    torch.testing.assert_close(matern(r, 1e12), gauss, rtol=0, atol=1e-12)
    # the first correction, exp(-r^2/2) (r^4/8 - r^2/2) / nu ... in order 1/nu
    nu = 1e6
    first = gauss * (r**4 / 8 - r**2 / 2) / nu
    torch.testing.assert_close(
        (matern(r, nu) - gauss) / first.abs().max(),
        first / first.abs().max(),
        rtol=0,
        atol=1e-4,
    )


@pytest.mark.parametrize("nu", [0.6, 1.0, 1.3, 2.0, 2.5, 8.0, 40.0])
def test_one_minus_matern_at_small_distances(nu):
    """1 - M is right to the rounding of M, and M never exceeds 1."""
    r = torch.logspace(-12, -1, 60, dtype=F64)
    want = torch.tensor([float(1 - exact(nu, a)) for a in r.tolist()], dtype=F64)
    assert ((1 - matern(r, nu)) - want).abs().max() <= 16 * EPS
    assert (matern(r, nu) <= 1).all()


@pytest.mark.parametrize(
    ("nu", "slope"),
    [(0.2, -math.inf), (0.5, -1 / 0.7), (0.8, 0.0), (1.0, 0.0), (1.5, 0.0), (50.0, 0.0)],
)
def test_gradients_at_zero_distance(nu, slope):
    r, order, scale = (torch.tensor(a, dtype=F64, requires_grad=True) for a in (0.0, nu, 0.7))
    value = matern(r, order, scale)
    assert value == 1
    gradients = torch.autograd.grad(value, (r, order, scale))
    assert gradients[0].item() == pytest.approx(slope)
    assert gradients[1] == gradients[2] == 0


@pytest.mark.parametrize("nu", [0.2, 0.5, 0.8, 1.0, 1.1, 2.5, 30.0])
def test_second_derivatives_in_order_and_scale_vanish_at_zero_distance(nu):
    parameters = torch.tensor([nu, 0.7], dtype=F64)
    for r in (0.0, torch.zeros(2, dtype=F64)):
        hessian = torch.autograd.functional.hessian(
            lambda p, r=r: torch.as_tensor(matern(r, p[0], p[1])).sum(), parameters
        )
        assert (hessian == 0).all()


@pytest.mark.parametrize(
    ("nu", "twice", "with_nu", "with_scale"),
    [
        (0.2, math.inf, math.inf, math.inf),
        (0.5, 1 / 0.49, math.inf, 1 / 0.49),
        (0.8, -math.inf, 0.0, 0.0),
        (1.0, -math.inf, 0.0, 0.0),
        (1.2, -6 / 0.49, 0.0, 0.0),
        (30.0, -30 / 29 / 0.49, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_second_derivatives_at_zero_distance(
    nu, twice, with_nu, with_scale, zero, backend, monkeypatch
):
    """The limits from the right; also where nobody can see which elements are zero."""
    monkeypatch.setattr(_runtime, "_BACKEND", backend)
    arguments = tuple(torch.tensor(a, dtype=F64, requires_grad=True) for a in (zero, nu, 0.7))
    (slope,) = torch.autograd.grad(matern(*arguments), arguments[0], create_graph=True)
    second = torch.stack(torch.autograd.grad(slope, arguments))
    want = torch.tensor([twice, with_nu, with_scale], dtype=F64)
    torch.testing.assert_close(second, want)
    for other in (1, 2):  # the other way round
        (slope,) = torch.autograd.grad(matern(*arguments), arguments[other], create_graph=True)
        (mixed,) = torch.autograd.grad(slope, arguments[0])
        torch.testing.assert_close(mixed, want[other])
    pair = [a.detach().expand(2) for a in arguments]
    of_slope = torch.func.grad(torch.func.grad(matern), argnums=(0, 1, 2))
    batched = torch.stack(torch.func.vmap(of_slope)(*pair))
    torch.testing.assert_close(batched, want[:, None].expand(3, 2))


@pytest.mark.parametrize("nu", [1.5, 2.5, 7.3, 30.0])
def test_curvature_at_zero_distance(nu):
    """M'' (0) = -nu / (nu - 1), the variance of the derivative of the process."""
    r = torch.zeros((), dtype=F64, requires_grad=True)
    (first,) = torch.autograd.grad(matern(r, nu), r, create_graph=True)
    (second,) = torch.autograd.grad(first, r)
    assert second.item() == pytest.approx(-nu / (nu - 1), rel=1e-12)


@pytest.mark.parametrize("nu", [0.3, 0.5, 1.0, 1.01, 2.5, 7.0, 10.9, 11.1, 200.0])
def test_gradcheck_twice(nu):
    r = torch.tensor([0.01, 0.05, 0.6, 3.0], dtype=F64, requires_grad=True)
    order, scale = (torch.full((4,), a, dtype=F64, requires_grad=True) for a in (nu, 0.8))
    assert gradcheck(matern, (r, order, scale), eps=1e-7, atol=1e-6, rtol=1e-5)
    assert gradgradcheck(matern, (r, order, scale), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_monotone_in_distance_and_positive_definite():
    r = torch.logspace(-10, 2, 2000, dtype=F64)
    cloud = torch.rand(60, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    for nu in (0.25, 0.9, 1.0, 3.3, 14.0, 1e4):
        assert (matern(r, nu).diff() <= 4 * EPS).all()
        eigenvalues = torch.linalg.eigvalsh(matern(torch.cdist(cloud, cloud), nu, 0.3))
        assert eigenvalues.min() > -1e-13


def test_outside_the_domain_is_nan_and_infinity_is_zero():
    nan = [
        matern(torch.tensor(-1.0), 1.5),
        matern(torch.tensor(1.0), 0.0),
        matern(torch.tensor(1.0), -2.0),
        matern(torch.tensor(1.0), 1.5, -1.0),
        matern(torch.tensor(math.nan), 1.5),
        matern(torch.tensor(0.0), math.nan),
        matern(torch.tensor(1.0), 1.5, math.nan),
    ]
    assert all(value.isnan() for value in nan)
    for nu in (0.5, 2.0, 1e3, math.inf):
        assert matern(torch.tensor(math.inf), nu) == 0
        assert matern(torch.tensor(1e300, dtype=F64), nu, 1e-300) == 0
        assert matern(torch.tensor(0.0), nu) == 1


OUTSIDE = {
    "r": (-1.0, 1.5, 0.7),
    "nu": (1.0, -1.5, 0.7),
    "nu zero": (0.0, 0.0, 0.7),
    "lengthscale": (1.0, 1.5, -0.7),
    "lengthscale zero": (1.0, 1.5, 0.0),
    "nan": (math.nan, 1.5, 0.7),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("bad", OUTSIDE)
def test_derivatives_are_nan_where_the_value_is(bad, dtype):
    """Whether the batch is looked at or not, and only there."""
    rows = torch.tensor(
        [OUTSIDE[bad], (0.5, 1.5, 0.7), (0.0, 1.5, 0.7), (math.inf, 2.0, 0.7)], dtype=dtype
    )
    columns = [column.clone().requires_grad_() for column in rows.T]
    outside = torch.tensor([True, False, False, False])
    value = matern(*columns)
    gradients = torch.autograd.grad(value.sum(), columns, create_graph=True)
    assert torch.equal(value.isnan(), outside)
    for gradient in gradients:
        assert torch.equal(gradient.isnan(), outside)
    for second in torch.autograd.grad(gradients[0].sum(), columns):
        assert torch.equal(second.isnan(), outside)
    batched = torch.func.vmap(torch.func.grad(matern, argnums=(0, 1, 2)))(*rows.T)
    for gradient, want in zip(batched, gradients, strict=True):
        torch.testing.assert_close(gradient, want.detach(), equal_nan=True)


@pytest.mark.parametrize("bad", OUTSIDE)
def test_gradient_is_nan_where_every_value_is(bad):
    arguments = [torch.tensor([a], requires_grad=True) for a in OUTSIDE[bad]]
    matern(*arguments).sum().backward()
    assert all(a.grad.isnan() for a in arguments)


def test_arguments_whose_scaled_distance_underflows():
    """z = sqrt(2 nu) r / l is 1e-450, and 1 - M nearly 1 all the same."""
    assert abs(matern(1e-300, 1e-300)) <= 4 * EPS
    assert matern(1e-200, 1e-250) == pytest.approx(float(exact(1e-250, 1e-200)), abs=4 * EPS)
    r = torch.tensor(1e-300, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(matern(r, 1e-300), r)
    assert gradient.isfinite()


@pytest.mark.parametrize("nu", [14.57, 30.0, 200.0])
@pytest.mark.parametrize("r", [3.39e-12, 1e-7, 1e-3])
def test_order_gradient_is_relatively_right_at_tiny_distances(nu, r):
    order = torch.tensor(nu, dtype=F64, requires_grad=True)
    (got,) = torch.autograd.grad(matern(r, order), order)
    assert got.item() == pytest.approx(float(balls(nu, r)["dv"]), rel=4 * nu * EPS, abs=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_round_once(dtype):
    r = torch.linspace(0, 3, 40, dtype=F64).to(dtype)
    got = matern(r, 1.7, 0.5)
    assert got.dtype == dtype
    assert torch.equal(got, matern(r.float(), 1.7, 0.5).to(dtype))


@pytest.mark.parametrize(
    ("dtype", "distances"),
    [(F64, (1e-280, 1e-290, 1e-300, 1e-308)), (torch.float32, (1e-30, 1e-34, 1.2e-38))],
)
@pytest.mark.parametrize("nu", [0.3, 0.45, 0.5, 0.55])
def test_slope_at_the_smallest_distances(nu, dtype, distances):
    """dM/dr ~ -2 nu Gamma(1-nu)/Gamma(1+nu) (nu/2)^nu r^(2 nu - 1), and its own slope."""
    r = torch.tensor(distances, dtype=dtype, requires_grad=True)
    value = matern(r, nu)
    (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), r)
    exponent = 2 * float(torch.tensor(nu, dtype=dtype)) - 1
    order = (exponent + 1) / 2
    factor = -2 * order * math.gamma(1 - order) / math.gamma(1 + order) * (order / 2) ** order
    want = factor * r.detach().double() ** exponent
    tolerance = 200 * torch.finfo(dtype).eps  # of the power
    torch.testing.assert_close(slope.detach().double(), want, rtol=tolerance, atol=0)
    if nu == 0.5:
        torch.testing.assert_close(second, torch.ones_like(r))


@pytest.mark.parametrize(
    ("nu", "r"), [(2.39, 1.6e-6), (1.7, 1e-3), (2.5, 0.01), (0.999, 1e-5), (8.0, 0.05)]
)
def test_order_gradient_is_relatively_right_at_small_distances(nu, r):
    order = torch.tensor(nu, dtype=F64, requires_grad=True)
    (got,) = torch.autograd.grad(matern(r, order), order)
    assert got.item() == pytest.approx(float(balls(nu, r)["dv"]), rel=1e-11, abs=0)


@pytest.mark.parametrize(
    ("dtype", "tiny", "large"), [(F64, 1e-300, 1e10), (torch.float32, 1e-30, 1e10)]
)
def test_gradients_of_tiny_orders(dtype, tiny, large):
    """M ~ 2 nu K_0(z): its slope in nu is finite whatever rho / nu is."""
    nu = torch.tensor(tiny, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(matern(torch.tensor(large, dtype=dtype), nu), nu)
    z = math.log(2) - 0.5772156649015329 - math.log(large) - math.log(2 * tiny) / 2
    assert slope.item() == pytest.approx(2 * z - 1, rel=1e-4)


def test_far_away_everything_is_zero():
    for dtype, far in ((F64, 1e120), (torch.float32, 1e13)):
        for nu in (0.7, 20.0, 1e30):
            r, order = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in (far, nu))
            (slope,) = torch.autograd.grad(matern(r, order), r, create_graph=True)
            seconds = torch.autograd.grad(slope, (r, order))
            assert slope == 0
            assert all(second == 0 for second in seconds)


def test_length_scales_at_the_ends():
    for length in (math.inf, 1e-170):
        arguments = [torch.tensor(a, dtype=F64, requires_grad=True) for a in (0.0, 1.5, length)]
        value = matern(*arguments)
        assert value == 1
        gradients = torch.autograd.grad(value, arguments)
        assert all(gradient == 0 for gradient in gradients)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_forward_mode_at_zero_distance(backend, monkeypatch):
    """Compiled code multiplies an infinite slope in r by a tangent of zero, as documented."""
    monkeypatch.setattr(_runtime, "_BACKEND", backend)
    for nu, slope in ((0.3, -math.inf), (0.5, -2.0), (1.5, 0.0)):
        arguments = {"r": 0.0, "nu": nu, "lengthscale": 0.5}
        tangents = []
        for name, number in arguments.items():
            at = partial(matern, **{k: a for k, a in arguments.items() if k != name})
            moved = torch.tensor(number, dtype=F64)
            move = torch.func.jvp(lambda a, at=at, name=name: at(**{name: a}), (moved,), (ONE,))
            tangents.append(move[1].item())
        in_scale = math.nan if backend == "native" and nu < 0.5 else 0.0
        assert tangents == pytest.approx([slope, 0.0, in_scale], nan_ok=True)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_positive_parameters_that_underflow(backend, monkeypatch):
    """1e-46 is 0 in float32, and positive all the same."""
    monkeypatch.setattr(_runtime, "_BACKEND", backend)
    wide = torch.tensor(1e-46, dtype=F64, requires_grad=True)
    for dtype, tiny in ((torch.float32, 1e-46), (torch.float16, 1e-300), (torch.float32, wide)):
        r = torch.tensor([0.0, 1.0], dtype=dtype)
        for value in (matern(r, 1.5, tiny), matern(r, tiny, 0.7)):
            assert value.dtype == dtype
            torch.testing.assert_close(value.detach(), torch.tensor([1.0, 0.0], dtype=dtype))
    (slope,) = torch.autograd.grad(matern(r, 1.5, wide).sum(), wide)
    assert slope == 0
    assert matern(torch.ones(1), 1.5, 0.0).isnan()
    assert matern(torch.ones(1), 1.5, -1e-46).isnan()


def test_never_above_one():
    draw = torch.Generator().manual_seed(1)
    for dtype in (F64, torch.float32):
        nu = torch.exp(torch.empty(100_000).uniform_(-4, 4, generator=draw)).to(dtype)
        r = torch.exp(torch.empty(100_000).uniform_(-18, -1, generator=draw)).to(dtype)
        assert (matern(r, nu) <= 1).all()


def test_native_float32():
    """Values and gradients of the same arguments, in units of float32."""
    draw = torch.Generator().manual_seed(0)
    nu = torch.exp(torch.empty(20_000).uniform_(-4, 6, generator=draw))
    r = torch.exp(torch.empty(20_000).uniform_(-9, 3, generator=draw))
    narrow, wide = (
        [a.to(dtype).requires_grad_() for a in (r, nu)] for dtype in (torch.float32, F64)
    )
    got, want = matern(*narrow), matern(*wide)
    assert got.dtype == torch.float32
    scale = want.detach() * (1 - want.detach().log()).clamp_min(1) + 1e-37
    assert ((got - want).abs() <= 8 * 2.0**-23 * scale).all()
    gradients = zip(
        torch.autograd.grad(got.sum(), narrow),
        torch.autograd.grad(want.sum(), wide),
        strict=True,
    )
    for single, double in gradients:
        assert ((single - double).abs() / (scale + double.abs())).max() <= 32 * 2.0**-23


def test_kinds_and_promotion():
    array = matern(np.array([0.0, 1.0]), 1.5)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float64
    assert isinstance(matern(1.0, 1.5), np.float64)
    strided = np.linspace(0, 1, 6)[::-2]
    np.testing.assert_array_equal(matern(strided, 0.7), matern(strided.copy(), 0.7))
    for nu in (Fraction(3, 2), np.float64(1.5)):
        assert matern(2, nu) == matern(2.0, 1.5)
        assert matern(torch.tensor(2), nu) == matern(torch.tensor(2), 1.5)
    assert matern(torch.ones(2), 2**70).dtype == torch.float32
    assert matern(torch.arange(3), 1.5).dtype == torch.get_default_dtype()
    assert matern(torch.ones(3), torch.tensor(1.5, dtype=F64)).dtype == torch.float32
    assert matern(torch.ones(3), torch.full((3,), 1.5, dtype=F64)).dtype == F64
    assert matern(torch.ones(2, 1), torch.rand(3) + 1, torch.rand(4, 1, 1) + 1).shape == (
        4,
        2,
        3,
    )
    assert matern(torch.empty(0, 3), 1.5).shape == (0, 3)
    assert matern(torch.ones(2, device="meta"), 1.5).device.type == "meta"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.ones(2, dtype=torch.complex64), 1.5), TypeError, "r .*complex64"),
        ((torch.ones(2), torch.tensor(True)), TypeError, "nu .*bool"),
        ((torch.ones(2), "1.5"), TypeError, "nu .*str"),
        ((torch.ones(2), 1.5, None), TypeError, "lengthscale .*NoneType"),
        ((torch.eye(2).to_sparse(), 1.5), TypeError, "r has layout torch.sparse_coo"),
        ((np.ma.masked_array([1.0], [True]), 1.5), TypeError, "r is a masked array"),
        ((1.0, np.ma.masked_array([1.0], [True])), TypeError, "nu is a masked array"),
        ((torch.ones(2), 1.5, 10**400), ValueError, "lengthscale .* range of float64"),
        ((torch.ones(1).expand(10**7, 10**7), 1.5), MemoryError, "10000000.* too large"),
        ((torch.ones(2), torch.ones(3)), ValueError, r"r \(2,\), nu \(3,\)"),
        (
            (torch.ones(2), torch.ones(2, device="meta")),
            ValueError,
            "r is on cpu but nu is on meta|nu is on meta but r is on cpu",
        ),
    ],
)
def test_invalid_arguments_are_refused_in_words(arguments, error, words):
    with pytest.raises(error, match=f"matern: .*({words})"):
        matern(*arguments)


def test_torch_func_transforms():
    r = torch.tensor([0.0, 0.02, 0.4, 2.0], dtype=F64)
    nu = torch.tensor([0.7, 1.0, 2.5, 40.0], dtype=F64)
    batched = torch.func.vmap(torch.func.grad(matern, argnums=1))(r, nu)
    order = nu.clone().requires_grad_()
    (want,) = torch.autograd.grad(matern(r, order).sum(), order)
    torch.testing.assert_close(batched, want)
    _, tangent = torch.func.jvp(lambda a: matern(r, a), (nu,), (torch.ones_like(nu),))
    torch.testing.assert_close(tangent, want)
    hessian = torch.func.hessian(lambda a: matern(r[2], a))(nu[2])
    (first,) = torch.autograd.grad(matern(r[2], order)[2], order, create_graph=True)
    torch.testing.assert_close(hessian, torch.autograd.grad(first[2], order)[0][2])
