"""matern against Arb, closed forms and limits; derivatives in r, nu and the length scale."""

import math
from fractions import Fraction

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
    integral,
    make_matern,
    points,
    worst,
)

EPS = 2.0**-52
F64 = torch.float64

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_round_once(dtype):
    r = torch.linspace(0, 3, 40, dtype=F64).to(dtype)
    got = matern(r, 1.7, 0.5)
    assert got.dtype == dtype
    assert torch.equal(got, matern(r.float(), 1.7, 0.5).to(dtype))


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
